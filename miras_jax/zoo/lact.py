"""LaCT, large-chunk test-time training. Zhang et al., 2025 (arXiv 2505.23884, Eqs. 4-10).

    M(x) = (silu(x W_g) * (x W_u)) W_d          l(W; k, v) = -M(k) . v
    P <- m P - sum_chunk eta_s^l grad_l l(W; k_s, v_s),  m the mean of sigmoid(x_s w_m + b_m)
    W_l <- sphere(W_l + muon(P_l)),  l = gate, up, down          y_t = M(W; q_t)

Every token reads the memory of the chunk's start; at its end one step is taken with the whole
chunk's gradient, made orthogonal by five Newton-Schulz steps, and each output's weights go back
to their first norm. q and k, scaled and shifted per channel, and v get SiLU; q and k unit norm
and rotary positions; the norm of every head is scaled by silu(x_t w_h + b_h). Departs: no
sliding-window attention on the same q, k and v (`model.hybrid` sets it in blocks of its own); no
norm of q and k over all heads; chunks of 64 tokens (published: 2,048 and more), so that short
windows write too; W_g and W_u start at unit variance (published: 1 / K), so that a step moves them
sqrt(K) times less.
"""

import jax

from miras_jax.memory import DotProduct, Gate, Memory, Muon, Sphere, SwiGLU
from miras_jax.zoo.row import Facts, Inputs, LayerOptions, Row, Stream, equations

MEMORY = Memory(
    architecture=SwiGLU(expansion=1),
    bias=DotProduct(),
    retention=Sphere(),
    algorithm=Muon(
        step=Gate(activation="softplus", initial=0.001),
        layer_steps=("gate", "up"),
        momentum=Gate(initial=0.5),
    ),
    chunk_size=64,
    read="chunk",
)


def prepare(inputs: Inputs, facts: Facts) -> Inputs:
    """Scale, shift and SiLU."""
    q = inputs["q"] * (1 + inputs["query_scale"]) + inputs["query_shift"]
    k = inputs["k"] * (1 + inputs["key_scale"]) + inputs["key_shift"]
    return {**inputs, "q": jax.nn.silu(q), "k": jax.nn.silu(k), "v": jax.nn.silu(inputs["v"])}


def finish(y: jax.Array, inputs: Inputs, norm) -> jax.Array:
    """The norm of every head, scaled by the token."""
    return norm(y) * jax.nn.silu(inputs["output_scale"])[..., None]


def _learned(name: str) -> Stream:
    return Stream(name, Gate(per="key", activation="identity", source="learned"))


ROW = Row(
    name="lact",
    memory=MEMORY,
    layer=LayerOptions(
        convolution=False,
        streams=(
            *(Stream(name, gate) for name, gate in MEMORY.gates.items()),
            *map(_learned, ("query_scale", "query_shift", "key_scale", "key_shift")),
            Stream("output_scale", Gate(activation="identity"), hidden="identity"),
        ),
        prepare=prepare,
        rotary=True,
        finish=finish,
        output_gate=False,
    ),
    architecture="SwiGLU",
    bias="dot product",
    retention="sphere",
    algorithm="Muon with momentum",
    source="arXiv 2505.23884, Eqs. 4-10",
    recurrence=equations(__doc__),
)
