"""The one public call: read a sequence with a memory, state in and state out."""

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch
from miras_jax.memory.associative import associative, why_not_associative
from miras_jax.memory.attention import Attention, AttentionState, attend
from miras_jax.memory.automatic import pure_forms
from miras_jax.memory.chunked import chunked
from miras_jax.memory.head import Chunk, Head
from miras_jax.memory.memory import Memory, Parameters, State
from miras_jax.memory.recurrent import recurrent
from miras_jax.memory.segments import document_starts
from miras_jax.memory.window import SlidingWindowAttention, WindowState, attend_window

Form = Literal["auto", "recurrent", "chunked", "associative", "pallas_tpu", "pallas_gpu"]
FORMS = ("auto", "recurrent", "chunked", "associative", "pallas_tpu", "pallas_gpu")


def memorize(
    memory: Memory | Attention | SlidingWindowAttention,
    params: Parameters,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gates: Mapping[str, jax.Array] | None = None,
    *,
    state: State | AttentionState | WindowState | None = None,
    segment_ids: jax.Array | None = None,
    form: Form = "auto",
    diagnostics: bool = False,
) -> tuple:
    """Learns the pairs (k_t, v_t) in order and recalls with q_t (Miras section 3).

    Differentiable in everything, the state included; the gradient flows through the inner updates.
    Rows of the batch and heads never touch each other.

    Args:
      memory: what to remember with; `miras_jax.zoo.get(name)`.
      params: `memory.init(...)`.
      q, k: `[B, T, H, K]`, any T >= 1, no hidden scale or norm.
      v: `[B, T, H, V]`.
      gates: values by name as `memory.gates` lists them, `[B, T, H]` or `[B, T, H, channels]`.
      state: what was read before, from `memory.init_state` or an earlier call; None begins anew.
        Feeding a sequence in pieces with the state carried equals feeding it at once.
      segment_ids: int `[B, T]`, >= 0, non-decreasing in a row; at every change the memory starts
        afresh.
        None goes on with the document of the state.
      form: "recurrent", "chunked", "associative" (the chunks of a linear memory side by side), a
        fused kernel, "pallas_tpu" or "pallas_gpu"; or "auto": a kernel where one is proved for this
        machine (`kernels_pallas.dispatch`), else what `miras_jax.memory.automatic` says.
        `kernels_pallas.override` and the environment variable MIRAS_FORM say what "auto" means.
      diagnostics: also say what the inner loop did at every token; runs the recurrent form.

    Returns:
      y `[B, T, H, V]` in the dtype of v, and the state, float32 (float64 for float64 inputs); with
      diagnostics a third, `Diagnostics` of arrays `[B, T, H]`.

    Raises:
      ValueError: a shape, a gate or a form that does not fit.
      NotImplementedError: a form that this memory, or this machine, does not have.
    """
    gates = dict(gates or {})
    check_arguments(memory, params, q, k, v, gates, segment_ids)
    if form != "auto":
        _check_form(memory, form, jnp.result_type(q, k, v))
    check_state(memory, params, q.shape[0], state)
    if diagnostics:
        if not isinstance(memory, Memory):
            raise NotImplementedError(f"{type(memory).__name__} has no inner loop to diagnose.")
        if form not in ("auto", "recurrent"):
            raise NotImplementedError(f"Diagnostics run the recurrent form, got form={form!r}.")
        form, interpret = "diagnosed", False
    else:
        form, interpret = _resolve(memory, form, jnp.result_type(q, k, v), q, v)
    arguments = (params, q, k, v, gates, state, segment_ids)
    if form is None:
        values, derivatives = pure_forms(memory, q.shape[1], dispatch.platform())
        if values != derivatives:
            return _either((memory, values, derivatives), *arguments)
        form = values
    y, state, what = _memorize(memory, *arguments, form, interpret)
    return (y, state, what) if diagnostics else (y, state)


def available_forms(memory) -> tuple[str, ...]:
    """The forms that a memory has on some machine, the kernels included."""
    try:
        dispatch.family(memory)
    except NotImplementedError:
        return memory.forms
    return (*memory.forms, "pallas_tpu", "pallas_gpu")


def _resolve(memory, form: str, dtype, q, v) -> tuple[str | None, Any]:
    """The form that runs, None for one in pure JAX, and how a kernel is interpreted, if at all."""
    settings = dispatch.settings()
    if form == "auto" and settings.form is not None:
        with contextlib.suppress(NotImplementedError):
            _check_form(memory, settings.form, dtype)
            form = settings.form
    if form == "auto":
        form = dispatch.automatic(memory, dtype, q.shape[3], v.shape[3])
    return form, settings.interpret


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _either(forms, *arguments):
    """One form where only values are asked for, the other where derivatives are."""
    memory, values, _ = forms
    return _memorize(memory, *arguments, values, False)[:2]


@_either.defjvp
def _either_derivative(forms, primals, tangents):
    memory, _, derivatives = forms
    return jax.jvp(lambda *x: _memorize(memory, *x, derivatives, False)[:2], primals, tangents)


