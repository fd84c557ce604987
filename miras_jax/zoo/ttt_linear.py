"""TTT-Linear. Sun et al., 2024 (arXiv 2407.04620, Eqs. 4-6 and section 2.7); Miras Table 1.

    M(x) = x + LN(x W + b)          l(W; k, v) = |M(k) - v|^2 / 2
    W_t = W - u_i sum_{s <= t} eta_s grad l(W; k_s, v_s), over the chunk, whose start is W
    eta_s = sigmoid(x_s w_h + b_h) / K,  u_i = max(1 / i + c_i, 0) at the chunk's i-th token
    y_t = M(W_t; q_t)

The chunk's last W starts the next one. The layer of the Mamba backbone: q and k of one projection,
told apart by their convolutions (no activation, v too), rotary positions within the chunk, a norm
and a gelu gate. W starts at deviation 0.02; scale and offset of the inner LayerNorm and c are
learned outside. Departs: the norm after the memory is of every head; v is
convolved too (published: q and k).
"""

import jax.numpy as jnp

from miras_jax.memory import MLP, Gate, GradientDescent, Memory
from miras_jax.zoo.row import Facts, Inputs, LayerOptions, Row, Stream, equations


def layer(rate: float) -> LayerOptions:
    """The layer of TTT; `rate` is the published base learning rate."""

    def prepare(inputs: Inputs, facts: Facts) -> Inputs:
        """Steps for the width of the keys, and what a token's place in its chunk makes of them."""
        lift = jnp.maximum(1 / (facts.place[..., None] + 1) + inputs["offset"], 0)
        return {**inputs, "step": rate / inputs["k"].shape[-1] * inputs["step"], "lift": lift}

    return LayerOptions(
        share_query_key=True,
        activation="identity",
        streams=(
            Stream("step", Gate()),
            Stream("offset", Gate(activation="identity", source="learned"), of_chunk=True),
        ),
        prepare=prepare,
        normalize=False,
        rotary=True,
        rotary_within="chunk",
        norm="layer",
        gate_activation="gelu",
        start_std=0.02,
    )


ROW = Row(
    name="ttt_linear",
    memory=Memory(
        architecture=MLP(depth=1, bias=True, scale="learned", eps=1e-6),
        algorithm=GradientDescent(step=Gate(), lift=Gate()),
        chunk_size=16,
    ),
    layer=layer(rate=1.0),
    architecture="linear, with LayerNorm",
    bias="l2",
    retention="none",
    algorithm="gradient descent",
    source="arXiv 2407.04620, Eqs. 4-6",
    recurrence=equations(__doc__),
)
