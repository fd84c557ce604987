"""Memora. Behrouz et al., 2025 (arXiv 2504.13173, Eq. 27).

    A_t = A_0 + rho_t (A_{t-1} - A_0) - eta_t grad |M(W; k_t) - v_t|^2 / 2
    W_t = c sinh(A_t) / sum cosh(A_t)                    y_t = M(W_t; q_t)

M(x) = x + LN(W_2 gelu(W_1 x)). With logits as the state the printed Softmax(alpha log W - eta grad)
is c softmax(A) and needs no lag token; sums run over the inputs of each output. Inside a chunk W is
linear in A, as in section 5.4: W_t = W_s + c / n (A_t - A_s) for n inputs, A_s the chunk's start.
Departs (the runs are in docs/decisions/deep-memory-defaults.md): weights of both signs instead of
the printed positive ones, which hold far fewer pairs (`KL()` has them); decay towards the
learned start; steps divided by the squared norm of a layer's input; values of unit size; gates per
head; no rotary positions unless `model.rotary` says so (the paper has them on).
"""

from miras_jax.memory import KL, MLP, Gate, GradientDescent, Memory, log_decay
from miras_jax.zoo.row import LayerOptions, Row, equations

ROW = Row(
    name="memora",
    memory=Memory(
        architecture=MLP(),
        retention=KL(signed=True, decay=log_decay()),
        algorithm=GradientDescent(step=Gate(initial=0.3), normalized=True),
        chunk_size=16,
    ),
    layer=LayerOptions(normalize_values=True),
    architecture="MLP of 2 layers",
    bias="l2",
    retention="KL, signed",
    algorithm="gradient descent",
    source="Miras Eq. 27",
    recurrence=equations(__doc__),
)
