"""Memora. Behrouz et al., 2025 (arXiv 2504.13173, Eq. 27).

    A_t = A_0 + rho_t (A_{t-1} - A_0) - eta_t grad |M(W; k_t) - v_t|^2 / 2
    W_t = c softmax(A_t)                                 y_t = M(W; q_t)

M(x) = x + LN(W_2 gelu(W_1 x)). With logits as the state this is the printed
Softmax(alpha log W - eta grad) and needs no lag token; the softmax runs over the inputs of each
output. Reads take the weights of the chunk's start, because a softmax cannot be read between two
writes without forming it. Departs (the runs are in docs/decisions/deep-memory-defaults.md): decay
towards the learned start; steps divided by the squared norm of a layer's input; gates per head; no
rotary positions unless `model.rotary` says so (the paper has them on).
"""

from miras_jax.memory import KL, MLP, Gate, GradientDescent, Memory, log_decay
from miras_jax.zoo.row import Row, equations

ROW = Row(
    name="memora",
    memory=Memory(
        architecture=MLP(),
        retention=KL(decay=log_decay()),
        algorithm=GradientDescent(step=Gate(initial=0.1), normalized=True),
        chunk_size=16,
        read="chunk",
    ),
    architecture="MLP of 2 layers",
    bias="l2",
    retention="KL",
    algorithm="gradient descent",
    source="Miras Eq. 27",
    recurrence=equations(__doc__),
)
