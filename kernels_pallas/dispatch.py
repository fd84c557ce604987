"""Which form runs: one table of what is proved, and how to overrule it.

`form="auto"` takes a kernel only where the table has an entry for the platform, the family and the
dtype; everything else runs in pure JAX. `override` and the environment variable `MIRAS_FORM` change
what "auto" means; a form that is asked for by name always runs, or says why it cannot.
"""

import contextlib
import contextvars
import dataclasses
import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas.linear import linear_step
from miras_jax.memory.algorithm import GradientDescent, Momentum
from miras_jax.memory.architecture import MLP
from miras_jax.memory.bias import L2, Huber, Lp
from miras_jax.memory.flops import inner_steps
from miras_jax.memory.links import KL, Lq
from miras_jax.memory.memory import Memory
from miras_jax.memory.retention import Retention

Platform = Literal["tpu", "gpu", "cpu"]


class Entry(NamedTuple):
    """A row of the table.

    Attributes:
      platform: "tpu" or "gpu".
      family: of `family`.
      dtypes: of q, k and v.
      widths: of keys and of values.
      proof: what was shown, and by which command.
    """

    platform: Platform
    family: str
    dtypes: tuple[str, ...]
    widths: tuple[int, ...]
    proof: str


COMPILED = (
    "interpreted against the float64 recurrence (tests/kernels); compiled ahead of time, forward, "
    "backward and decode, for v5e, v5p and v6e (make prove-tpu)"
)
FLOATS = ("float32", "bfloat16")
WIDTHS = (64, 128)
TABLE = (
    Entry("tpu", "gated linear attention", FLOATS, WIDTHS, COMPILED),
    Entry("tpu", "delta rule", FLOATS, WIDTHS, COMPILED),
    Entry("tpu", "deep memory", FLOATS, WIDTHS, COMPILED),
)
"""No entry for the GPU: its kernels compile, but spill registers by kilobytes a thread, and were
never timed (docs/decisions/gpu-back-end.md)."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `override` sets.

    Attributes:
      form: what "auto" means; None leaves it to the table.
      platform: the machine that is compiled for; None is the one that runs.
      interpret: runs kernels without their machine: True, or `pltpu.InterpretParams(...)`.
    """

    form: str | None = None
    platform: Platform | None = None
    interpret: Any = False


_settings: contextvars.ContextVar[Settings | None] = contextvars.ContextVar(
    "settings", default=None
)


@contextlib.contextmanager
def override(**settings) -> Iterator[None]:
    """Changes, for what is traced inside, what "auto" means and where kernels run.

    What was traced before keeps the form it was compiled with.

    Args:
      form: "recurrent", "chunked", "associative", "pallas_tpu" or "pallas_gpu" in the place of
        "auto". The environment variable MIRAS_FORM does the same for a whole process.
      platform: "tpu", "gpu" or "cpu": compiles for this machine instead of the one at hand.
      interpret: True, or `pltpu.InterpretParams(...)` for the TPU: kernels run by interpreter, on
        any machine, to test them.
    """
    token = _settings.set(dataclasses.replace(_settings.get() or Settings(), **settings))
    try:
        yield
    finally:
        _settings.reset(token)


def settings() -> Settings:
    """The settings in force."""
    found = _settings.get() or Settings()
    if found.form is None and os.environ.get("MIRAS_FORM"):
        found = dataclasses.replace(found, form=os.environ["MIRAS_FORM"])
    return found


def platform() -> Platform:
    """The machine that kernels are compiled for."""
    return settings().platform or jax.default_backend()


def family(memory: Memory) -> str:
    """The family of kernels that a memory belongs to.

    Raises:
      NotImplementedError: it has no kernel; says why.
    """
    if not isinstance(memory, Memory):
        raise NotImplementedError(f"{type(memory).__name__} has no kernel of this library.")
    if memory.exact:
        linear_step(memory, "highest")  # says why not
        return "delta rule" if memory.bias.curvature else "gated linear attention"
    if memory.exact_gradients and memory.bias.curvature:
        raise NotImplementedError(
            "The kernel of the delta rule reads each token's own write; this memory reads its "
            "chunk's start."
        )
    if memory.algorithm.steps_a_chunk:
        name = type(memory.algorithm).__name__
        raise NotImplementedError(f"{name} holds a state between chunks that kernels do not carry.")
    several = inner_steps(memory, 1, 1) > 1
    if several or any(gate.per != "head" for gate in memory.gates.values()):
        raise NotImplementedError(
            "The kernel of memories with gradients at the chunk's start takes one step a token and "
            "gates per head."
        )
    kinds = {layer.kind for layer in memory.layers(1, 1).values()}
    if "entries" in kinds:
        raise NotImplementedError(f"{type(memory.architecture).__name__} has no products to fuse.")
    return "deep memory"


def _compiled_alike(memory: Memory) -> bool:
    """Whether a deep memory is made of choices of the rows that were compiled (`cases.DEEP`)."""
    architecture, retention = memory.architecture, memory.retention
    return (
        type(architecture) is MLP
        and (architecture.depth, architecture.gelu) == (2, "tanh")
        and architecture.expansion <= 4
        and type(memory.bias) in (L2, Lp, Huber)
        and type(retention) in (Retention, Lq, KL)
        and type(memory.algorithm) in (GradientDescent, Momentum)
        and memory.chunk_size in (16, 32, 48, 64)
    )


def automatic(memory, dtype: jnp.dtype, key_dim: int, value_dim: int) -> str | None:
    """The kernel that "auto" takes, or None for pure JAX."""
    here = platform()
    entries = [entry for entry in TABLE if entry.platform == here]
    if not entries:
        return None
    try:
        kind = family(memory)
    except NotImplementedError:
        return None
    for entry in entries:
        fits = jnp.dtype(dtype).name in entry.dtypes and {key_dim, value_dim} <= set(entry.widths)
        alike = kind != "deep memory" or _compiled_alike(memory)
        if entry.family == kind and fits and alike:
            return f"pallas_{here}"
    return None


def check(memory, form: str, dtype: jnp.dtype) -> None:
    """Refuses a kernel that cannot run.

    Raises:
      NotImplementedError: says why, and what to do.
    """
    wanted, here = form.removeprefix("pallas_"), platform()
    try:
        family(memory)
    except NotImplementedError as error:
        raise NotImplementedError(f"form={form!r} is not available here. {error}") from None
    if jnp.dtype(dtype).name not in FLOATS:
        raise NotImplementedError(
            f"form={form!r} computes in float32: give it float32 or bfloat16, got {dtype}, or "
            "choose form='chunked'."
        )
    if not settings().interpret and wanted != here:
        raise NotImplementedError(
            f"form={form!r} needs a {wanted.upper()}, this machine has a {here.upper()}: choose "
            "form='chunked', or run the kernel by interpreter inside "
            "kernels_pallas.override(interpret=True)."
        )
