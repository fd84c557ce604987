"""The GPU driver: a step looped over the chunks of a row by Pallas-Triton.

One program per row and head; the chunks run in a loop inside. A carry that fits in registers is the
loop's carry. A larger one (a deep memory) lies in the block of its own output, which the L2 cache
holds, and is read and written once a chunk. The backward kernel runs the chunks in reverse,
computes the states inside a group again from the saved one, and differentiates the step inside the
kernel; `kernels_pallas.rewrite` puts the step into operations that Triton has. The backward pass of
a large carry asks for more shared memory than there is, so it is pure JAX, from the saved states.

This is the only module that knows Triton: jax deprecates this back end since 0.11, and
docs/decisions/gpu-back-end.md says why it is used all the same.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from kernels_pallas import driver
from kernels_pallas.rewrite import PLAIN, SMALLEST, How, rewritten
from kernels_pallas.step import Step, Tree, backward, differentiable, pull_reference


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How a kernel is laid on a multiprocessor.

    Attributes:
      forward_warps, backward_warps: groups of 32 threads a program; None takes 4 for a carry of up
        to 64 x 64, else 8. More warps spill less a thread and more in all.
      stages: of the loads' pipeline.
      register_carry: the most float32 entries of a carry that is kept in registers.
      algorithm: of float32 products at Precision.HIGHEST.
    """

    forward_warps: int | None = None
    backward_warps: int | None = None
    stages: int = 1
    register_carry: int = 128 * 128
    algorithm: Any = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3

    def warps(self, entries: int, reverse: bool) -> int:
        """Warps of a kernel whose carry has so many entries."""
        given = self.backward_warps if reverse else self.forward_warps
        return given or (8 if entries > 64 * 64 else 4)


class Options(NamedTuple):
    """What a kernel is compiled for, beside its step and shapes; as in `scan`."""

    chunk_size: int
    value_dim: int
    dtype: Any
    group: int
    interpret: bool
    tuning: Tuning


def scan(
    step: Step,
    carry: Tree,
    consts: Tree,
    tokens: Mapping[str, jax.Array],
    marks: Mapping[str, jax.Array],
    *,
    chunk_size: int,
    value_dim: int,
    dtype: jnp.dtype,
    group: int = 1,
    interpret: Any = False,
    tuning: Tuning | None = None,
) -> tuple[Tree, jax.Array]:
    """What `scan_reference` computes, differentiable in carry, consts and tokens.

    Args:
      step, carry, consts, tokens, marks, chunk_size, value_dim, dtype: as in `scan_reference`.
        A step whose `zero_padding` is true gives the same with columns of zeros added to its
        arrays; its sizes may be any, others are powers of two.
      group: chunks a saved state; T is a multiple of `chunk_size * group`.
      interpret: whether to run the kernel without a GPU.
      tuning: None for the defaults.

    Raises:
      NotImplementedError: if Triton cannot take the shapes or an operation of the step.
    """
    tuning = Tuning() if tuning is None else tuning
    options = Options(chunk_size, value_dim, jnp.dtype(dtype), group, bool(interpret), tuning)
    return _padded(_scan, step, options, carry, consts, dict(tokens), dict(marks))


def decode(
    step: Step,
    carry: Tree,
    consts: Tree,
    tokens: Mapping[str, jax.Array],
    marks: Mapping[str, jax.Array],
    *,
    value_dim: int,
    dtype: jnp.dtype,
    interpret: Any = False,
    tuning: Tuning | None = None,
) -> tuple[Tree, jax.Array]:
    """One token of every row and head, T = 1, the carry updated in place where it is donated.

    Differentiable like `scan`; the backward pass is pure JAX.
    """
    tuning = Tuning() if tuning is None else tuning
    options = Options(1, value_dim, jnp.dtype(dtype), 1, bool(interpret), tuning)
    return _padded(_decode, step, options, carry, consts, dict(tokens), dict(marks))


@differentiable
def _decode(step, options, carry, consts, tokens, marks):
    return _forward(step, options, carry, consts, tokens, marks, save=False, in_place=True)[:2]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(step, options, carry, consts, tokens, marks):
    return _forward(step, options, carry, consts, tokens, marks, save=False)[:2]


