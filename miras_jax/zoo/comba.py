"""Comba. Hu et al., 2025 (arXiv 2506.02475).

    S'  = exp(g_t) S_{t-1},  g_t = -A_h softplus(x_t w_h + b_h)
    S_t = S' + beta_t k_t^T (v_t - p_t S'),  p_t = sigmoid(c_h) k_t
    y_t = (q_t - d_h k_t) S_t

Closed-loop control: what the memory answers is fed back through a weaker key, and corrected by the
present one. q, k and v are convolved with SiLU, q and k of unit norm; a norm of every head and a
sigmoid gate. c starts at 1 and d at 0.02, published for small models (1 for large ones). Departs:
K = V = dim / heads (published: 0.75 and 1.5 of it); A and b start as in `mamba2`; q without the
factor K^-0.5, which the norm takes out.
"""

import jax

from miras_jax.memory import Decoupled, Gate, L2Decay, Memory
from miras_jax.memory.gate import unit
from miras_jax.zoo.mamba2 import decay_streams, log_decay
from miras_jax.zoo.row import Facts, Inputs, LayerOptions, Row, Stream, equations

STEP = Gate(initial=0.5)
CONSTANT = Gate(activation="identity", source="learned")


def prepare(inputs: Inputs, facts: Facts) -> Inputs:
    """Feedback key and corrected query, both of the normalised key."""
    q, k = unit(inputs["q"]), unit(inputs["k"])
    return {
        **inputs,
        "q": q - (0.02 + inputs["correction"])[..., None] * k,
        "k": k,
        "address": jax.nn.sigmoid(1 + inputs["feedback"])[..., None] * k,
        "log_decay": log_decay(inputs, facts),
    }


ROW = Row(
    name="comba",
    memory=Memory(
        retention=L2Decay(decay_first=True),
        algorithm=Decoupled(step=STEP, address=Gate(per="key", activation="identity")),
    ),
    layer=LayerOptions(
        streams=(
            *decay_streams(),
            Stream("step", STEP),
            Stream("feedback", CONSTANT),
            Stream("correction", CONSTANT),
        ),
        prepare=prepare,
        normalize=False,
        gate_activation="sigmoid",
    ),
    architecture="matrix",
    bias="l2 (address of its own)",
    retention="l2 decay (decay first)",
    algorithm="gradient descent",
    source="arXiv 2506.02475",
    recurrence=equations(__doc__),
)
