"""DeltaProduct. Siems et al., 2025 (arXiv 2502.10297, section 3); Miras Table 1.

    S <- S + beta_{t,j} k_{t,j}^T (v_{t,j} - k_{t,j} S),  j = 1, 2          y_t = q_t S

Two delta steps for every token, each with a key, a value and a step in (0, 2) of its own: beyond 1
the transition has negative eigenvalues. All are convolved with SiLU, q and keys of unit norm; a
norm of every head and a swish gate. (The product that Table 1 prints is a misprint.) Departs: q
without the factor K^-0.5, which the norm takes out.
"""

from miras_jax.memory import Gate, Memory, SeveralSteps
from miras_jax.zoo.row import Row, equations

STEP = Gate(initial=1.0, high=2.0)

ROW = Row(
    name="delta_product",
    memory=Memory(algorithm=SeveralSteps(step=STEP), chunk_size=16),
    architecture="matrix",
    bias="l2",
    retention="none",
    algorithm="gradient descent, 2 steps a token",
    source="arXiv 2502.10297, section 3",
    recurrence=equations(__doc__),
)