def _scan_forward(step, options, carry, consts, tokens, marks):
    carry, y, saved = _forward(step, options, carry, consts, tokens, marks, save=True)
    return (carry, y), (saved, consts, tokens, marks)


def _scan_backward(step, options, residuals, cotangents):
    saved, consts, tokens, marks = residuals
    if _entries(jax.tree.leaves((saved, consts))) > options.tuning.register_carry:
        arguments = (step, saved, consts, tokens, marks, *cotangents)
        return *pull_reference(*arguments, chunk_size=options.chunk_size), None
    return *_backward(step, options, saved, consts, tokens, marks, *cotangents), None


_scan.defvjp(_scan_forward, _scan_backward)


def _padded(run, step, options, carry, consts, tokens, marks):
    """Runs a kernel on sizes that are powers of two, padded where the step allows it."""
    least = SMALLEST if options.chunk_size > 1 else 1

    def size(n):
        return n if n == 1 else max(least, 1 << (n - 1).bit_length())

    def pad(x, axes):
        widths = [
            (0, size(n) - n if axis - x.ndim in axes else 0) for axis, n in enumerate(x.shape)
        ]
        return jnp.pad(x, widths)

    if getattr(step, "zero_padding", False):
        states, heads = (jax.tree.map(lambda x: pad(x, (-2, -1)), t) for t in (carry, consts))
        tokens = {name: pad(x, (-1,)) for name, x in tokens.items()}
        wide = options._replace(value_dim=size(options.value_dim))
    else:
        states, heads, wide = carry, consts, options
    named = {"chunk_size": (options.chunk_size,), "value_dim": (wide.value_dim,)}
    named |= {name: x.shape[-1:] for name, x in tokens.items()}
    for path, x in jax.tree.leaves_with_path((states, heads)):
        named[jax.tree_util.keystr(path[1:])] = x.shape[-2:]
    for name, shape in named.items():
        if any(n & (n - 1) for n in shape):
            raise NotImplementedError(
                f"Arrays of a Triton kernel have sizes that are powers of two, got {shape} for "
                f"{name}, and {type(step).__name__} does not allow padding: use form='chunked'."
            )
    after, y = run(step, wide, states, heads, tokens, marks)
    after = jax.tree.map(lambda x, like: x[..., : like.shape[-2], : like.shape[-1]], after, carry)
    return after, y[..., : options.value_dim]


class _Layout:
    """The arguments of a kernel as flat lists, and where they lie in memory."""

    def __init__(self, options: Options, consts: Tree, tokens: Mapping, marks: Mapping):
        self.options = options
        self.batch, self.heads, self.total = next(iter(tokens.values())).shape[:3]
        self.groups = driver.groups(self.total, options.chunk_size, options.group)
        self.grid = (self.batch, self.heads)
        self.tokens, self.marks = list(tokens), list(marks)
        self.consts, self.const_tree = jax.tree.flatten(consts)

    def arrays(self, tokens: Mapping, marks: Mapping) -> list[jax.Array]:
        """Tokens, marks and a zero; a column `[T, 1]` as `[T]`."""
        wide = [self.flat(tokens[n]) for n in self.tokens]
        return [*wide, *(marks[n] for n in self.marks), jnp.zeros(1, jnp.int32)]

    @staticmethod
    def flat(x: jax.Array) -> jax.Array:
        return x[..., 0] if x.shape[-1] == 1 else x

    def chunk(self, i, refs: list) -> tuple[dict, dict]:
        """Tokens and marks of chunk i."""
        values = [ref[self.at(i), ...] for ref in refs[:-1]]
        values = [x if x.ndim == 2 else x[:, None] for x in values]
        count = len(self.tokens)
        tokens = [x.astype(jnp.float32) for x in values[:count]]
        return (
            dict(zip(self.tokens, tokens, strict=True)),
            dict(zip(self.marks, values[count:], strict=True)),
        )

    def at(self, i):
        return pl.ds(i * self.options.chunk_size, self.options.chunk_size)

    def specs(self, arrays: list) -> list[pl.BlockSpec]:
        """Everything of a row and head, of arrays `[B, H, ...]`."""

        def spec(shape):
            zeros = (0,) * len(shape)
            return pl.BlockSpec((None, None, *shape), lambda b, h: (b, h, *zeros))

        return [spec(x.shape[2:]) for x in arrays]

    def argument_specs(self, arrays: list) -> list[pl.BlockSpec]:
        """Of `consts` and `arrays`."""
        count = len(self.tokens)
        return [
            *(pl.BlockSpec((None, *x.shape[1:]), lambda b, h: (h, 0, 0)) for x in self.consts),
            *self.specs(arrays[:count]),
            *(pl.BlockSpec((None, x.shape[1]), lambda b, h: (b, 0)) for x in arrays[count:-1]),
            pl.BlockSpec((1,), lambda b, h: (0,)),
        ]

    def how(self, zero: Any = None) -> How:
        """For `rewritten`, in a turn of the loop."""
        return PLAIN if self.options.interpret else How(self.options.tuning.algorithm, zero)

    def call(self, kernel, name, entries, reverse, **kwargs):
        tuning = self.options.tuning
        return pl.pallas_call(
            kernel,
            grid=self.grid,
            compiler_params=triton.CompilerParams(
                num_warps=tuning.warps(entries, reverse), num_stages=tuning.stages
            ),
            interpret=self.options.interpret,
            name=name,
            **kwargs,
        )


