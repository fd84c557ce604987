"""Titans, the neural long-term memory alone (LMM). Behrouz et al., 2025 (arXiv 2501.00663,
Eqs. 11-14); Miras Table 1.

    S_t = mu_t S_{t-1} - eta_t grad |M(W; k_t) - v_t|^2 / 2
    W_t = W_0 + rho_t (W_{t-1} - W_0) + S_t              y_t = M(W_t; q_t)

M is an MLP of two layers with residual and LayerNorm. Departs: decays towards the learned start
instead of zero; each layer's step divided by the squared norm of its input; values of unit size
(docs/decisions/deep-memory-defaults.md has runs of its three neighbours with the same defaults).
"""

from miras_jax.memory import MLP, Gate, L2Decay, Memory, Momentum
from miras_jax.zoo.row import LayerOptions, Row, equations

ROW = Row(
    name="titans",
    memory=Memory(
        architecture=MLP(),
        retention=L2Decay(),
        algorithm=Momentum(step=Gate(initial=0.1), momentum=Gate(initial=0.5), normalized=True),
        chunk_size=16,
    ),
    layer=LayerOptions(normalize_values=True),
    architecture="MLP of 2 layers",
    bias="l2",
    retention="l2 decay",
    algorithm="momentum",
    source="arXiv 2501.00663, Eqs. 11-14",
    recurrence=equations(__doc__),
)
