"""HGRN2. Qin et al., 2024 (arXiv 2404.07904, section 3); Miras Table 1.

    f_t = b_l + (1 - b_l) sigmoid(x_t W_f), per key channel
    S_t = diag(f_t) S_{t-1} + (1 - f_t)^T v_t          y_t = silu(x_t W_q) S_t / sqrt(K)

The forget gate takes the key's place: the layer's key projection is W_f. No convolution and no
output gate. Departs: the lower bounds b_l = l / L of layer l of L stay where the published ones
start, instead of being learned by a softmax over the layers, which one layer cannot see; the norm
is of every head. (Table 1 prints the bias as l1; the write is that of the dot product.)
"""

import jax
import jax.numpy as jnp

from miras_jax.memory import DotProduct, GradientDescent, L2Decay, Memory, log_decay
from miras_jax.zoo.row import Facts, Inputs, LayerOptions, Row, equations


def prepare(inputs: Inputs, facts: Facts) -> Inputs:
    """The forget gate, and the key that it leaves room for."""
    logits = inputs["k"].astype(jnp.float32)
    bound = facts.layer / facts.depth
    # log f from logarithms, finite where a sigmoid of float32 is zero.
    log_forget = jnp.logaddexp(jnp.log(bound), jnp.log1p(-bound) + jax.nn.log_sigmoid(logits))
    key = (1 - bound) * jax.nn.sigmoid(-logits)
    return {**inputs, "q": jax.nn.silu(inputs["q"]), "k": key, "log_decay": log_forget}


ROW = Row(
    name="hgrn2",
    memory=Memory(
        bias=DotProduct(),
        retention=L2Decay(log_decay(per="key")),
        algorithm=GradientDescent(step=None),
        chunk_size=16,
    ),
    layer=LayerOptions(
        convolution=False,
        streams=(),
        prepare=prepare,
        normalize=False,
        scale_query=True,
        output_gate=False,
    ),
    architecture="matrix",
    bias="dot product",
    retention="l2 decay per key channel",
    algorithm="gradient descent",
    source="arXiv 2404.07904, section 3",
    recurrence=equations(__doc__),
)