class _Held:
    """Values that a loop carries: in registers as the loop's own carry, or in memory."""

    def __init__(self, refs: list, in_registers: bool, interpret: bool):
        self.refs, self.in_registers, self.interpret = refs, in_registers, interpret

    def put(self, values: list) -> list:
        """What the loop carries once these are the values."""
        if self.in_registers:
            return values
        _write(self.refs, values, self.interpret)
        return []

    def get(self, carried: list) -> list:
        return carried if self.in_registers else _read(self.refs)

    def finish(self, carried: list) -> None:
        """Leaves the values in memory."""
        if self.in_registers:
            _write(self.refs, carried, self.interpret)


def _read(refs: list, *at) -> list[jax.Array]:
    return [ref[(*at, ...)] for ref in refs]


def _write(refs: list, values: list, interpret: bool, *at) -> None:
    """Writes what other threads of the program may have read before and may read after."""
    if not refs:
        return
    if not interpret:
        triton.debug_barrier()
    for ref, value in zip(refs, values, strict=True):
        ref[(*at, ...)] = value.astype(ref.dtype)
    if not interpret:
        triton.debug_barrier()


def _entries(leaves: list) -> int:
    """Float32 entries of the leaves of one head."""
    return sum(math.prod(x.shape[-2:]) for x in leaves)


def _forward(step, options, carry, consts, tokens, marks, save, in_place=False):
    layout = _Layout(options, consts, tokens, marks)
    states, tree = jax.tree.flatten(carry)
    arrays = layout.arrays(tokens, marks)
    entries, n = _entries(states), len(states)
    small = entries <= options.tuning.register_carry

    def kernel(*refs):
        initial, const_refs, token_refs, final, (y,), saved = driver.take(
            refs, n, len(layout.consts), len(arrays), n, 1, save * n
        )
        held = _Held(final, small, options.interpret)

        def chunk(i, carried):
            head = layout.const_tree.unflatten(_read(const_refs))
            state = tree.unflatten(held.get(carried))
            run = rewritten(step, layout.how(token_refs[-1][0]))
            after, rows = run(state, head, *layout.chunk(i, token_refs))
            y[layout.at(i), ...] = rows.astype(y.dtype)
            return held.put(jax.tree.leaves(after))

        def group(g, carried):
            for ref, value in zip(saved, held.get(carried) if save else [], strict=True):
                ref[g, ...] = value
            return driver.loop(options.group, lambda j, c: chunk(g * options.group + j, c), carried)

        held.finish(driver.loop(layout.groups, group, held.put(_read(initial))))

    lead = (layout.batch, layout.heads)
    outputs = [driver.struct(x.shape, x.dtype) for x in states]
    outputs += [driver.struct((*lead, layout.total, options.value_dim), options.dtype)]
    outputs += [driver.struct((*lead, layout.groups, *x.shape[2:])) for x in states * save]
    results = layout.call(
        kernel,
        driver.name(step, "decode" if in_place else "forward"),
        entries,
        reverse=False,
        in_specs=[*layout.specs(states), *layout.argument_specs(arrays)],
        out_specs=layout.specs(outputs),
        out_shape=outputs,
        input_output_aliases={i: i for i in range(n)} if in_place else {},
    )(*states, *layout.consts, *arrays)
    after, (y,), saved = driver.take(results, n, 1, save * n)
    return tree.unflatten(after), y, tree.unflatten(saved) if save else None


