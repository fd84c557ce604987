"""Longhorn. Liu et al., 2024 (arXiv 2407.14207, Eqs. 6-7); Miras Table 1.

    e_t = beta_t / (1 + beta_t |k_t|^2),  beta_t = sigmoid(x_t W_1 W_2 + b), per value channel
    S_t[i, j] = (1 - e_t[j] k_t[i]^2) S_{t-1}[i, j] + k_t[i] e_t[j] v_t[j]
    y_t = q_t S_t + D v_t

The implicit step on |k S - v|^2, in the authors' diagonal approximation: every entry learns on its
own. Mamba's layer: values of twice the width, convolved with SiLU, one head of q and k for all,
the skip D, a SiLU gate and no norm. Departs: q and k are convolved projections of the token
(published: projections of the convolved v); keys have a quarter of dim / heads channels (published:
16, whatever the width); the block keeps its SwiGLU, which Longhorn has not.
"""

import jax

from miras_jax.memory import Entries, Gate, Implicit, Memory
from miras_jax.zoo.row import LayerOptions, Row, Stream, equations

STEP = Gate(per="value", initial=0.5)


def finish(y: jax.Array, inputs, norm) -> jax.Array:
    """The skip D, which starts at 1, then the gate."""
    return (y + (1 + inputs["skip"]) * inputs["v"]) * inputs["gate"]


ROW = Row(
    name="longhorn",
    memory=Memory(architecture=Entries(), algorithm=Implicit(step=STEP)),
    layer=LayerOptions(
        key_expansion=0.25,
        value_expansion=2,
        key_heads=1,
        streams=(
            Stream("step", STEP),
            Stream("skip", Gate(per="value", activation="identity", source="learned")),
        ),
        normalize=False,
        finish=finish,
        output_norm=False,
    ),
    architecture="entries of a matrix",
    bias="l2",
    retention="none",
    algorithm="implicit gradient descent",
    source="arXiv 2407.14207, Eqs. 6-7",
    recurrence=equations(__doc__),
)
