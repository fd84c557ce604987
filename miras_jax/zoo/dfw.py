"""Decaying fast weights (DFW). Mao, 2022 (arXiv 2210.04243); Miras Table 1.

    S_t = (f_t^T z_t) * S_{t-1} + k_t^T v_t          y_t = q_t S_t
    f_t, z_t = sigmoid(x_t W_f), sigmoid(x_t W_z), per key and per value channel

An element decays with the product of its row's and its column's gate. No feature map, no
convolution, no gate. Departs: the paper divides by nothing, here the output norm of every head
keeps what has summed up at unit size; the gates go through a low rank and start at time scales of
10 to 1,000 tokens.
"""

from miras_jax.memory import DotProduct, GradientDescent, Memory, Retention, log_decay
from miras_jax.zoo.row import LayerOptions, Row, equations

ROW = Row(
    name="dfw",
    memory=Memory(
        bias=DotProduct(),
        retention=Retention(decay=log_decay(per="key"), value_decay=log_decay(per="value")),
        algorithm=GradientDescent(step=None),
        chunk_size=16,
    ),
    layer=LayerOptions(convolution=False, normalize=False, output_gate=False),
    architecture="matrix",
    bias="dot product",
    retention="l2 decay per key and value channel",
    algorithm="gradient descent",
    source="arXiv 2210.04243; Miras Table 1",
    recurrence=equations(__doc__),
)
