"""Gated DeltaNet. Yang et al., 2024 (arXiv 2412.06464, Eq. 10); Miras Table 1.

    S'  = exp(g_t) S_{t-1}
    S_t = S' + beta_t k_t^T (v_t - k_t S')          y_t = q_t S_t

The residual is measured against the decayed memory. Departs: the log decay g = -softplus(x w + b)
starts at time scales of 10 to 1,000 tokens spread over the heads, in place of Mamba-2's
parametrisation -exp(A) softplus(x w + dt).
"""

from miras_jax.memory import Gate, GradientDescent, L2Decay, Memory
from miras_jax.zoo.row import Row

ROW = Row(
    name="gated_deltanet",
    memory=Memory(
        retention=L2Decay(decay_first=True), algorithm=GradientDescent(step=Gate(initial=0.5))
    ),
    architecture="matrix",
    bias="l2",
    retention="l2 decay (decay first)",
    algorithm="gradient descent",
    source="arXiv 2412.06464, Eq. 10",
)
