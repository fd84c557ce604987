"""Memories of any four choices: each is refused in words, or keeps the laws of `tests/laws.py`.

Hypothesis draws the choices, always the same ones; with MIRAS_EXAMPLES=200 it draws that many that
pass, some two seconds each.
"""

import os

import jax.numpy as jnp
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miras_jax.memory import (
    KL,
    L2,
    MLP,
    Bregman,
    ChiSquared,
    ChunkDescent,
    Decoupled,
    DotProduct,
    ElasticNet,
    Entries,
    Gate,
    GradientDescent,
    Huber,
    Implicit,
    KLDivergence,
    Logit,
    Lp,
    Lq,
    Matrix,
    Memory,
    Momentum,
    Muon,
    NormalEquations,
    Optax,
    Removal,
    Retention,
    Robust,
    SeveralSteps,
    Sphere,
    SwiGLU,
    Vector,
    log_decay,
)
from tests import laws
from tests.cases import case

EXAMPLES = int(os.environ.get("MIRAS_EXAMPLES", "12"))
SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

pytestmark = pytest.mark.usefixtures("x64")


def a(kind, /, **fields):
    """A choice as a pair of its class and the values of its fields, not yet made: it may refuse."""
    return st.tuples(
        st.just(kind),
        st.fixed_dictionaries({name: st.sampled_from(values) for name, values in fields.items()}),
    )


def cubic(x):
    return x**3 + x


def cubic_root(y):
    """The real x with x^3 + x = y."""
    return 2 / 3**0.5 * jnp.sinh(jnp.arcsinh(1.5 * 3**0.5 * y) / 3)


# Steps are small where nothing divides them by the input's norm: a deep memory that explodes shows
# nothing.
HEAD, KEY, VALUE = (Gate(per, initial=0.1, high=0.3) for per in ("head", "key", "value"))
DECAYS = [None, log_decay(), log_decay("key"), log_decay("value")]
ANCHORS = ["initial", "zero"]
RATE = {"step": [HEAD, None, KEY, VALUE], "normalized": [False, True]}
# At gradients of zero the derivative of Adam's root is infinite, if nothing is added under it.
ADAM = optax.adam(1e-1, b2=0.9, eps_root=0.1)
SGD = optax.sgd(0.5, momentum=0.9)

LINEAR_ARCHITECTURE = st.one_of(
    a(Matrix),
    a(Vector),
    a(Entries),
    a(NormalEquations, iterations=[6]),
    a(MLP, depth=[1], norm=[False], residual=[False]),
)
ARCHITECTURE = st.one_of(
    LINEAR_ARCHITECTURE,
    a(
        MLP,
        depth=[2, 1, 3],
        expansion=[2],
        bias=[False, True],
        scale=["none", "learned", "memory"],
        gelu=["tanh", "erf"],
        residual=[True, False],
    ),
    a(SwiGLU, norm=[False, True], residual=[False, True]),
)
BIAS = st.one_of(
    a(L2),
    a(DotProduct),
    a(Lp, p=[3.0, 1.5]),
    a(Huber, kind=["norm", "coordinate", "switch"], relative=[False, True]),
    a(Robust, radius=[Gate(activation="softplus"), 0.3]),
)
DECAY = a(
    Retention,
    decay=DECAYS,
    value_decay=[None, log_decay("value")],
    anchor=ANCHORS,
    decay_first=[False, True],
)
RETENTION = st.one_of(
    DECAY,
    a(Lq, q=[4.0, 1.5], form=["norm", "dual"], decay=DECAYS, anchor=ANCHORS),
    a(KL, signed=[False, True], decay=DECAYS, anchor=ANCHORS),
    a(
        ElasticNet,
        threshold=[0.05],
        form=["link", "proximal"],
        kind=["soft", "hard", "smooth"],
        decay=DECAYS,
    ),
    a(Bregman, mirror=[cubic], inverse=[cubic_root], decay=DECAYS),
    a(Logit, decay=DECAYS),
    a(ChiSquared),
    a(KLDivergence),
    a(Sphere, form=["project", "link"], decay=DECAYS),
)
TOKEN_ALGORITHM = st.one_of(
    a(GradientDescent, lift=[None, None, Gate()], **RATE),
    a(Momentum, nesterov=[False, True], **RATE),
    a(SeveralSteps, count=[2, 3], **RATE),
    a(Implicit, step=[HEAD, VALUE]),
    a(
        Decoupled,
        erase=[None, Gate("key")],
        write=[None, Gate("value")],
        address=[None, Gate("key", "identity")],
        step=[None, HEAD],
    ),
    a(Removal),
)
ALGORITHM = st.one_of(
    TOKEN_ALGORITHM,
    a(ChunkDescent, momentum=[None, Gate()], **RATE),
    a(Muon, momentum=[None, Gate()], **RATE),
    a(Optax, transformation=[ADAM, SGD], **RATE),
)
CHUNK_SIZES = st.sampled_from([4, 3, 1, 2, 5])
ANY = st.fixed_dictionaries(
    {
        "architecture": ARCHITECTURE,
        "bias": BIAS,
        "retention": RETENTION,
        "algorithm": ALGORITHM,
        "chunk_size": CHUNK_SIZES,
        "read": st.sampled_from(["token", "chunk", "commit"]),
        "gradient": st.sampled_from(["auto", "chunk"]),
    }
)
LINEAR = st.fixed_dictionaries(
    {
        "architecture": LINEAR_ARCHITECTURE,
        "bias": st.one_of(a(L2), a(DotProduct)),
        "retention": DECAY,
        "algorithm": TOKEN_ALGORITHM,
        "chunk_size": CHUNK_SIZES,
        "read": st.sampled_from(["token", "chunk"]),
        "gradient": st.sampled_from(["auto", "exact"]),
    }
)
# Few of any choices make an exact memory, so that these are drawn by themselves too.
MEMORY = st.one_of(ANY, LINEAR)


def make(choices: dict) -> Memory:
    """The memory of a draw.

    Raises:
      ValueError: the choices do not go together.
    """
    made = {n: x[0](**x[1]) if isinstance(x, tuple) else x for n, x in choices.items()}
    return Memory(**made)


def goes_together(choices: dict) -> bool:
    try:
        make(choices)
    except ValueError:
        return False
    return True


@settings(SETTINGS, max_examples=200)
@given(choices=MEMORY)
def test_refusals_are_sentences(choices):
    """What is refused says what is wrong and, after a colon or a comma, what to do."""
    try:
        make(choices)
    except ValueError as refusal:
        sentence = str(refusal)
        assert sentence.endswith(".")
        assert len(sentence.split()) >= 6
        assert not any(junk in sentence for junk in ("\n", "Traceback", " at 0x"))


@settings(SETTINGS, max_examples=EXAMPLES)
@given(choices=MEMORY.filter(goes_together))
def test_what_is_not_refused_keeps_the_laws(choices):
    c = case(make(choices))
    laws.finite_differences(c, "recurrent", together=True)
    laws.packed_equals_apart(c)
    laws.state_has_constant_size(c)
    if "chunked" in c.memory.forms:
        laws.whole_row_equals_its_tokens(c, "chunked")
        laws.causality(c, "chunked")
        laws.splits_anywhere(c)
        laws.packed_row_splits_anywhere(c)
        laws.finite_differences(c, "chunked", together=True)
