"""Where arrays live on a mesh: one table of path rules for parameters and what derives of them.

Mesh axes: `data` (rows of the batch, weights replicated), `fsdp` (rows of the batch, weights
sharded and gathered where they are used), `sequence` (tokens of a row, weights replicated) and
`tensor` (heads and hidden units). The models run unchanged without a mesh. Over `sequence` every
device has a contiguous part of the residual stream; what reads across tokens, `lagged` in
`nn/layers.py` and the memories in `nn/parallel.py`, exchanges what it needs itself.
"""

import math
import re

import jax
from flax import nnx
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH = ("data", "fsdp")

# First match decides; a spec is for the trailing dimensions, so stacked layers need no rule.
RULES: tuple[tuple[str, P], ...] = (
    (r"gates\b.*lora_b", P()),  # [rank, H]
    (r"(output|down)\b.*lora_a", P("tensor", None)),  # [H V, rank]
    (r"(output|down)\b.*lora_b", P(None, "fsdp")),  # [rank, dim]
    (r"lora_a", P("fsdp", None)),  # [dim, rank]
    (r"lora_b", P(None, "tensor")),  # [rank, H K]
    (r"embedding", P("tensor", "fsdp")),  # [vocabulary, dim]
    (r"head\b.*kernel", P("fsdp", "tensor")),  # [dim, vocabulary]
    (r"convolution", P(None, "tensor")),  # [width, H K]
    (r"gates\b.*kernel", P("fsdp", None)),  # [dim, H] or [dim, rank]
    (r"gates\b.*bias", P()),
    (r"(query|key|value|inputs|output_gate|up)\b.*kernel", P("fsdp", "tensor")),  # [dim, H K]
    (r"(output|down)\b.*kernel", P("tensor", "fsdp")),  # [H V, dim]
    (r"(learned|shift)\b", P()),
    (r"start\b", P("tensor", None, "fsdp")),  # [H, inputs, outputs]
    (r"norm\b.*(scale|bias)", P()),
)


def spec_of(path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> P:
    """The spec of a parameter, or of anything whose path ends like a parameter's.

    Args:
      path: `jax.tree_util.keystr` of its path.
      shape: its shape; the rule is laid on the trailing dimensions.
      mesh: concrete or abstract; an axis that does not divide its dimension is dropped.

    Raises:
      ValueError: no rule matches.
    """
    if not shape:
        return P()
    for pattern, spec in RULES:
        if re.search(pattern, path):
            names = (None,) * (len(shape) - len(spec)) + tuple(spec)
            fits = [
                n if n and size % mesh.shape[n] == 0 else None
                for n, size in zip(names, shape, strict=True)
            ]
            return P(*fits)
    raise ValueError(f"No sharding rule matches the parameter {path} of shape {shape}.")


def constrain(x: jax.Array, *spec) -> jax.Array:
    """Lays x on the mesh in force; without one, does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*spec))


def sequence(total: int) -> str | None:
    """The axis over which the `total` tokens of a row lie.

    None where there is no such axis of several devices, or where it does not divide the tokens, as
    in generation: each device along it then has them all.
    """
    parts = axis_size("sequence")
    return "sequence" if parts > 1 and total % parts == 0 else None


def axis_size(*names: str) -> int:
    """Devices along axes of the mesh in force together; an axis that it has not counts 1."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(name, 1) for name in names)


def gather(module: nnx.Module) -> nnx.Module:
    """The module with its weights gathered over fsdp, to be called where they are used.

    Said here and not left to the compiler: with batch and weights on three axes and a shard_map in
    the layer, XLA's partitioner resharded activations instead and returned wrong gradients.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return module

    def whole(path, x):
        spec = spec_of(jax.tree_util.keystr(path), x.shape, mesh)
        return constrain(x, *(None if name == "fsdp" else name for name in spec))

    return jax.tree_util.tree_map_with_path(whole, module)
