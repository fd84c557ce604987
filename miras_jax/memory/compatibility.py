"""Which choices make a memory together, and why the others do not."""

from collections.abc import Iterator

from miras_jax.memory.algorithm import GradientDescent, Implicit, Momentum
from miras_jax.memory.architecture import Architecture, NormalEquations, Vector
from miras_jax.memory.bias import Bias
from miras_jax.memory.retention import Retention


def why_not_exact_gradients(memory) -> str:
    """Why a memory takes its gradients at the chunk's start; empty if at each token's own."""
    if memory.gradient == "chunk":
        return "gradient='chunk'"
    if not memory.architecture.linear:
        return "the architecture is not linear"
    if memory.bias.curvature is None:
        return "the bias is neither dot-product nor l2"
    if not memory.retention.identity:
        return "the retention has a link"
    if memory.read == "commit" or (memory.read == "chunk" and memory.gradient == "auto"):
        return f"read={memory.read!r}"
    if memory.commits:
        return "the end of a chunk changes the memory"
    per_value = [name for name, gate in memory.gates.items() if gate.per == "value"]
    per_value = [name for name in per_value if not memory.gates[name].is_input and name != "write"]
    if memory.bias.curvature and per_value and not _apart(memory.architecture):
        return f"{per_value} would give every value channel a triangular system of its own"
    return ""


def _apart(architecture: Architecture) -> bool:
    """True if every number of the memory learns on its own."""
    return all(layer.kind != "dense" for layer in architecture.layers(1, 1).values())


def check(memory) -> None:
    """Refuses choices that do not make a memory.

    Raises:
      ValueError: says which, why, and what to choose.
    """
    for problem in _problems(memory):
        raise ValueError(problem)


def _problems(memory) -> Iterator[str]:
    kinds = {
        "architecture": Architecture,
        "bias": Bias,
        "retention": Retention,
        "algorithm": GradientDescent,
    }
    for name, kind in kinds.items():
        choice = getattr(memory, name)
        if not isinstance(choice, kind):
            yield f"{name} must be one of miras_jax.memory ({kind.__name__}), got {choice!r}."
            return
    if memory.chunk_size < 1:
        yield f"chunk_size must be at least 1, got {memory.chunk_size}."
    if memory.read not in ("token", "chunk", "commit"):
        yield f"read must be 'token', 'chunk' or 'commit', got {memory.read!r}."
    if memory.gradient not in ("auto", "exact", "chunk"):
        yield f"gradient must be auto, exact or chunk, got {memory.gradient!r}."
    reason = why_not_exact_gradients(memory)
    if memory.gradient == "exact" and reason:
        yield (
            "gradient='exact' needs a linear architecture, a dot-product or l2 bias, the "
            "identity link, no read='commit' and, for l2, no gate per value channel; here "
            f"{reason}."
        )
    yield from _architecture(memory)
    yield from _retention(memory)
    yield from _algorithm(memory)


def _architecture(memory) -> Iterator[str]:
    architecture, retention, algorithm = memory.architecture, memory.retention, memory.algorithm
    layers = architecture.layers(1, 1)
    diagonal = [n for n, x in layers.items() if x.kind != "dense" and not x.frozen]
    if diagonal and retention.over_inputs:
        yield (
            f"{type(retention).__name__} couples the inputs of each output, and {diagonal} of "
            f"{type(architecture).__name__} has one input an output: choose another retention, "
            "or an architecture of full matrices."
        )
    starts_at_zero = any(x.std is None or x.std == 0 for x in layers.values() if not x.frozen)
    if retention.needs_start and starts_at_zero:
        yield (
            f"{type(retention).__name__} scales by the norm of the start, and "
            f"{type(architecture).__name__} starts at zero: choose an architecture with a "
            "learned start."
        )
    written = {name for name, layer in layers.items() if not layer.frozen}
    unknown = sorted(set(algorithm.layer_steps) - written)
    if unknown:
        yield f"layer_steps name {unknown}; the layers that are written are {sorted(written)}."
    if isinstance(architecture, NormalEquations):
        plain = type(algorithm) is GradientDescent and not algorithm.normalized
        gates = {**retention.gates, **algorithm.gates}.values()
        plain &= not algorithm.layer_steps
        if memory.bias.curvature != 0 or not memory.exact_gradients or not plain:
            yield (
                "NormalEquations accumulates k^T k and k^T v as they are: choose DotProduct(), a "
                "retention with the identity link and plain GradientDescent."
            )
        if any(gate.per != "head" for gate in gates):
            yield "NormalEquations must stay symmetric: its step and decay are per head."


def _retention(memory) -> Iterator[str]:
    retention, algorithm = memory.retention, memory.algorithm
    if memory.read == "token" and not (retention.scalar_link or retention.tangent):
        yield (
            f"{type(retention).__name__} keeps what is no multiple of the accumulator, so a "
            "chunk cannot read between its writes: choose read='chunk' or 'commit'."
        )
    if retention.decay_first and not memory.exact_gradients:
        yield (
            "decay_first=True orders decay and residual within a token, but this memory takes "
            "its gradients at the chunk's start: choose decay_first=False."
        )
    if retention.decay_first and memory.bias.curvature == 0:
        yield "decay_first=True orders decay and residual; the dot product has none: choose False."
    if retention.decay_first and isinstance(algorithm, Momentum):
        yield "decay_first=True is not defined with momentum: choose False."
    both = {"log_decay", "log_value_decay"} <= set(retention.gates)
    if both and isinstance(algorithm, Momentum):
        yield "Momentum goes with a decay of one kind of channels: choose decay or value_decay."


def _algorithm(memory) -> Iterator[str]:
    retention, algorithm = memory.retention, memory.algorithm
    name = type(algorithm).__name__
    if algorithm.steps_a_chunk and memory.read == "token":
        yield (
            f"{name} moves the memory at the chunk's end only, so tokens have no memory of their "
            "own to read: choose read='chunk' or 'commit'."
        )
    if algorithm.needs_exact and not (memory.exact_gradients and memory.bias.curvature):
        yield (
            f"{name} is defined for a linear memory with an l2 bias whose gradients are exact; "
            f"here {why_not_exact_gradients(memory) or 'the bias is the dot product'}."
        )
    if algorithm.needs_exact and algorithm.layer_steps:
        yield f"{name} has one step for its one layer: choose layer_steps=()."
    if isinstance(algorithm, Implicit):
        if isinstance(memory.architecture, Vector):
            yield "Implicit divides by the norm of the whole key, not seen by Vector: take Matrix."
        if algorithm.step is not None and algorithm.step.per == "key":
            yield "Implicit has no such form for a step per key channel: choose per head or value."
        if retention.gates and not retention.decay_first:
            yield "An implicit step is taken from the decayed memory: choose decay_first=True."
    if algorithm.needs_exact and algorithm.normalized:
        yield f"{name} sets its own step: choose normalized=False."
    plain = retention.identity and not retention.gates and not isinstance(algorithm, Momentum)
    if algorithm.lift is not None and not plain:
        yield (
            "A lift scales the sum of a chunk's steps, which must be plain: choose a retention "
            "without link or decay, and no momentum."
        )
