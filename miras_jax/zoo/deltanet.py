"""DeltaNet. Schmidhuber's fast weights, as in Yang et al., 2024 (arXiv 2406.06484, sections
2.2 and 3.3); Miras Eq. 9 and Table 1.

    S_t = S_{t-1} + beta_t k_t^T (v_t - k_t S_{t-1})          y_t = q_t S_t

One gradient step of rate beta on |k S - v|^2 / 2, exact at every chunk size. q, k and v are
convolved with SiLU, q and k of unit norm; a norm of every head, no output gate. (Table 1 prints the
factor I - beta k k^T on the side where it does not recall v; this is the side where it does.)
Departs: q without the factor K^-0.5, which the norm takes out.
"""

from miras_jax.memory import Gate, GradientDescent, Memory
from miras_jax.zoo.row import LayerOptions, Row, equations

ROW = Row(
    name="deltanet",
    memory=Memory(algorithm=GradientDescent(step=Gate(initial=0.5))),
    layer=LayerOptions(output_gate=False),
    architecture="matrix",
    bias="l2",
    retention="none",
    algorithm="gradient descent",
    source="arXiv 2406.06484; Miras Eq. 9",
    recurrence=equations(__doc__),
)