def _backward(step, options, saved, consts, tokens, marks, d_carry, d_y):
    layout = _Layout(options, consts, tokens, marks)
    states, tree = jax.tree.flatten(saved)
    d_states = jax.tree.leaves(d_carry)
    arrays = layout.arrays(tokens, marks)
    n, consts_n, token_n = len(states), len(layout.consts), len(layout.tokens)
    regroup = options.group > 1

    def kernel(*refs):
        starts, const_refs, token_refs, (d_y_ref,), d_final, *results = driver.take(
            refs, n, consts_n, len(arrays), 1, n, n, consts_n, token_n, regroup * n
        )
        running, d_const_refs, d_tokens, inner = results

        def reverse_chunk(i, state, carried):
            head = layout.const_tree.unflatten(_read(const_refs))
            d_after = tree.unflatten(carried[0])
            d_rows = d_y_ref[layout.at(i), ...].astype(jnp.float32)
            pull = rewritten(partial(backward, step), layout.how())
            d_start, d_head, d_chunk = pull(
                tree.unflatten(state), head, *layout.chunk(i, token_refs), d_after, d_rows
            )
            for ref, name in zip(d_tokens, layout.tokens, strict=True):
                value = d_chunk[name].astype(ref.dtype)
                ref[layout.at(i), ...] = value if len(ref.shape) == 2 else _column(value)
            d_head = jax.tree.leaves(d_head)
            sums = [a + b for a, b in zip(carried[1], d_head, strict=True)]
            return jax.tree.leaves(d_start), sums

        def recompute(g):
            """Writes the states at the starts of a group's chunks to `inner`."""
            _write(inner, _read(starts, g), options.interpret, 0)

            def one(j, _):
                head = layout.const_tree.unflatten(_read(const_refs))
                chunk = layout.chunk(g * options.group + j, token_refs)
                advance = rewritten(lambda *args: step(*args)[0], layout.how())
                after = advance(tree.unflatten(_read(inner, j)), head, *chunk)
                _write(inner, jax.tree.leaves(after), options.interpret, j + 1)
                return []

            driver.loop(options.group - 1, one, [])

        def group(turn, carried):
            g = layout.groups - 1 - turn
            if not regroup:
                return reverse_chunk(g, _read(starts, g), carried)
            recompute(g)

            def one(back, carried):
                j = options.group - 1 - back
                return reverse_chunk(g * options.group + j, _read(inner, j), carried)

            return driver.loop(options.group, one, carried)

        zeros = [jnp.zeros(ref.shape, ref.dtype) for ref in d_const_refs]
        d_start, d_head = driver.loop(layout.groups, group, (_read(d_final), zeros))
        _write([*running, *d_const_refs], [*d_start, *d_head], options.interpret)

    lead = (layout.batch, layout.heads)
    outputs = [driver.struct(x.shape) for x in d_states]
    outputs += [driver.struct((*lead, *x.shape[1:])) for x in layout.consts]
    outputs += [driver.struct(x.shape, x.dtype) for x in arrays[:token_n]]
    outputs += [driver.struct((*lead, options.group, *x.shape[3:])) for x in states * regroup]
    results = layout.call(
        kernel,
        driver.name(step, "backward"),
        _entries(states),
        reverse=True,
        in_specs=[
            *layout.specs(states),
            *layout.argument_specs(arrays),
            *layout.specs([d_y, *d_states]),
        ],
        out_specs=layout.specs(outputs),
        out_shape=outputs,
    )(*states, *layout.consts, *arrays, d_y, *d_states)
    d_states, d_consts, flat, _ = driver.take(results, n, consts_n, token_n, regroup * n)
    d_tokens = {m: x.reshape(tokens[m].shape) for m, x in zip(layout.tokens, flat, strict=True)}
    d_consts = layout.const_tree.unflatten([jnp.sum(x, axis=0) for x in d_consts])
    return tree.unflatten(d_states), d_consts, d_tokens


def _column(x: jax.Array) -> jax.Array:
    """The column `[C, 1]` as `[C]`."""
    return jnp.sum(x, axis=1)
