"""The analytic FLOPs against the compiler's count, where the compiler can count, and against the
matrix products of the traced program, where it cannot."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import miras_jax as mj
from miras_jax.memory import flops
from miras_jax.nn import LanguageModel, ModelConfig


def is_program(x) -> bool:
    return hasattr(x, "eqns")


def products(jaxpr, iterations: int) -> float:
    """FLOPs of the matrix products of a program; a `while` runs that many times."""
    total = 0
    for equation in jaxpr.eqns:
        parameters, name = equation.params, equation.primitive.name
        if name == "dot_general":
            ((summed, _), _) = parameters["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in summed)
            total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        elif name == "custom_linear_solve":  # the others are for derivatives
            total += products(parameters["jaxprs"].solve.jaxpr, iterations)
        else:
            times = {"scan": parameters.get("length"), "while": iterations}.get(name, 1)
            inside = jax.tree.leaves(list(parameters.values()), is_leaf=is_program)
            inside = [getattr(x, "jaxpr", x) for x in inside if is_program(x)]
            total += times * sum(products(x, iterations) for x in inside)
    return total


@pytest.mark.parametrize(
    ("name", "writes"),
    [
        ("delta_product", True),
        ("rwkv7", True),
        ("mesanet", True),
        ("titans", True),
        ("ttt_mlp", True),
        ("memora", False),
        ("lact", False),
    ],
)
def test_flops_of_a_memory_are_its_matrix_products(name, writes):
    """One chunk, traced. The program also forms the masked half of causal products and inverts the
    diagonal blocks of the solve, and RWKV-7 sums its decays by channel in blocks: up to 0.13 of
    all, with chunks of 1/16 of the width. Memories that read the chunk's start have none of this.
    """
    width, chunk = 256, 16
    memory = dataclasses.replace(mj.zoo.get(name), chunk_size=chunk)

    def shape(*last):
        return jax.ShapeDtypeStruct((1, chunk, 1, *last), jnp.float32)

    params = jax.eval_shape(
        lambda key: memory.init(key, heads=1, key_dim=width, value_dim=width), jax.random.key(0)
    )
    gates = {n: shape(*gate.shape((), width, width)) for n, gate in memory.gates.items()}
    traced = jax.make_jaxpr(lambda *args: mj.memorize(memory, *args, form="chunked"))(
        params, *[shape(width)] * 3, gates
    )
    counted = products(traced.jaxpr, getattr(memory.architecture, "iterations", 1)) / chunk
    least = 0.85 if writes else 0.99
    assert least * counted <= flops.per_token(memory, width, width, chunk) <= counted


@pytest.mark.parametrize("name", ["linear_attention", "gated_deltanet", "yaad", "transformer"])
def test_flops_agree_with_the_compiler(name):
    """One block and one chunk, because the compiler counts the body of a loop once.

    It also counts what is elementwise, the masked half of causal products and the inverses in the
    triangular solve; at this width they are less than a quarter of the whole. The state is asked
    for as well, since the compiler leaves out a write that nothing reads.
    """
    window = 32
    chunk = {} if name == "transformer" else {"chunk_size": window}
    config = ModelConfig(memory=name, dim=128, depth=1, heads=2, remat=False, **chunk)
    shapes = jax.eval_shape(
        lambda key: LanguageModel(config, rngs=nnx.Rngs(key)), jax.random.key(0)
    )
    tokens = jax.ShapeDtypeStruct((1, window), jnp.int32)
    compiled = jax.jit(lambda model, tokens: model(tokens)).lower(shapes, tokens).compile()
    counted = compiled.cost_analysis()["flops"] / window
    assert 0.75 * counted <= config.flops_per_token(window) <= counted


def test_only_attention_pays_for_the_window():
    cost = lambda name, window: ModelConfig(memory=name).flops_per_token(window)  # noqa: E731
    assert cost("yaad", 64) == cost("yaad", 4096)
    assert cost("transformer", 4096) > 1.5 * cost("transformer", 64)
