"""RetNet. Sun et al., 2023 (arXiv 2307.08621, Eqs. 6-8); Miras Table 1.

    S_t = gamma_h S_{t-1} + k_t^T v_t          y_t = q_t S_t / sqrt(K)
    gamma_h = 1 - 2^(-5 - h), h = 0 .. H - 1

Rotary positions on q and k, values of twice the width, a norm of every head and a swish gate; the
decay is fixed. (Table 1 calls the memory a vector; it is a matrix.) Departs: the block's SwiGLU
has the width of the other models.
"""

import jax.numpy as jnp

from miras_jax.memory import DotProduct, GradientDescent, L2Decay, Memory
from miras_jax.zoo.row import Facts, Inputs, LayerOptions, Row, equations


def prepare(inputs: Inputs, facts: Facts) -> Inputs:
    """The log of the fixed decays."""
    log_decay = jnp.log1p(-(2.0 ** (-5 - jnp.arange(facts.heads))))
    shape = inputs["q"].shape[:3]
    return {**inputs, "log_decay": jnp.broadcast_to(log_decay, shape)}


ROW = Row(
    name="retnet",
    memory=Memory(bias=DotProduct(), retention=L2Decay(), algorithm=GradientDescent(step=None)),
    layer=LayerOptions(
        value_expansion=2,
        convolution=False,
        streams=(),
        prepare=prepare,
        normalize=False,
        rotary=True,
        scale_query=True,
        norm="layer",
    ),
    architecture="matrix",
    bias="dot product",
    retention="l2 decay (fixed)",
    algorithm="gradient descent",
    source="arXiv 2307.08621, Eqs. 6-8",
    recurrence=equations(__doc__),
)
