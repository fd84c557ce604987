"""Yaad. Behrouz et al., 2025 (arXiv 2504.13173, Eqs. 16 and 26).

    r_t = M(W; k_t) - v_t
    g_t = grad of |r|^2 / 2 where |r_t| <= delta_t, else clipped to that norm
    W_t = W_0 + rho_t (W_{t-1} - W_0) - eta_t g_t        y_t = M(W_t; q_t)

M(x) = x + LN(W_2 gelu(W_1 x)), gradients at the chunk's start. Departs (the runs are in
docs/decisions/deep-memory-defaults.md): the continuous Huber gradient of Eq. 15 instead of the
printed switch of Eq. 16, which jumps by sqrt(V) at the threshold (`Huber(kind="switch")`); decay
towards the learned start; steps divided by the squared norm of a layer's input; values of unit
size and a threshold of their root mean square; gates per head; no rotary positions unless
`model.rotary` says so (the paper has them on).
"""

from miras_jax.memory import MLP, Gate, GradientDescent, Huber, L2Decay, Memory
from miras_jax.zoo.row import LayerOptions, Row, equations

ROW = Row(
    name="yaad",
    memory=Memory(
        architecture=MLP(),
        bias=Huber(relative=True),
        retention=L2Decay(),
        algorithm=GradientDescent(step=Gate(initial=0.5), normalized=True),
        chunk_size=16,
    ),
    layer=LayerOptions(normalize_values=True),
    architecture="MLP of 2 layers",
    bias="Huber",
    retention="l2 decay",
    algorithm="gradient descent",
    source="Miras Eqs. 16, 26",
    recurrence=equations(__doc__),
)
