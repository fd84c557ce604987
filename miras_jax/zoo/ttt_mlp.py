"""TTT-MLP. Sun et al., 2024 (arXiv 2407.04620, section 2.7); Miras Table 1.

    M(x) = x + LN(gelu(x W_1 + b_1) W_2 + b_2)          l(W; k, v) = |M(k) - v|^2 / 2
    W_t = W - u_i sum_{s <= t} eta_s grad l(W; k_s, v_s), over the chunk, whose start is W
    eta_s = sigmoid(x_s w_h + b_h) / (10 K),  u_i = max(1 / i + c_i, 0) at the chunk's i-th token
    y_t = M(W_t; q_t)

TTT-Linear with an inner MLP of four times the width and a tenth of its learning rate; the layer is
TTT-Linear's. Departs: as `ttt_linear`.
"""

from miras_jax.memory import MLP, Gate, GradientDescent, Memory
from miras_jax.zoo.row import Row, equations
from miras_jax.zoo.ttt_linear import layer

ROW = Row(
    name="ttt_mlp",
    memory=Memory(
        architecture=MLP(bias=True, scale="learned", eps=1e-6),
        algorithm=GradientDescent(step=Gate(), lift=Gate()),
        chunk_size=16,
    ),
    layer=layer(rate=0.1),
    architecture="MLP of 2 layers",
    bias="l2",
    retention="none",
    algorithm="gradient descent",
    source="arXiv 2407.04620, section 2.7",
    recurrence=equations(__doc__),
)
