"""The GPU driver against `scan_reference`: by interpreter, and down to Triton's own language."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import miras_jax as mj
from kernels_pallas import gpu
from kernels_pallas.deep import DeepStep
from kernels_pallas.linear import linear_step, linear_tokens
from kernels_pallas.step import scan_reference
from tests.nights import nightly_but

B, H, T, C = 2, 2, 64, 16
FLOAT32 = 3e-6
"""Of the largest entry: the order of float32 sums is all that may differ."""
BFLOAT16 = 2.0**-7
"""A last place of a bfloat16 result, which a float32 rounding may tip over."""
HIGHEST = jax.lax.Precision.HIGHEST


def dot(a, b, precision):
    if precision == "bfloat16":
        low = (x.astype(jnp.bfloat16) for x in (a, b))
        return jnp.dot(*low, preferred_element_type=jnp.float32)
    return jnp.dot(a, b, precision=HIGHEST)


@dataclasses.dataclass(frozen=True)
class Gated:
    """A matrix with a decay that learns the residual at the chunk's start."""

    precision: str = "highest"
    zero_padding: bool = True
    name = "gated"

    def __call__(self, carry, consts, tokens, marks):
        memory, q, k = carry["memory"], tokens["q"], tokens["k"]
        size = q.shape[0]
        t, i = (jax.lax.broadcasted_iota(jnp.int32, (size, size), n) for n in (0, 1))
        keep = t >= i
        log_decay = tokens["log_decay"]
        if "reset" in marks:
            log_decay = jnp.where(marks["reset"] > 0, -1e4, log_decay)
        upto = jnp.sum(jnp.where(keep, log_decay.T, 0.0), axis=1, keepdims=True)
        total = jnp.sum(log_decay, axis=0, keepdims=True)
        decays = jnp.where(keep, jnp.exp(jnp.where(keep, upto - upto.T, 0.0)), 0.0)
        residual = tokens["step"] * (tokens["v"] - dot(k, memory, self.precision))
        y = jnp.exp(upto) * dot(q, memory, self.precision)
        y += dot(dot(q, k.T, self.precision) * decays, residual, self.precision)
        writes = dot((k * jnp.exp(total - upto)).T, residual, self.precision)
        return {"memory": jnp.exp(total) * memory + writes}, y


@dataclasses.dataclass(frozen=True)
class TwoLayers:
    """An MLP that takes a gradient step a chunk and decays towards its start."""

    precision: str = "highest"

    def __call__(self, carry, consts, tokens, marks):
        def read(weights, x):
            return dot(
                jax.nn.gelu(dot(x, weights["up"], self.precision)),
                weights["down"],
                self.precision,
            )

        def loss(weights):
            error = read(weights, tokens["k"]) - tokens["v"]
            return 0.5 * jnp.sum(tokens["step"] * error * error)

        keep = jnp.exp(jnp.sum(tokens["log_decay"], axis=0, keepdims=True))
        slopes = jax.grad(loss)(carry)
        after = jax.tree.map(lambda a0, a, g: a0 + keep * (a - a0) - g, consts, carry, slopes)
        return after, read(after, tokens["q"])


@dataclasses.dataclass(frozen=True)
class OwnBackward(Gated):
    """A step with a derivative by hand, told by its factor."""

    def backward(self, carry, consts, tokens, marks, d_carry, d_y):
        def call(*args):
            return Gated.__call__(self, *args, marks)

        d_carry, d_consts, d_tokens = jax.vjp(call, carry, consts, tokens)[1]((d_carry, d_y))
        return d_carry, d_consts, d_tokens | {"q": 2 * d_tokens["q"]}


def arguments(carry, consts, widths, dtype=jnp.float32, packed=False, seed=0):
    """Random arguments of a driver; `carry`, `consts` and `widths` give sizes per head."""
    rng = np.random.default_rng(seed)

    def leaf(shape, lead):
        return jnp.asarray(rng.normal(size=(*lead, *shape)) / shape[0] ** 0.5, jnp.float32)

    def tree(sizes, lead):
        return {name: leaf(shape, lead) for name, shape in sizes.items()}

    tokens = {
        n: jnp.asarray(rng.normal(size=(B, H, T, w)) / w**0.5, dtype) for n, w in widths.items()
    }
    tokens["log_decay"] = jnp.asarray(-rng.uniform(0, 0.1, (B, H, T, 1)), jnp.float32)
    tokens["step"] = jnp.asarray(rng.uniform(0, 0.1, (B, H, T, 1)), jnp.float32)
    marks = {"reset": jnp.asarray(rng.uniform(size=(B, T)) < 0.1, jnp.int32)} if packed else {}
    return tree(carry, (B, H)), tree(consts, (H,)), tokens, marks


