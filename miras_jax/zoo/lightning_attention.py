"""Lightning attention. Qin et al., 2024 (arXiv 2401.04658), with the layer of MiniMax-01
(arXiv 2501.08313); Miras Table 1.

    S_t = exp(-s_h c_l) S_{t-1} + k_t^T v_t          y_t = q_t S_t
    s_h = 2^(-8 (h + 1) / H), c_l = 1 - l / (L - 1) + 1e-5; head h of H, layer l of L

SiLU on q, k and v, no convolution, sigmoid gate; the decay is fixed, and later layers forget less.
Departs: the norm is of every head instead of all heads together.
"""

import jax
import jax.numpy as jnp

from miras_jax.memory import DotProduct, GradientDescent, L2Decay, Memory
from miras_jax.zoo.row import Facts, Inputs, LayerOptions, Row, equations


def prepare(inputs: Inputs, facts: Facts) -> Inputs:
    """SiLU, and the log of the fixed decays."""
    slope = 2.0 ** (-8 * (jnp.arange(facts.heads) + 1) / facts.heads)
    log_decay = -slope * (1 - facts.layer / max(facts.depth - 1, 1) + 1e-5)
    q, k, v = (jax.nn.silu(inputs[name]) for name in "qkv")
    return {**inputs, "q": q, "k": k, "v": v, "log_decay": jnp.broadcast_to(log_decay, q.shape[:3])}


ROW = Row(
    name="lightning_attention",
    memory=Memory(bias=DotProduct(), retention=L2Decay(), algorithm=GradientDescent(step=None)),
    layer=LayerOptions(
        convolution=False,
        streams=(),
        prepare=prepare,
        normalize=False,
        gate_activation="sigmoid",
    ),
    architecture="matrix",
    bias="dot product",
    retention="l2 decay (fixed)",
    algorithm="gradient descent",
    source="arXiv 2401.04658, 2501.08313",
    recurrence=equations(__doc__),
)
