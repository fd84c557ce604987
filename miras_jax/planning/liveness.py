"""An estimate of a step's temporaries from its equations alone, for machines without a compiler.

The loss and its gradient are traced for the rows of one device. Going through the equations in
order, an array lives from the equation that makes it to the last that reads it. Elementwise results
with one reader, and views, are taken to be fused. What a compiler reorders or reuses further is not
seen: see `TOLERANCE`.
"""

import math
from collections.abc import Mapping

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from flax import nnx
from jax.interpreters import partial_eval

from kernels_pallas import override
from miras_jax.nn import LanguageModel, ModelConfig
from miras_jax.planning.arrays import Arrays
from miras_jax.planning.mesh import piece, sizes
from miras_jax.training.config import TrainConfig
from miras_jax.training.step import nats

TOLERANCE = 1.25
"""The estimate is within this factor of what XLA's compiler for CPUs takes: it orders the equations
and reuses buffers in its own way. Measured were 0.84 to 1.11 on six models and meshes
(tests/planning/test_liveness.py). Of 1.3B parameters, where kernels keep more on chip, a TPU's
compiler took 0.6 of it."""

VIEWS = (
    *("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type", "copy"),
    *("stop_gradient", "optimization_barrier", "sharding_constraint", "iota", "slice", "rev"),
)
FUSED = (
    *("add", "sub", "mul", "div", "neg", "exp", "log", "log1p", "expm1", "tanh", "logistic", "max"),
    *("min", "pow", "integer_pow", "sqrt", "rsqrt", "select_n", "eq", "ne", "lt", "le", "gt", "ge"),
    *("and", "or", "not", "sign", "abs", "square", "add_any", "cos", "sin", "erf", "clamp"),
    *("transpose", "pad", "exp2", "is_finite"),
)


def temporaries(config: TrainConfig, arrays: Arrays, *, packed: bool, platform: str) -> float:
    """Estimates the bytes of temporaries on each device: gradients, activations, gathered weights.

    Args:
      config: the run.
      arrays: see `arrays_of`.
      packed: whether rows hold several documents.
      platform: "gpu" or "cpu", which decides the form of the memories.
    """
    mesh, model = sizes(config.mesh), config.model
    rows, window = piece(config)
    gradient = jax.value_and_grad(nats, has_aux=True)
    jaxpr = _traced(gradient, config.model, (rows, window), packed, platform)
    peak = _peak(jaxpr, _shared(arrays))
    # The residual stream lies whole on every device of a tensor axis, the rest is shared out.
    stream = model.depth * rows * window * model.dim * jnp.dtype(model.dtype).itemsize
    peak = min(stream, peak) + max(peak - stream, 0) / mesh["tensor"]
    # Sums of gradients over the microbatches, and the embedding, gathered, with its gradient.
    table = 4 * model.vocab_size * model.dim / mesh["tensor"]
    gathered = 2 * table if mesh["fsdp"] > 1 else 0
    return peak + arrays.device_bytes + gathered


def _traced(
    function, model: ModelConfig, batch: tuple[int, int], packed: bool, platform: str
) -> jex.Jaxpr:
    """The equations of a function of the model and a batch of rows and tokens. Over a sequence axis
    some memories hold all tokens of fewer heads, which is as much."""
    rows, window = batch
    params = jax.eval_shape(lambda key: LanguageModel(model, rngs=nnx.Rngs(key)), jax.random.key(0))
    arrays = {"tokens": jax.ShapeDtypeStruct((rows, window + 1), jnp.int32)}
    if packed:
        arrays["segment_ids"] = jax.ShapeDtypeStruct((rows, window), jnp.int32)
    with override(platform=platform):
        traced = jax.make_jaxpr(function)(params, arrays)
    return partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))[0]


def _shared(arrays: Arrays) -> dict[tuple[int, ...], float]:
    """The part that a device has of arrays that are shaped like whole parameters: these, and their
    gradients."""
    return {row.shape: row.device_bytes / (4 * row.count) for row in arrays.parameters}


def _peak(jaxpr: jex.Jaxpr, shared: Mapping[tuple[int, ...], float]) -> float:
    """Most bytes alive at once of what the equations make, results included."""
    readers: dict = {}
    for equation in jaxpr.eqns:
        for x in set(map(id, _variables(equation.invars))):
            readers[x] = readers.get(x, 0) + 1
    outputs = set(map(id, _variables(jaxpr.outvars)))
    # The last equation that reads an array, through views and fused operations.
    last: dict = {x: len(jaxpr.eqns) for x in outputs}
    sources: dict = {}
    for index in range(len(jaxpr.eqns) - 1, -1, -1):
        equation = jaxpr.eqns[index]
        made = list(map(id, equation.outvars))
        free = _is_free(equation, readers, outputs)
        until = max((last.get(x, index) for x in made), default=index) if free else index
        for x in _variables(equation.invars):
            last[id(x)] = max(last.get(id(x), 0), until)
        if free:
            sources.update(dict.fromkeys(made))
    alive, peak = 0.0, 0.0
    ends: dict[int, float] = {}
    for index, equation in enumerate(jaxpr.eqns):
        made = 0.0
        for x in equation.outvars:
            if id(x) in sources or isinstance(x, jex.DropVar):
                continue
            size = _bytes(x, shared)
            made += size
            at = last.get(id(x), index)
            ends[at] = ends.get(at, 0.0) + size
        inside = max((_peak(inner, shared) for inner in _inner(equation)), default=0.0)
        if equation.primitive.name not in ("scan", "while"):
            inside = max(inside - made, 0.0)  # its results are ours
        peak = max(peak, alive + made + inside)
        alive += made - ends.pop(index, 0.0)
    return peak


def _is_free(equation, readers, outputs) -> bool:
    name = equation.primitive.name
    if any(id(x) in outputs for x in equation.outvars):
        return False
    if name in VIEWS:
        return True
    return name in FUSED and all(readers.get(id(x), 0) <= 1 for x in equation.outvars)


def _variables(atoms) -> list:
    return [x for x in atoms if not isinstance(x, jex.Literal)]


def _bytes(x, shared) -> float:
    aval = x.aval
    return math.prod(aval.shape) * aval.dtype.itemsize * shared.get(tuple(aval.shape), 1.0)


def _inner(equation):
    """The equations inside one: of a loop's body, a call, what is computed again."""
    for value in equation.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, jex.ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, jex.Jaxpr):
                yield each
