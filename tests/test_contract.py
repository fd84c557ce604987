"""The contract that every model of the zoo keeps, whatever its four choices: the laws of
`tests/laws.py`.

One model after the other, so that its laws find what they share compiled.
"""

import functools

import pytest

from tests import laws
from tests.cases import NAMES, Case, case, memory_of

pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.parametrize("name", NAMES, scope="module"),
]
FORMS = pytest.mark.parametrize("form", ["recurrent", "chunked"])


@functools.lru_cache(maxsize=2)
def case_of(name: str, form: str | None = None) -> Case:
    return case(memory_of(name))


def having(name: str, form: str) -> Case:
    """The model's case; skips if it does not run in this form."""
    c = case_of(name)
    if form not in c.memory.forms:
        pytest.skip(f"{name} runs in {' and '.join(c.memory.forms)} form")
    return c


@FORMS
def test_whole_row_equals_its_tokens(name, form):
    laws.whole_row_equals_its_tokens(having(name, form), form)


@FORMS
def test_causality(name, form):
    laws.causality(having(name, form), form)


@FORMS
def test_rows_are_independent(name, form):
    laws.rows_are_independent(having(name, form), form)


def test_splits_anywhere(name):
    laws.splits_anywhere(having(name, "chunked"))


def test_packed_equals_apart(name):
    laws.packed_equals_apart(case_of(name))


def test_packed_row_splits_anywhere(name):
    laws.packed_row_splits_anywhere(having(name, "chunked"))


def test_chunk_size_changes_nothing_where_the_memory_is_exact(name):
    c = having(name, "chunked")
    if not (c.memory.exact and hasattr(c.memory, "chunk_size")):
        pytest.skip("gradients at the chunk's start make the chunk size part of the model")
    laws.chunk_size_changes_nothing(c)


def test_state_has_constant_size(name):
    laws.state_has_constant_size(case_of(name))


@FORMS
def test_finite_differences(name, form):
    laws.finite_differences(having(name, form), form)


@FORMS
def test_finite_at_extremes(name, form):
    laws.finite_at_extremes(having(name, form), form)


def test_state_can_be_donated_and_is_cast_to_the_inputs(name):
    laws.state_can_be_donated_and_is_cast(case_of(name))


def test_products_keep_their_precision_under_transformations(name):
    laws.products_keep_their_precision(case_of(name))


def test_bfloat16_inputs_keep_a_float32_state(name):
    laws.bfloat16_inputs_keep_a_float32_state(case_of(name))


def test_refusals(name):
    laws.refusals(case_of(name))
