"""The TPU driver: a step looped over the chunks of a row by Mosaic, the carry in VMEM.

The grid is rows x heads x groups of chunks. The last axis runs in order: the block of the carry's
output does not change along it, so it stays in VMEM and is the carry itself. The backward kernel
runs the groups in reverse, computes the states inside a group again from the saved one, and
differentiates the step inside the kernel.

Gates per head are packed as the rows of one array: a column `[T, 1]` would be padded to 128 lanes
in HBM. They are turned into columns once a group.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import driver
from kernels_pallas.step import Step, Tree, backward, differentiable
from kernels_pallas.transposes import folded

PARAMETERS = {
    "dimension_semantics": ("parallel", "parallel", "arbitrary"),
    "vmem_limit_bytes": 48 * 2**20,
}


class Options(NamedTuple):
    """What a kernel is compiled for, beside its step and shapes; as in `scan`."""

    chunk_size: int
    value_dim: int
    dtype: Any
    group: int
    interpret: Any


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
) -> tuple[Tree, jax.Array]:
    """What `scan_reference` computes, differentiable in carry, consts and tokens.

    Args:
      step, carry, consts, tokens, marks, chunk_size, value_dim, dtype: as in `scan_reference`.
      group: chunks a saved state; T is a multiple of `chunk_size * group`.
      interpret: runs the kernel without a TPU: True, or `pltpu.InterpretParams(...)`.
    """
    options = Options(chunk_size, value_dim, jnp.dtype(dtype), group, interpret)
    return _scan(step, options, carry, consts, dict(tokens), dict(marks))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(step, options, carry, consts, tokens, marks):
    return _forward(step, options, carry, consts, tokens, marks, save=False)[:2]


def _scan_forward(step, options, carry, consts, tokens, marks):
    carry, y, saved = _forward(step, options, carry, consts, tokens, marks, save=True)
    return (carry, y), (saved, consts, tokens, marks)


def _scan_backward(step, options, residuals, cotangents):
    saved, consts, tokens, marks = residuals
    return *_backward(step, options, saved, consts, tokens, marks, *cotangents), None


_scan.defvjp(_scan_forward, _scan_backward)


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
) -> tuple[Tree, jax.Array]:
    """One token of every row and head, T = 1, the carry updated in place where it is donated.

    Differentiable like `scan`; the backward pass is pure JAX.
    """
    options = Options(1, value_dim, jnp.dtype(dtype), 1, interpret)
    return _decode(step, options, carry, consts, dict(tokens), dict(marks))


@differentiable
def _decode(step, options, carry, consts, tokens, marks):
    return _forward(step, options, carry, consts, tokens, marks, save=False, in_place=True)[:2]


class _Layout:
    """How the tokens of a call lie in HBM and in the blocks of a kernel."""

    def __init__(self, options: Options, tokens: Mapping, marks: Mapping):
        self.options, self.size = options, options.chunk_size * options.group
        shapes = {name: x.shape for name, x in tokens.items()}
        self.batch, self.heads, self.total = next(iter(shapes.values()))[:3]
        self.groups = driver.groups(self.total, options.chunk_size, options.group)
        self.wide = [name for name, shape in shapes.items() if shape[3] > 1]
        self.narrow = [name for name, shape in shapes.items() if shape[3] == 1]
        self.marks = list(marks)
        self.widths = {name: shapes[name][3] for name in self.wide}
        self.grid = (self.batch, self.heads, self.groups)

    def rows(self, tokens: Mapping) -> list[jax.Array]:
        """The gates per head as `[B, H, N, gates, group * C]`, in a list of one or none."""
        if not self.narrow:
            return []
        shape = (self.batch, self.heads, self.groups, self.size)
        return [jnp.stack([tokens[n].reshape(shape) for n in self.narrow], axis=3)]

    def columns(self, rows: list[jax.Array], like: Mapping) -> dict[str, jax.Array]:
        """The gates back from their rows, `[B, H, T, 1]` by name."""
        if not rows:
            return {}
        split = jnp.moveaxis(rows[0], 3, 0).reshape(-1, self.batch, self.heads, self.total, 1)
        return {n: x.astype(like[n].dtype) for n, x in zip(self.narrow, split, strict=True)}

    def mark_rows(self, marks: Mapping) -> list[jax.Array]:
        """The marks as float32 `[B, N, marks, group * C]`, in a list of one or none."""
        if not self.marks:
            return []
        shape = (self.batch, self.groups, self.size)
        return [jnp.stack([marks[n].reshape(shape) for n in self.marks], 2).astype(jnp.float32)]

    def arrays(self, tokens: Mapping, marks: Mapping) -> list[jax.Array]:
        return [tokens[n] for n in self.wide] + self.rows(tokens) + self.mark_rows(marks)

    def specs(self, index) -> list[pl.BlockSpec]:
        """Blocks of `arrays`; `index(i)` is the group that grid step i works on."""
        row = (None, None, len(self.marks), self.size)
        spec = pl.BlockSpec(row, lambda b, h, i: (b, index(i), 0, 0))
        return self.token_specs(index) + [spec] * bool(self.marks)

    def token_specs(self, index) -> list[pl.BlockSpec]:
        wide = [self.block(self.widths[n], index) for n in self.wide]
        row = (None, None, None, len(self.narrow), self.size)
        spec = pl.BlockSpec(row, lambda b, h, i: (b, h, index(i), 0, 0))
        return wide + [spec] * bool(self.narrow)

    def block(self, width: int, index) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, self.size, width), lambda b, h, i: (b, h, index(i), 0))

    def scratch(self) -> list:
        """Room for the gates and the marks as columns."""
        counts = [len(names) for names in (self.narrow, self.marks) if names]
        return [pltpu.VMEM((self.size, count), jnp.float32) for count in counts]

    def fill(self, refs: list, scratch: list) -> None:
        """Turns the rows of a group into columns."""
        for rows, columns in zip(refs[len(self.wide) :], scratch, strict=True):
            columns[...] = rows[...].astype(jnp.float32).T

    def chunk(self, j, refs: list, scratch: list) -> tuple[dict, dict]:
        """Tokens and marks of the group's chunk j."""
        at = self.at(j)
        tokens = {n: refs[i][at, :].astype(jnp.float32) for i, n in enumerate(self.wide)}
        scratch = list(scratch)
        if self.narrow:
            columns = scratch.pop(0)[at, :]
            tokens |= {n: columns[:, s : s + 1] for s, n in enumerate(self.narrow)}
        marks = {}
        if self.marks:
            columns = scratch.pop(0)[at, :].astype(jnp.int32)
            marks = {n: columns[:, s : s + 1] for s, n in enumerate(self.marks)}
        return tokens, marks

    def at(self, j):
        size = self.options.chunk_size
        return pl.ds(pl.multiple_of(j * size, size), size)


