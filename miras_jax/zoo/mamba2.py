"""Mamba-2. Dao and Gu, 2024 (arXiv 2405.21060, Eq. 2 and section 7); Miras Table 1, row Mamba.

    dt_t = softplus(x_t w_h + b_h)
    S_t  = exp(-A_h dt_t) S_{t-1} + k_t^T (dt_t v_t)          y_t = q_t S_t + D_h v_t

q, k and v are Mamba's C, B and x, convolved with SiLU; one head of q and k serves all heads. Norm
and gate: RMSNorm(y * silu(z)). Departs: the norm is of every head; q, k and v have twice the
channels of dim / heads (published: v has 64 and q, k 128, whatever the width); A and dt start
spread over the heads in order, 1 to 16 and 0.001 to 0.1, instead of at random; the block keeps its
SwiGLU, which Mamba-2 has not.
"""

import jax
import jax.numpy as jnp

from miras_jax.memory import DotProduct, Gate, GradientDescent, L2Decay, Memory
from miras_jax.memory.gate import Per
from miras_jax.zoo.row import Facts, Inputs, LayerOptions, Row, Stream, equations


def decay_streams(per: Per = "head") -> tuple[Stream, ...]:
    """What Mamba-2's decay, which other models use too, is made of."""
    return (
        Stream("dt", Gate(per=per, activation="softplus", initial=(0.001, 0.1))),
        Stream("log_rate", Gate(activation="identity", source="learned")),
    )


def log_decay(inputs: Inputs, facts: Facts) -> jax.Array:
    """-A dt, in the shape of dt; A starts at 1 to 16 over the heads."""
    dt = inputs["dt"]
    rate = jnp.geomspace(1.0, 16.0, facts.heads) * jnp.exp(inputs["log_rate"])
    return -dt * (rate if dt.ndim == rate.ndim else rate[..., None])


def prepare(inputs: Inputs, facts: Facts) -> Inputs:
    """dt as decay and as write strength."""
    return {
        **inputs,
        "v": inputs["v"] * inputs["dt"][..., None],
        "log_decay": log_decay(inputs, facts),
        "x": inputs["v"],
    }


def finish(y: jax.Array, inputs: Inputs, norm) -> jax.Array:
    """The skip D, which starts at 1, and the gate before the norm."""
    return norm((y + (1 + inputs["skip"])[..., None] * inputs["x"]) * inputs["gate"])


ROW = Row(
    name="mamba2",
    memory=Memory(bias=DotProduct(), retention=L2Decay(), algorithm=GradientDescent(step=None)),
    layer=LayerOptions(
        key_expansion=2,
        value_expansion=2,
        key_heads=1,
        streams=(
            *decay_streams(),
            Stream("skip", Gate(activation="identity", source="learned")),
        ),
        prepare=prepare,
        normalize=False,
        finish=finish,
    ),
    architecture="matrix",
    bias="dot product",
    retention="l2 decay",
    algorithm="gradient descent",
    source="arXiv 2405.21060, Eq. 2",
    recurrence=equations(__doc__),
)
