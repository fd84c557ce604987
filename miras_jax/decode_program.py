"""The decode step as StableHLO: one token a row in, logits out, the state in and out.

`jax.export` lowers two programs for each platform: `start` makes the state before the first token
and `decode` reads one token. Both take the weights as arguments, in the order and the dtype of
`model.safetensors`, so that the programs are small and the weights exist once. All arguments and
results are plain arrays by position; `config.json` names them.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from kernels_pallas import dispatch
from miras_jax.data.errors import need
from miras_jax.memory import Attention
from miras_jax.nn import LanguageModel
from miras_jax.training.errors import UserError

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class Decode:
    """What the decode step is lowered for.

    Attributes:
      batch: rows that are read at once.
      platforms: of `cpu`, `cuda` and `tpu`; none of them has to be at hand.
      capacity: tokens that will be read in all; for `transformer`, whose state grows, and only it.

    Raises:
      UserError: one is out of range.
    """

    batch: int = 1
    platforms: tuple[str, ...] = ("cpu",)
    capacity: int | None = None

    def __post_init__(self):
        for name in ("batch", "capacity"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise UserError(f"{name} of the decode step must be at least 1, got {count}")
        if not self.platforms or (unknown := set(self.platforms) - set(PLATFORMS)):
            found = ", ".join(sorted(unknown)) if self.platforms else "none"
            raise UserError(f"platforms must be of {', '.join(PLATFORMS)}, got {found}")


def lower(
    model: LanguageModel, weights: Mapping[str, np.ndarray], options: Decode
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Lowers `start` and `decode`.

    Args:
      model: the model; only its shapes count.
      weights: by name and in the order of the model's tree; only shapes and dtypes count.
      options: batch, platforms and capacity.

    Returns:
      the signature, as plain JSON values, and the files by name.

    Raises:
      UserError: a capacity is missing or not used, or the programs do not lower for a platform.
      DataError: flatbuffers is not installed.
    """
    need("flatbuffers", "export")
    grows = isinstance(model.config.build_memory(), Attention)
    if grows != (options.capacity is not None):
        raise UserError(
            f"the state of {model.config.memory} grows with every token: say how many it will read,"
            " --capacity"
            if grows
            else f"the state of {model.config.memory} has constant size: leave --capacity out"
        )
    leaves, structure = jax.tree.flatten(model)
    dtypes = [x.dtype for x in leaves]

    def build(arrays) -> LanguageModel:
        arrays = [x.astype(dtype) for x, dtype in zip(arrays, dtypes, strict=True)]
        return jax.tree.unflatten(structure, arrays)

    def initial(arrays):
        return build(arrays).init_state(options.batch, options.capacity)

    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in weights.values()]
    state = jax.eval_shape(initial, shapes)
    state_leaves, state_structure = jax.tree.flatten(state)
    tokens = jax.ShapeDtypeStruct((options.batch,), jnp.int32)

    def start(*arrays):
        return tuple(jax.tree.leaves(initial(arrays)))

    def decode(*inputs):
        arrays, (token, *before) = inputs[: len(shapes)], inputs[len(shapes) :]
        logits, after = build(arrays)(token[:, None], jax.tree.unflatten(state_structure, before))
        return (logits[:, 0], *jax.tree.leaves(after))

    logits = jax.ShapeDtypeStruct((options.batch, model.config.vocab_size), jnp.float32)
    named_weights = _describe(zip(weights, shapes, strict=True))
    named_state = _describe(
        ("state." + jax.tree_util.keystr(path, simple=True, separator="."), x)
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    )
    programs = {"start": (start, shapes), "decode": (decode, [*shapes, tokens, *state_leaves])}
    named_tokens, named_logits = _describe([("tokens", tokens)]), _describe([("logits", logits)])
    platforms = sorted(set(options.platforms))
    signature = {
        "batch": options.batch,
        "capacity": options.capacity,
        "start": {"inputs": named_weights, "outputs": named_state},
        "decode": {
            "inputs": [*named_weights, *named_tokens, *named_state],
            "outputs": [*named_logits, *named_state],
        },
        "files": {p: {name: f"{name}.{p}.jax_export" for name in programs} for p in platforms},
    }
    files = {}
    for platform, names in signature["files"].items():
        for name, (function, arguments) in programs.items():
            files[names[name]] = _lower(function, arguments, platform)
    return signature, files


def _lower(function, arguments, platform: str) -> bytes:
    # All arguments stay, used or not, so that the signature holds. The forms are those of a CPU on
    # every platform: no kernel, which would tie the program to a version of its compiler.
    jitted = jax.jit(function, keep_unused=True)
    try:
        with dispatch.override(platform="cpu"):
            return bytes(jax.export.export(jitted, platforms=[platform])(*arguments).serialize())
    except NotImplementedError as error:
        raise UserError(f"the decode step does not lower for {platform}: {error}") from error


def _describe(named) -> list[dict[str, Any]]:
    return [{"name": name, "shape": list(x.shape), "dtype": x.dtype.name} for name, x in named]


class DecodeProgram:
    """The programs of an exported folder with its weights, for the platform at hand.

    Attributes:
      batch: rows that it reads at once.
    """

    def __init__(self, folder: str | pathlib.Path):
        from miras_jax.export import read_config, read_tensors

        need("flatbuffers", "export")
        folder = pathlib.Path(folder)
        signature = read_config(folder)["decode"] or {"files": {}}
        here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if here not in signature["files"]:
            has = ", ".join(signature["files"]) or "none"
            raise UserError(f"{folder} has no decode step for {here}, it has {has}")
        self.batch = signature["batch"]
        self._start, self._decode = (
            jax.jit(jax.export.deserialize(bytearray((folder / name).read_bytes())).call)
            for name in (signature["files"][here][part] for part in ("start", "decode"))
        )
        found, inputs = read_tensors(folder), signature["start"]["inputs"]
        self._weights = [jnp.asarray(found[x["name"]]) for x in inputs]

    def start(self) -> tuple[jax.Array, ...]:
        """The state before the first token, as `config.json` names it."""
        return self._start(*self._weights)

    def __call__(
        self, tokens: jax.Array, state: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Reads tokens int32 `[batch]`: the logits `[batch, vocab_size]` and the state after."""
        logits, *state = self._decode(*self._weights, jnp.asarray(tokens, jnp.int32), *state)
        return logits, tuple(state)
