"""Gated DeltaNet. Yang et al., 2024 (arXiv 2412.06464, Eq. 10); Miras Table 1.

    S'  = exp(g_t) S_{t-1},  g_t = -A_h softplus(x_t w_h + b_h)
    S_t = S' + beta_t k_t^T (v_t - k_t S')          y_t = q_t S_t

The residual is measured against the decayed memory. The decay is Mamba-2's; q, k and v are
convolved with SiLU, q and k of unit norm; a norm of every head and a swish gate. Departs: K = V =
dim / heads (published: 0.75 and 1.5 of it); A and b start as in `mamba2`; q without the factor
K^-0.5, which the norm takes out.
"""

from miras_jax.memory import Gate, GradientDescent, L2Decay, Memory
from miras_jax.zoo.mamba2 import decay_streams, log_decay
from miras_jax.zoo.row import Facts, Inputs, LayerOptions, Row, Stream, equations

STEP = Gate(initial=0.5)


def prepare(inputs: Inputs, facts: Facts) -> Inputs:
    """Mamba-2's decay."""
    return {**inputs, "log_decay": log_decay(inputs, facts)}


ROW = Row(
    name="gated_deltanet",
    memory=Memory(retention=L2Decay(decay_first=True), algorithm=GradientDescent(step=STEP)),
    layer=LayerOptions(streams=(*decay_streams(), Stream("step", STEP)), prepare=prepare),
    architecture="matrix",
    bias="l2",
    retention="l2 decay (decay first)",
    algorithm="gradient descent",
    source="arXiv 2412.06464, Eq. 10",
    recurrence=equations(__doc__),
)
