"""Tokens that read the start of their chunk while every write is as it would be without that."""

import jax.numpy as jnp
import pytest

from miras_jax.memory import recall
from tests import laws
from tests.cases import CHUNK, apply, case, close, memory_of, read

pytestmark = pytest.mark.usefixtures("x64")
ROWS = ["deltanet", "gated_deltanet", "rwkv7", "gated_delta_product", "mesanet", "longhorn"]


def chunk_reads(name: str):
    return memory_of(name, read="chunk", gradient="exact")


@pytest.mark.parametrize("name", ROWS)
def test_keeps_the_laws(name):
    c = case(chunk_reads(name))
    laws.packed_equals_apart(c)
    laws.state_has_constant_size(c)
    if "chunked" in c.memory.forms:
        laws.whole_row_equals_its_tokens(c, "chunked")
        laws.splits_anywhere(c)
        laws.packed_row_splits_anywhere(c)


@pytest.mark.parametrize("name", [name for name in ROWS if name != "mesanet"])
def test_writes_as_before_and_reads_the_start(name):
    c, plain = case(chunk_reads(name)), memory_of(name)
    for begin in range(0, c.tokens, CHUNK):
        chunk = c.slice(begin, min(begin + CHUNK, c.tokens))
        before = read(plain, c.params, c.slice(0, begin))[1] if begin else c.state()
        y = read(c.memory, c.params, c.slice(0, begin + chunk["q"].shape[1]))[0][:, begin:]
        # Rounding of float64.
        close(y, recall(plain, c.params, before, chunk["q"]), rtol=1e-11)
    weights = [read(m, c.params, c.inputs)[1].weights for m in (c.memory, plain)]
    for key, x in weights[0].items():
        close(x, weights[1][key], rtol=1e-11)


def test_is_not_exact_and_has_no_kernel_of_the_delta_rule():
    memory = chunk_reads("gated_deltanet")
    assert memory.exact_gradients
    assert not memory.exact
    c = case(memory, dtype=jnp.float32)
    with pytest.raises(NotImplementedError, match="reads its chunk's start"):
        apply(memory, c.params, c.inputs, form="pallas_tpu")
