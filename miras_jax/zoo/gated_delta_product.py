"""Gated DeltaProduct. Siems et al., 2025 (arXiv 2502.10297, section 3); Miras Table 1.

    S <- exp(g_t) S_{t-1},  g_t = -A_h softplus(x_t w_h + b_h)
    S <- S + beta_{t,j} k_{t,j}^T (v_{t,j} - k_{t,j} S),  j = 1, 2          y_t = q_t S

DeltaProduct with Gated DeltaNet's decay once a token; the layer is theirs. Departs: as
`delta_product` and `gated_deltanet`.
"""

from miras_jax.memory import L2Decay, Memory, SeveralSteps
from miras_jax.zoo.delta_product import STEP
from miras_jax.zoo.gated_deltanet import prepare
from miras_jax.zoo.mamba2 import decay_streams
from miras_jax.zoo.row import LayerOptions, Row, Stream, equations

ALGORITHM = SeveralSteps(step=STEP)

ROW = Row(
    name="gated_delta_product",
    memory=Memory(retention=L2Decay(decay_first=True), algorithm=ALGORITHM, chunk_size=16),
    layer=LayerOptions(
        streams=(
            *decay_streams(),
            *(Stream(name, gate) for name, gate in ALGORITHM.gates.items()),
        ),
        prepare=prepare,
    ),
    architecture="matrix",
    bias="l2",
    retention="l2 decay (decay first)",
    algorithm="gradient descent, 2 steps a token",
    source="arXiv 2502.10297, section 3",
    recurrence=equations(__doc__),
)
