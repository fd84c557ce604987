"""Moneta. Behrouz et al., 2025 (arXiv 2504.13173, Eqs. 24-25), with (p, q) = (3, 4).

    A_t = A_0 + rho_t (A_{t-1} - A_0) - eta_t grad |M(W; k_t) - v_t|_p^p / p
    W_t = A_t (|A_0|_q / |A_t|_q)^(q - 2)                y_t = M(W_t; q_t)

M(x) = x + LN(W_2 gelu(W_1 x)); the link is renewed at the chunk's end (section 5.4). Departs (the
runs are in docs/decisions/deep-memory-defaults.md): the printed link A / |A|_q^(q-2) is normalised
by the start's norm; decay towards the learned start; steps divided by the squared norm of a layer's
input; values of unit size; gates per head; no rotary positions unless `model.rotary` says so (the
paper has them on).
"""

from miras_jax.memory import MLP, Gate, GradientDescent, Lp, Lq, Memory, log_decay
from miras_jax.zoo.row import LayerOptions, Row, equations

ROW = Row(
    name="moneta",
    memory=Memory(
        architecture=MLP(),
        bias=Lp(p=3.0),
        retention=Lq(q=4.0, decay=log_decay()),
        algorithm=GradientDescent(step=Gate(initial=0.1), normalized=True),
        chunk_size=16,
    ),
    layer=LayerOptions(normalize_values=True),
    architecture="MLP of 2 layers",
    bias="lp, p = 3",
    retention="lq, q = 4",
    algorithm="gradient descent",
    source="Miras Eqs. 24-25",
    recurrence=equations(__doc__),
)