def matrix(keys, values, **options):
    return arguments({"memory": (keys, values)}, {}, {"q": keys, "k": keys, "v": values}, **options)


def layers(**options):
    sizes = {"up": (16, 64), "down": (64, 16)}
    return arguments(sizes, sizes, {"q": 16, "k": 16, "v": 16}, **options)


def compared(step, given, value_dim, dtype, chunk_size=C, **options):
    """The largest error of each result and gradient, relative to its largest entry."""
    *differentiable, marks = given
    common = {"chunk_size": chunk_size, "value_dim": value_dim, "dtype": dtype}

    def pulled(run):
        def call(*args):
            return run(step, *args, marks, **common)

        @jax.jit
        def both(*args):
            out, pull = jax.vjp(call, *args)
            return out, pull(jax.tree.map(jnp.cos, out))

        return jax.tree.map(lambda x: np.asarray(x, np.float64), both(*differentiable))

    got = pulled(functools.partial(gpu.scan, interpret=True, **options))
    wanted = pulled(scan_reference)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    errors = jax.tree.map(
        lambda a, b: np.abs(a - b).max() / max(np.abs(b).max(), 1e-30), got, wanted
    )
    return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(errors)}


IN_MEMORY = gpu.Tuning(register_carry=0)


@pytest.mark.parametrize("tuning", [None, IN_MEMORY], ids=["registers", "memory"])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_matrix_equals_scan(group, tuning):
    errors = compared(
        Gated(), matrix(32, 16, packed=True), 16, jnp.float32, group=group, tuning=tuning
    )
    assert max(errors.values()) < FLOAT32, errors


@pytest.mark.parametrize("tuning", [None, IN_MEMORY], ids=["registers", "memory"])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_layers_equal_scan(group, tuning):
    errors = compared(TwoLayers(), layers(), 16, jnp.float32, group=group, tuning=tuning)
    assert max(errors.values()) < FLOAT32, errors


@pytest.mark.parametrize("step", [Gated, TwoLayers])
def test_bfloat16_equals_scan(step):
    options = {"dtype": jnp.bfloat16}
    given = matrix(16, 16, **options) if step is Gated else layers(**options)
    errors = compared(step("bfloat16"), given, 16, jnp.bfloat16, group=2)
    assert max(errors.values()) < BFLOAT16, errors


@pytest.mark.parametrize(("keys", "values"), [(24, 16), (5, 48)])
def test_sizes_that_are_no_powers_of_two_are_padded(keys, values):
    errors = compared(Gated(), matrix(keys, values, packed=True), values, jnp.float32)
    assert max(errors.values()) < FLOAT32, errors


def test_own_backward_is_used():
    given = matrix(16, 16)
    wanted = compared(Gated(), given, 16, jnp.float32)
    doubled = compared(OwnBackward(), given, 16, jnp.float32)
    assert doubled.pop("[1][2]['q']") == pytest.approx(1, abs=1e-5)
    wanted.pop("[1][2]['q']")
    assert doubled == wanted


@pytest.mark.parametrize(
    ("step", "keys", "options", "error", "says"),
    [
        (Gated(zero_padding=False), 24, {}, NotImplementedError, "24.*does not allow padding"),
        (Gated(), 16, {"chunk_size": 24}, NotImplementedError, "chunk_size"),
        (Gated(), 16, {"group": 3}, ValueError, "3 chunks of 16"),
    ],
)
def test_refusals_say_why(step, keys, options, error, says):
    sizes = {"chunk_size": C, "value_dim": 16, "dtype": jnp.float32, **options}
    with pytest.raises(error, match=says):
        gpu.scan(step, *matrix(keys, 16), interpret=True, **sizes)


