"""Kimi Delta Attention (KDA). Kimi Team, 2025 (arXiv 2510.26692, Eq. 1).

    S'  = diag(exp(g_t)) S_{t-1},  g_t = -A_h softplus(x_t W_1 W_2 + b), per key channel
    S_t = S' + beta_t k_t^T (v_t - k_t S')          y_t = q_t S_t

Gated DeltaNet with a decay per key channel. q, k and v are convolved with SiLU, q and k of unit
norm; a norm of every head and a sigmoid gate through a low rank. Departs: the ranks are
`model.gate_rank` (published: K); A and b start as in `mamba2`; q without the factor K^-0.5, which
the norm takes out.
"""

from miras_jax.memory import Gate, GradientDescent, L2Decay, Memory
from miras_jax.memory import log_decay as per_key
from miras_jax.zoo.gated_deltanet import STEP, prepare
from miras_jax.zoo.mamba2 import decay_streams
from miras_jax.zoo.row import LayerOptions, Row, Stream, equations

ROW = Row(
    name="kda",
    memory=Memory(
        retention=L2Decay(per_key(per="key"), decay_first=True),
        algorithm=GradientDescent(step=STEP),
        chunk_size=16,
    ),
    layer=LayerOptions(
        streams=(
            *decay_streams(per="key"),
            Stream("step", STEP),
            Stream("gate", Gate(per="value")),
        ),
        prepare=prepare,
        output_gate=False,
    ),
    architecture="matrix",
    bias="l2",
    retention="l2 decay per key channel (decay first)",
    algorithm="gradient descent",
    source="arXiv 2510.26692, Eq. 1",
    recurrence=equations(__doc__),
)
