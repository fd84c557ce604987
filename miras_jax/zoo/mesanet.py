"""MesaNet. von Oswald et al., 2025 (arXiv 2506.05233, Eqs. 6-8).

    H_t = rho_t H_{t-1} + beta_t k_t^T k_t,  G_t = rho_t G_{t-1} + beta_t k_t^T v_t
    y_t = x G_t  where  x (H_t + diag(lambda)) = q_t, by conjugate gradients

Every read solves the ridge regression of all that was written. q and k are convolved with SiLU, v
is not; q and k of unit norm; a norm of every head, no gate; lambda, at least 1/4, is learned and
starts at 1. Departs: the decay starts at time scales of 10 to 1,000 tokens over the heads instead
of at 2.
"""

from miras_jax.memory import (
    DotProduct,
    Gate,
    GradientDescent,
    L2Decay,
    Memory,
    NormalEquations,
    log_decay,
)
from miras_jax.zoo.row import Facts, Inputs, LayerOptions, Row, Stream, equations

LEAST_RIDGE = 0.25
STEP = Gate(initial=0.5)


def prepare(inputs: Inputs, facts: Facts) -> Inputs:
    """The ridge over its lower bound."""
    return {**inputs, "ridge": inputs["ridge"] + LEAST_RIDGE}


ROW = Row(
    name="mesanet",
    memory=Memory(
        architecture=NormalEquations(),
        bias=DotProduct(),
        retention=L2Decay(),
        algorithm=GradientDescent(step=STEP),
        chunk_size=16,
    ),
    layer=LayerOptions(
        not_convolved=("value",),
        streams=(
            Stream("log_decay", log_decay()),
            Stream("step", STEP),
            Stream(
                "ridge",
                Gate(per="key", activation="softplus", initial=1 - LEAST_RIDGE, source="learned"),
            ),
        ),
        prepare=prepare,
        output_gate=False,
    ),
    architecture="matrix and normal matrix",
    bias="l2 of all pairs",
    retention="l2 decay",
    algorithm="conjugate gradients",
    source="arXiv 2506.05233, Eqs. 6-8",
    recurrence=equations(__doc__),
)
