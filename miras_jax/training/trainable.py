"""Which parameters are trained: a tree of parameters cut in two, and put together again."""

import re
from typing import Any

import jax
from flax import nnx

from miras_jax.nn import LanguageModel, ModelConfig
from miras_jax.nn.lora import A, B, LoraConfig, add_lora
from miras_jax.nn.names import name_of
from miras_jax.training.config import TrainableConfig


def make_model(config: ModelConfig, lora: LoraConfig, key: jax.Array) -> LanguageModel:
    """A new model; without LoRA its values are those that `key` has always given."""
    model = LanguageModel(config, rngs=nnx.Rngs(key))
    return add_lora(model, lora, jax.random.fold_in(key, 0x107A))


def is_trained(name: str, trainable: TrainableConfig) -> bool:
    """Whether the parameter of this name is trained, see `nn.names`."""
    if any(re.search(pattern, name) for pattern in trainable.patterns):
        return True
    if trainable.lora.rank:
        return name.endswith((A, B))
    return not trainable.patterns


def split(tree: Any, trainable: TrainableConfig) -> tuple[Any, Any]:
    """Cuts a tree that is shaped like the parameters into what is trained and the rest.

    Both have the paths of the whole, with None, which holds no leaf, where the other has a value.
    """
    if not trainable.patterns and not trainable.lora.rank:
        return tree, None

    def part(wanted: bool) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x if is_trained(name_of(path), trainable) == wanted else None, tree
        )

    return part(True), part(False)


def combine(trained: Any, frozen: Any) -> Any:
    """Undoes `split`."""
    if frozen is None:
        return trained
    first, structure = jax.tree.flatten(trained, is_leaf=lambda x: x is None)
    second = jax.tree.leaves(frozen, is_leaf=lambda x: x is None)
    return structure.unflatten(
        [x if y is None else y for x, y in zip(first, second, strict=True)]
    )
