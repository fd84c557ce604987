"""Gated DeltaNet-2. Hatamizadeh et al., 2026 (arXiv 2605.22791).

    S'  = diag(exp(g_t)) S_{t-1},  g_t = -A_h softplus(x_t W_1 W_2 + b), per key channel
    S_t = S' + k_t^T (w_t * v_t - (e_t * k_t) S')          y_t = q_t S_t
    e_t, w_t = sigmoid(x_t W_e), sigmoid(x_t W_w), per key and per value channel

KDA with the step taken apart: one gate erases, another writes. The layer is KDA's. Departs: as
`kda`.
"""

from miras_jax.memory import Decoupled, Gate, L2Decay, Memory
from miras_jax.memory import log_decay as per_key
from miras_jax.zoo.gated_deltanet import prepare
from miras_jax.zoo.mamba2 import decay_streams
from miras_jax.zoo.row import LayerOptions, Row, Stream, equations

ERASE, WRITE = Gate(per="key", initial=0.5), Gate(per="value", initial=0.5)

ROW = Row(
    name="gdn2",
    memory=Memory(
        retention=L2Decay(per_key(per="key"), decay_first=True),
        algorithm=Decoupled(erase=ERASE, write=WRITE),
        chunk_size=16,
    ),
    layer=LayerOptions(
        streams=(
            *decay_streams(per="key"),
            Stream("erase", ERASE, full=True),
            Stream("write", WRITE, full=True),
            Stream("gate", Gate(per="value")),
        ),
        prepare=prepare,
        output_gate=False,
    ),
    architecture="matrix",
    bias="l2",
    retention="l2 decay per key channel (decay first)",
    algorithm="gradient descent, erase and write apart",
    source="arXiv 2605.22791",
    recurrence=equations(__doc__),
)
