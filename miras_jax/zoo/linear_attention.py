"""Linear attention. Katharopoulos et al., 2020 (arXiv 2006.16236); Miras Table 1.

    S_t = S_{t-1} + k_t^T v_t          y_t = q_t S_t

Departs: no feature map and no normaliser (the form of Miras Table 1); the layer normalises q and k
and its output norm takes the normaliser's place.
"""

from miras_jax.memory import DotProduct, GradientDescent, Memory
from miras_jax.zoo.row import Row

ROW = Row(
    name="linear_attention",
    memory=Memory(bias=DotProduct(), algorithm=GradientDescent(step=None)),
    architecture="matrix",
    bias="dot product",
    retention="none",
    algorithm="gradient descent",
    source="arXiv 2006.16236; Miras Eq. 8",
)