@pytest.mark.parametrize(("keys", "values"), [(16, 16), (5, 12)])
def test_decode_is_a_chunk_of_one_token(keys, values):
    carry, consts, tokens, marks = matrix(keys, values, packed=True)
    tokens, marks = (
        {n: x[..., :1, :] for n, x in tokens.items()},
        {"reset": marks["reset"][:, :1]},
    )
    options = {"value_dim": values, "dtype": jnp.float32}
    wanted = scan_reference(Gated(), carry, consts, tokens, marks, chunk_size=1, **options)
    got = gpu.decode(Gated(), carry, consts, tokens, marks, interpret=True, **options)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=FLOAT32, atol=FLOAT32)


# The steps of the library.

LINEAR = "linear_attention gla gated_deltanet kda rwkv7".split()
DEEP = "ttt_linear titans moneta yaad memora".split()


def zoo_case(row, width=16, dtype=jnp.float32, packed=True):
    """A step of the zoo with its arguments."""
    memory = mj.zoo.get(row)
    precision = "bfloat16" if dtype == jnp.bfloat16 else "highest"
    rng = np.random.default_rng(1)

    def unit(*shape):
        x = rng.normal(size=shape)
        return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), dtype)

    q, k, v = (unit(B, H, T, width) for _ in range(3))
    gates = {}
    for name, gate in memory.gates.items():
        shape = gate.shape((B, H, T), width, width)
        raw = jnp.asarray(rng.normal(size=shape), jnp.float32)
        gates[name] = unit(*shape) if gate.is_input else gate.activate(raw)
    marks = {"reset": jnp.asarray(rng.uniform(size=(B, T)) < 0.1, jnp.int32)} if packed else {}
    if memory.exact:
        start = jnp.asarray(rng.normal(size=(B, H, width, width)), jnp.float32)
        tokens = linear_tokens(memory, q, k, v, gates)
        return linear_step(memory, precision, "gpu"), ({"memory": start}, {}, tokens, marks)
    memory = dataclasses.replace(memory, chunk_size=C)
    params = memory.init(jax.random.key(0), heads=H, key_dim=width, value_dim=width)
    state = memory.init_state(params, batch=B)
    carry = {"weights": state.weights}
    if state.momentum:
        carry["momentum"] = state.momentum
    tokens = {"q": q, "k": k, "v": v} | {n: x[..., None] for n, x in gates.items()}
    return DeepStep(memory, precision), (carry, dict(memory.initial(params)), tokens, marks)


@pytest.mark.slow
@pytest.mark.parametrize("row", nightly_but(LINEAR + DEEP, ["gla", "gated_deltanet", "yaad"]))
def test_zoo_equals_scan(row):
    step, given = zoo_case(row)
    errors = compared(step, given, 16, jnp.float32, group=2)
    # Gradients of deep memories sum terms a hundred times their size (LayerNorm of small numbers).
    assert max(errors.values()) < (20 if row in DEEP else 3) * FLOAT32, errors


@pytest.mark.parametrize("row", ["gla", "gated_deltanet"])
def test_heads_of_any_width(row):
    step, given = zoo_case(row, width=12)
    errors = compared(step, given, 12, jnp.float32)
    assert max(errors.values()) < 3 * FLOAT32, errors


def lowered(function, *shapes):
    """The program in Triton's language, for an H200 that is not there."""
    fields = {"device_kind": "NVIDIA H200", "num_cores": 132}
    try:
        device = jax.sharding.AbstractDevice(**fields, platform="gpu")
    except TypeError:  # before jax 0.11
        device = jax.sharding.AbstractDevice(**fields)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("row", LINEAR + DEEP)
def test_zoo_lowers_for_cuda(row):
    dtype = jnp.bfloat16
    step, given = zoo_case(row, width=64, dtype=dtype)
    *differentiable, marks = given

    def loss(*args):
        after, y = gpu.scan(step, *args, marks, chunk_size=C, value_dim=64, dtype=dtype, group=2)
        return sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves((after, y)))

    text = lowered(jax.grad(loss, (0, 1, 2)), *differentiable)
    # The backward pass of a state too large for registers, of two layers, is no kernel.
    large = row in DEEP and row != "ttt_linear"
    assert text.count("__gpu$xla.gpu.triton") == (1 if large else 2)