def _check_form(memory, form: str, dtype) -> None:
    """Refuses a form that this memory or machine does not have."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}; got {form!r}.")
    if form.startswith("pallas"):
        dispatch.check(memory, form, dtype)
    elif form not in memory.forms:
        reason = ""
        if form == "associative" and isinstance(memory, Memory):
            reason = f", because {why_not_associative(memory)}"
        raise NotImplementedError(
            f"form={form!r} is not available for this memory{reason}; it has "
            f"{', '.join(available_forms(memory))}."
        )


@partial(jax.jit, static_argnames=("memory", "form", "interpret"))
def _memorize(memory, params, q, k, v, gates, state, segment_ids, form, interpret):
    diagnostics = None
    out_dtype = v.dtype
    dtype = jnp.promote_types(jnp.result_type(q, k, v), jnp.float32)

    def wide(tree):
        return jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
        )

    state = wide(state)
    if not form.startswith("pallas"):  # a kernel widens its inputs on chip
        q, k, v, gates = wide((q, k, v, gates))
    with jax.default_matmul_precision("highest"):
        if isinstance(memory, Attention):
            y, state = attend(memory, params, q, k, v, state, segment_ids, form)
        elif isinstance(memory, SlidingWindowAttention):
            y, state = attend_window(memory, params, q, k, v, state, segment_ids, form)
        else:
            inputs = (q, k, v, gates, state, segment_ids)
            y, state, diagnostics = _read(memory, params, *inputs, form, interpret, dtype)
    return y.astype(out_dtype), state, diagnostics


def _read(memory, params, q, k, v, gates, state, segment_ids, form, interpret, dtype):
    batch, total = q.shape[:2]
    # A new state begins a chunk with its first token: no shift to the chunk grid is needed.
    on_grid = state is None or memory.exact
    if state is None:
        state = memory.init_state(params, batch=batch, dtype=dtype)
    resets, segment = document_starts(segment_ids, state.segment)
    held = (state.weights, state.momentum, state.start, state.optimizer)
    arguments = (memory.initial(params, dtype), held, q, k, v, gates, resets)
    phase = None if on_grid else state.phase
    if form.startswith("pallas"):
        # Kernels bring their compilers with them: they are imported where one runs.
        from kernels_pallas.read import read

        backend = form.removeprefix("pallas_")
        head, y = read(memory, *arguments, phase, backend=backend, interpret=interpret)
        diagnostics = None
    else:
        head, y, diagnostics = _rows(memory, form, *arguments, phase)
    phase = state.phase if memory.exact else (state.phase + total) % memory.chunk_size
    return y, State(*head, phase, segment), diagnostics


def _rows(memory, form, initial, held, q, k, v, gates, resets, phase):
    """A form in pure JAX over rows and heads."""
    run = {
        "recurrent": recurrent,
        "chunked": chunked,
        "associative": associative,
        "diagnosed": partial(recurrent, diagnose=True),
    }[form]

    def run_head(initial, weights, momentum, start, optimizer, q, k, v, gates, reset, phase):
        head = Head(weights, momentum, start, optimizer)
        tokens = Chunk(q, k, v, gates, reset, None)
        return run(memory, initial, head, tokens, phase)

    over_heads = (0, 0, 0, 0, 0, 1, 1, 1, 1, None, None)
    heads = jax.vmap(run_head, in_axes=over_heads, out_axes=(0, 1, 1))
    rows = jax.vmap(heads, in_axes=(None,) + (0,) * 10)
    return rows(initial, *held, q, k, v, gates, resets, phase)


def check_arguments(memory, params, q, k, v, gates, segment_ids):
    """One clear error for arguments that do not fit, before anything is computed."""
    if q.ndim != 4 or q.shape != k.shape or v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            "memorize needs q and k [B, T, H, K] and v [B, T, H, V], got "
            f"q {q.shape}, k {k.shape}, v {v.shape}."
        )
    tokens, key_dim, value_dim = q.shape[:3], q.shape[3], v.shape[3]
    if tokens[1] == 0:
        raise ValueError("memorize needs at least one token, got T = 0.")
    expected = (params.heads, params.key_dim, params.value_dim)
    if (tokens[2], key_dim, value_dim) != expected:
        raise ValueError(
            f"The parameters are of a memory with (heads, key_dim, value_dim) = {expected}, the "
            f"inputs have {(tokens[2], key_dim, value_dim)}."
        )
    if set(gates) != set(memory.gates):
        raise ValueError(
            f"This memory needs the gates {sorted(memory.gates)}, got {sorted(gates)}."
        )
    for name, gate in memory.gates.items():
        shape = gate.shape(tokens, key_dim, value_dim)
        if gates[name].shape != shape:
            raise ValueError(f"Gate {name!r} needs shape {shape}, got {gates[name].shape}.")
    if segment_ids is not None and (
        segment_ids.shape != tokens[:2] or not jnp.issubdtype(segment_ids.dtype, jnp.integer)
    ):
        raise ValueError(
            f"segment_ids need shape {tokens[:2]} and an integer type, got {segment_ids.shape} "
            f"and {segment_ids.dtype}."
        )


def check_state(memory, params, batch, state):
    """A state must be of this memory, for this batch; of attention any number of slots will do."""
    if state is None:
        return
    expected = jax.eval_shape(lambda params: memory.init_state(params, batch=batch), params)

    def shapes(state):
        if isinstance(state, AttentionState):
            return state.keys.shape[:1] + state.keys.shape[2:], state.values.shape[2:]
        return jax.tree.map(jnp.shape, state)

    if type(state) is not type(expected) or shapes(state) != shapes(expected):
        raise ValueError(
            f"The state is not one of this memory for a batch of {batch}: expected "
            f"{shapes(expected)}, got {shapes(state)}."
        )