def _state_specs(tree: list, index=None) -> list[pl.BlockSpec]:
    """Blocks of states `[B, H, r, c]`, or of those saved by group, `[B, H, N, r, c]`."""
    if index is None:
        return [
            pl.BlockSpec((None, None, *x.shape[-2:]), lambda b, h, i: (b, h, 0, 0)) for x in tree
        ]
    return [
        pl.BlockSpec((None, None, None, *x.shape[-2:]), lambda b, h, i: (b, h, index(i), 0, 0))
        for x in tree
    ]


def _const_specs(leaves: list) -> list[pl.BlockSpec]:
    return [pl.BlockSpec((None, *x.shape[-2:]), lambda b, h, i: (h, 0, 0)) for x in leaves]


def _read(refs: list) -> list[jax.Array]:
    return [ref[...] for ref in refs]


def _write(refs: list, values: list) -> None:
    for ref, value in zip(refs, values, strict=True):
        ref[...] = value.astype(ref.dtype)


def _forward(step, options, carry, consts, tokens, marks, save, in_place=False):
    layout = _Layout(options, tokens, marks)
    states, tree = jax.tree.flatten(carry)
    const_leaves, const_tree = jax.tree.flatten(consts)
    arrays = layout.arrays(tokens, marks)
    counts = (len(states), len(const_leaves), len(arrays), len(states), 1, save * len(states))

    def kernel(*refs):
        initial, const_refs, token_refs, running, (y,), saved, columns = driver.take(
            refs, *counts, len(layout.scratch())
        )

        @pl.when(pl.program_id(2) == 0)
        def _():
            _write(running, _read(initial))

        _write(saved, _read(running) if save else [])
        layout.fill(token_refs, columns)
        head = const_tree.unflatten(_read(const_refs))

        def body(j, _):
            chunk = layout.chunk(j, token_refs, columns)
            after, rows = folded(step)(tree.unflatten(_read(running)), head, *chunk)
            _write(running, jax.tree.leaves(after))
            y[layout.at(j), :] = rows.astype(y.dtype)

        driver.loop(options.group, body)

    def same(i):
        return i

    lead = (layout.batch, layout.heads)
    saved_shapes = [driver.struct((*lead, layout.groups, *x.shape[2:])) for x in states * save]
    outputs = pl.pallas_call(
        kernel,
        grid=layout.grid,
        in_specs=[*_state_specs(states), *_const_specs(const_leaves), *layout.specs(same)],
        out_specs=[
            *_state_specs(states),
            layout.block(options.value_dim, same),
            *_state_specs(saved_shapes, same),
        ],
        out_shape=[
            *(driver.struct(x.shape, x.dtype) for x in states),
            driver.struct((*lead, layout.total, options.value_dim), options.dtype),
            *saved_shapes,
        ],
        scratch_shapes=layout.scratch(),
        input_output_aliases={i: i for i in range(len(states))} if in_place else {},
        compiler_params=pltpu.CompilerParams(**PARAMETERS),
        interpret=options.interpret,
        name=driver.name(step, "decode" if in_place else "forward"),
    )(*states, *const_leaves, *arrays)
    after, (y,), saved = driver.take(outputs, len(states), 1, save * len(states))
    return tree.unflatten(after), y, tree.unflatten(saved) if save else None


