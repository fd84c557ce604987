"""Gated linear attention (GLA). Yang et al., 2023 (arXiv 2312.06635, Eq. 3 and section 4.4); Miras
Table 1.

    S_t = diag(alpha_t) S_{t-1} + k_t^T v_t          y_t = q_t S_t / sqrt(K)
    alpha_t = sigmoid(x_t W_1 W_2 + b)^(1/16), per key channel

Keys of half the width, no convolution, a norm of every head and a swish gate. Departs: the rank of
W_1 W_2 is `model.gate_rank` (published: 16).
"""

import math

from miras_jax.memory import DotProduct, GradientDescent, L2Decay, Memory, log_decay
from miras_jax.zoo.row import LayerOptions, Row, equations

# log sigmoid(x) / 16 = -softplus(-x) / 16, from x = 0.
DECAY = log_decay(per="key", initial=-math.log(2) / 16, high=1 / 16)

ROW = Row(
    name="gla",
    memory=Memory(
        bias=DotProduct(),
        retention=L2Decay(DECAY),
        algorithm=GradientDescent(step=None),
        chunk_size=16,
    ),
    layer=LayerOptions(key_expansion=0.5, convolution=False, normalize=False, scale_query=True),
    architecture="matrix",
    bias="dot product",
    retention="l2 decay per key channel",
    algorithm="gradient descent",
    source="arXiv 2312.06635, Eq. 3",
    recurrence=equations(__doc__),
)
