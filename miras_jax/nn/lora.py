"""Low-rank adapters (LoRA, Hu et al., 2021, arXiv 2106.09685) on the projections of the blocks.

A projection with kernel W computes `x W + (alpha / rank) (x A) B`. The base keeps its names; A and
B are `...lora.lora_a` and `...lora.lora_b` beside the kernel, stacked over the layers as it is. B
starts at zero, so that the model is the base model until the first update.
"""

import dataclasses
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from miras_jax.nn.model import LanguageModel
from miras_jax.nn.names import from_tensors, tensors

A, B = ".lora.lora_a", ".lora.lora_b"
# Gates are few numbers that need float32 and say how a memory forgets: adapted only if asked for.
ALL_BUT_GATES = (r"^(?!.*\bgates\b)",)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank matrices beside the projections of the blocks."""

    rank: int = 0
    """Rank of the matrices; 0 adds none."""
    alpha: float | None = None
    """What they add is multiplied by alpha / rank; None takes twice the rank."""
    targets: tuple[str, ...] = ()
    """Patterns (regular expressions) of the projections that get them, searched for in names such
    as blocks.memory.query or blocks.swiglu.down; empty takes all but those of the gates."""

    def __post_init__(self):
        # Read from JSON, what was a tuple is a list.
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 0:
            raise ValueError(f"lora.rank must not be negative, got {self.rank}.")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ValueError(f"lora.alpha must be positive and finite, got {self.alpha}.")
        for pattern in self.targets:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"lora.targets {pattern!r} is no pattern: {error}.") from None

    @property
    def scale(self) -> float:
        """What the product of the matrices is multiplied by, alpha / rank."""
        return 2.0 if self.alpha is None else self.alpha / self.rank


class LoraLinear(nnx.LoRALinear):
    """flax's layer with the factor alpha / rank, which it has not."""

    scale = 1.0

    def __call__(self, x: jax.Array) -> jax.Array:
        """Projects x `[..., inputs]` to `[..., outputs]`."""
        return nnx.Linear.__call__(self, x) + self.scale * self.lora(x)


def add_lora(model: LanguageModel, config: LoraConfig, key: jax.Array) -> LanguageModel:
    """Puts matrices of rank `config.rank` beside the targets, in place; with rank 0 none.

    Args:
      model: a model without any.
      config: which and how.
      key: for A, which starts as flax's does (He uniform); B starts at zero.

    Raises:
      ValueError: a pattern of the targets matches no projection.
    """
    if not config.rank:
        return model
    # The output layer is not a target: it is read as a matrix, not called.
    found = {
        ".".join(("blocks", *map(str, path))): path
        for path, module in nnx.iter_modules(model.blocks)
        if isinstance(module, nnx.Linear)
    }
    for pattern in config.targets:
        if not any(re.search(pattern, name) for name in found):
            raise ValueError(
                f"lora.targets {pattern!r} matches no projection of {model.config.memory}, which"
                f" has {', '.join(sorted(found))}."
            )
    patterns = config.targets or ALL_BUT_GATES
    for number, (name, path) in enumerate(sorted(found.items())):
        if any(re.search(pattern, name) for pattern in patterns):
            *outer, last = path
            parent = model.blocks
            for step in outer:
                parent = getattr(parent, step)
            new = _adapted(getattr(parent, last), config, jax.random.fold_in(key, number))
            setattr(parent, last, new)
    return model


def _adapted(base: nnx.Linear, config: LoraConfig, key: jax.Array) -> LoraLinear:
    """The projection, stacked over the layers, with matrices beside it."""

    def make(key):
        return LoraLinear(
            base.in_features,
            base.out_features,
            lora_rank=config.rank,
            use_bias=base.use_bias,
            dtype=base.dtype,
            lora_dtype=base.dtype,
            rngs=nnx.Rngs(key),
        )

    layer = jax.vmap(make)(jax.random.split(key, base.kernel.shape[0]))
    layer.kernel, layer.bias, layer.scale = base.kernel, base.bias, config.scale
    return layer


def merged(values: Mapping[str, jax.Array], scale: float) -> dict[str, jax.Array]:
    """The parameters by name with every A B added to its kernel, and without A and B.

    Args:
      values: of a model with or without matrices, float32.
      scale: alpha / rank, see `LoraConfig.scale`.
    """
    found = {name: x for name, x in values.items() if not name.endswith((A, B))}
    for name in values:
        if name.endswith(A):
            stem = name.removesuffix(A)
            # In full float32 also where products default to less.
            product = jnp.matmul(values[name], values[stem + B], precision="highest")
            found[f"{stem}.kernel"] = found[f"{stem}.kernel"] + scale * product
    return found


def merge_lora(model: LanguageModel) -> LanguageModel:
    """A model without matrices that computes the same, up to rounding; without any the model."""
    layers = [layer for _, layer in nnx.iter_modules(model) if isinstance(layer, LoraLinear)]
    if not layers:
        return model
    shapes = jax.eval_shape(
        lambda key: LanguageModel(model.config, rngs=nnx.Rngs(key)), jax.random.key(0)
    )
    return from_tensors(shapes, merged(tensors(model), layers[0].scale))