def _backward(step, options, saved, consts, tokens, marks, d_carry, d_y):
    layout = _Layout(options, tokens, marks)
    states, tree = jax.tree.flatten(saved)
    const_leaves, const_tree = jax.tree.flatten(consts)
    d_states = jax.tree.leaves(d_carry)
    arrays = layout.arrays(tokens, marks)
    wide, narrow = len(layout.wide), bool(layout.narrow)
    n, consts_n = len(states), len(const_leaves)
    last = layout.groups - 1

    def kernel(*refs):
        (
            starts, const_refs, token_refs, (d_y_ref,), d_final,
            running, d_const_refs, d_wide, d_rows, columns, d_columns, inner,
        ) = driver.take(
            refs, n, consts_n, len(arrays), 1, n,
            n, consts_n, wide, narrow, len(layout.scratch()), narrow, n,
        )  # fmt: skip

        @pl.when(pl.program_id(2) == 0)
        def _():
            _write(running, _read(d_final))
            _write(d_const_refs, [jnp.zeros(ref.shape, ref.dtype) for ref in d_const_refs])

        layout.fill(token_refs, columns)
        head = const_tree.unflatten(_read(const_refs))
        for store, start in zip(inner, starts, strict=True):
            store[0] = start[...]

        def recompute(j, _):
            chunk = layout.chunk(j, token_refs, columns)
            after, _ = folded(step)(tree.unflatten([store[j] for store in inner]), head, *chunk)
            for store, value in zip(inner, jax.tree.leaves(after), strict=True):
                store[j + 1] = value

        driver.loop(options.group - 1, recompute)

        def body(k, _):
            j = options.group - 1 - k
            start = tree.unflatten([store[j] for store in inner])
            cotangents = (
                tree.unflatten(_read(running)),
                d_y_ref[layout.at(j), :].astype(jnp.float32),
            )
            chunk = layout.chunk(j, token_refs, columns)
            pull = folded(partial(backward, step))
            d_start, d_head, d_tokens = pull(start, head, *chunk, *cotangents)
            _write(running, jax.tree.leaves(d_start))
            for ref, value in zip(d_const_refs, jax.tree.leaves(d_head), strict=True):
                ref[...] += value
            for ref, name in zip(d_wide, layout.wide, strict=True):
                ref[layout.at(j), :] = d_tokens[name].astype(ref.dtype)
            for s, name in enumerate(layout.narrow):
                d_columns[0][layout.at(j), s : s + 1] = d_tokens[name]

        driver.loop(options.group, body)
        for ref in d_rows:
            ref[...] = d_columns[0][...].T.astype(ref.dtype)

    def reverse(i):
        return last - i

    lead = (layout.batch, layout.heads)
    rows = layout.rows(tokens)
    d_const_shapes = [driver.struct((*lead, *x.shape[1:])) for x in const_leaves]
    outputs = pl.pallas_call(
        kernel,
        grid=layout.grid,
        in_specs=[
            *_state_specs(states, reverse),
            *_const_specs(const_leaves),
            *layout.specs(reverse),
            layout.block(options.value_dim, reverse),
            *_state_specs(d_states),
        ],
        out_specs=[
            *_state_specs(d_states),
            *_state_specs(d_const_shapes),
            *layout.token_specs(reverse),
        ],
        out_shape=[
            *(driver.struct(x.shape, x.dtype) for x in d_states),
            *d_const_shapes,
            *(driver.struct(tokens[name].shape, tokens[name].dtype) for name in layout.wide),
            *(driver.struct(x.shape) for x in rows),
        ],
        scratch_shapes=[
            *layout.scratch(),
            *[pltpu.VMEM((layout.size, len(layout.narrow)), jnp.float32)] * narrow,
            *(pltpu.VMEM((options.group, *x.shape[-2:]), jnp.float32) for x in states),
        ],
        compiler_params=pltpu.CompilerParams(**PARAMETERS),
        interpret=options.interpret,
        name=driver.name(step, "backward"),
    )(*states, *const_leaves, *arrays, d_y, *d_states)
    d_states, d_consts, d_wide, d_rows = driver.take(outputs, n, consts_n, wide, narrow)
    d_tokens = dict(zip(layout.wide, d_wide, strict=True)) | layout.columns(d_rows, tokens)
    d_consts = [jnp.sum(x, axis=0) for x in d_consts]
    return tree.unflatten(d_states), const_tree.unflatten(d_consts), d_tokens
