"""What the drivers share: names, and the flat argument lists of a kernel."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas.step import Step


def groups(total: int, chunk_size: int, group: int) -> int:
    """How many groups of chunks a row of T tokens has.

    Raises:
      ValueError: T is no multiple of them.
    """
    if total % (chunk_size * group):
        raise ValueError(
            f"The kernel reads {group} chunks of {chunk_size} tokens at a time, got {total} "
            "tokens: pad them."
        )
    return total // (chunk_size * group)


def name(step: Step, what: str) -> str:
    """Of a kernel: the step's own name, or its class's, and what the kernel does."""
    return f"{getattr(step, 'name', type(step).__name__.lower())}_{what}"


def struct(shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.ShapeDtypeStruct:
    """The shape of a result, float32 unless said otherwise."""
    return jax.ShapeDtypeStruct(shape, dtype)


def take(refs: Any, *counts: int) -> list[list]:
    """A flat list, cut into lists of the given lengths."""
    refs, parts = list(refs), []
    for count in counts:
        parts.append(refs[:count])
        refs = refs[count:]
    return parts


def loop(count: int, body: Callable, carried: Any = None) -> Any:
    """`carried = body(j, carried)` for j in 0 .. count - 1; a single turn is not a loop."""
    if count == 1:
        return body(0, carried)
    return jax.lax.fori_loop(0, count, body, carried) if count else carried
