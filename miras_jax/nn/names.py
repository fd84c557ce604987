"""Parameters by name: the path of attributes in a model, as in `blocks.memory.query.kernel`."""

from collections.abc import Mapping
from typing import Any

import jax

from miras_jax.nn.model import LanguageModel


def tensors(model: LanguageModel) -> dict[str, Any]:
    """The parameters by name, in the order of the model's tree.

    A block's parameters are stacked over the layers, `[depth, ...]`, of a hybrid over the pairs,
    `[depth / 2, ...]`.
    """
    return {name_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(model)}


def name_of(path: tuple[Any, ...]) -> str:
    """The name of the leaf at a path of the model's tree, which ends in the variable's own field;
    of a module its name."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def from_tensors(shapes: LanguageModel, values: Mapping[str, Any]) -> LanguageModel:
    """The model of the structure of `shapes` with `values` by name; further ones are left out."""
    names = tensors(shapes)
    return jax.tree.unflatten(jax.tree.structure(shapes), [values[name] for name in names])
