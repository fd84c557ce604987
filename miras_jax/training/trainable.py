"""Which parameters are trained: a tree of parameters cut in two, and put together again."""

import re
from typing import Any

import jax
from flax import nnx

from miras_jax.nn import LanguageModel, ModelConfig
from miras_jax.nn.lora import A, B, LoraConfig, add_lora
from miras_jax.nn.names import name_of, tensors
from miras_jax.training.config import TrainableConfig
from miras_jax.training.errors import UserError

EVERYTHING = TrainableConfig()


def make_model(config: ModelConfig, lora: LoraConfig, key: jax.Array) -> LanguageModel:
    """A new model; LoRA changes none of the other values.

    Raises:
      UserError: a target of LoRA matches nothing.
    """
    model = LanguageModel(config, rngs=nnx.Rngs(key))
    try:
        return add_lora(model, lora, jax.random.fold_in(key, 0x107A))
    except ValueError as error:
        raise UserError(f"trainable.{error}") from error


def is_trained(name: str, trainable: TrainableConfig) -> bool:
    """Whether the parameter of this name is trained, see `nn.names`."""
    if any(re.search(pattern, name) for pattern in trainable.patterns):
        return True
    if trainable.lora.rank:
        return name.endswith((A, B))
    return not trainable.patterns


def check_patterns(params: LanguageModel, trainable: TrainableConfig) -> None:
    """Refuses a pattern that matches no parameter."""
    names = [*tensors(params)]
    for pattern in trainable.patterns:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(
                f"trainable.patterns {pattern!r} matches no parameter; names are such as"
                f" {', '.join(names[:: max(len(names) // 4, 1)])}"
            )


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
    return structure.unflatten([x if y is None else y for x, y in zip(first, second, strict=True)])
