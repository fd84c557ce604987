"""RWKV-7. Peng et al., 2025 (arXiv 2503.14456, Eqs. 3-22); Miras Table 1.

    S_t = diag(w_t) S_{t-1} + b_t^T (a_t S_{t-1}) + k~_t^T v_t          y_t = r_t S_t
    w_t = exp(-exp(-1/2) sigmoid(tanh(x_w W_1) W_2 + c)),  i_t = sigmoid(x_i W_3 W_4 + d)
    a_t = -unit(xi * k_t),  b_t = unit(xi * k_t) * i_t,  k~_t = k_t * (1 + alpha * (i_t - 1))
    o_t = (norm(y_t) + (r_t . (rho * k~_t)) v_t) * (sigmoid(x_g W_5) W_6)

Every projection reads its own mixture of the token and the one before it (x_w, x_i, x_g; also r, k
and v); xi, alpha and rho are learned per channel. The removal reads the memory before the decay.
Departs: no residual of the first layer's values; w starts at time scales of 2 to 100 tokens over
the heads instead of by channel and layer; the ranks are `model.gate_rank`; the norm's scale is
shared by the heads; the block keeps its SwiGLU in place of RWKV's channel mixing. (Table 1
multiplies decay and removal; they are added.)
"""

import jax
import jax.numpy as jnp

from miras_jax.memory import Gate, L2Decay, Memory, Removal, log_decay
from miras_jax.memory.gate import unit
from miras_jax.zoo.row import Facts, Inputs, LayerOptions, Row, Stream, equations

FASTEST = 0.606531
"""exp(-1/2), the largest decay rate."""


def prepare(inputs: Inputs, facts: Facts) -> Inputs:
    """Decay, removal, replacement and the key that is written."""
    k, rate = inputs["k"].astype(jnp.float32), inputs["rate"]
    removed = unit(k * (1 + inputs["removal_scale"]))
    return {
        **inputs,
        "k": k * (1 + (1 + inputs["key_scale"]) * (rate - 1)),
        "log_decay": -inputs["decay"],
        "removal": -removed,
        "replacement": removed * rate,
    }


def finish(y: jax.Array, inputs: Inputs, norm) -> jax.Array:
    """The bonus of the present token, then the gate."""
    q, k, v = (inputs[name] for name in "qkv")
    bonus = jnp.sum(q * k * inputs["bonus"], axis=-1, keepdims=True) * v
    return (norm(y) + bonus) * inputs["gate"]


def _learned(name: str) -> Stream:
    return Stream(name, Gate(per="key", activation="identity", source="learned"))


ROW = Row(
    name="rwkv7",
    memory=Memory(
        retention=L2Decay(log_decay(per="key")),
        algorithm=Removal(),
        chunk_size=8,  # two inner steps a token
    ),
    layer=LayerOptions(
        shift=True,
        convolution=False,
        streams=(
            Stream("decay", Gate(per="key", high=FASTEST, initial=(0.01, 0.5)), hidden="tanh"),
            Stream("rate", Gate(per="key", initial=0.5)),
            Stream("gate", Gate(per="value", activation="identity"), hidden="sigmoid"),
            _learned("removal_scale"),
            _learned("key_scale"),
            _learned("bonus"),
        ),
        prepare=prepare,
        normalize=False,
        finish=finish,
        norm="layer",
        output_gate=False,
    ),
    architecture="matrix",
    bias="l2 (removal key of its own)",
    retention="l2 decay per key channel",
    algorithm="gradient descent",
    source="arXiv 2503.14456, Eqs. 3-22",
    recurrence=equations(__doc__),
)
