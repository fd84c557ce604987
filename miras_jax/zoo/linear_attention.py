"""Linear attention. Katharopoulos et al., 2020 (arXiv 2006.16236, Eqs. 7, 16-20); Miras Table 1.

    S_t = S_{t-1} + phi(k_t)^T v_t          y_t = phi(q_t) S_t          phi(x) = elu(x) + 1

Departs: the output norm of every head takes the place of the normaliser phi(q_t) sum_i phi(k_i)^T
(it divides by another positive number of the same growth).
"""

import jax

from miras_jax.memory import DotProduct, GradientDescent, Memory
from miras_jax.zoo.row import Facts, Inputs, LayerOptions, Row, equations


def prepare(inputs: Inputs, facts: Facts) -> Inputs:
    """The feature map on q and k."""
    return {**inputs, "q": jax.nn.elu(inputs["q"]) + 1, "k": jax.nn.elu(inputs["k"]) + 1}


ROW = Row(
    name="linear_attention",
    memory=Memory(bias=DotProduct(), algorithm=GradientDescent(step=None)),
    layer=LayerOptions(convolution=False, prepare=prepare, normalize=False, output_gate=False),
    architecture="matrix",
    bias="dot product",
    retention="none",
    algorithm="gradient descent",
    source="arXiv 2006.16236; Miras Eq. 8",
    recurrence=equations(__doc__),
)
