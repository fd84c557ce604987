"""What a run can begin from: the weights of a run, of one checkpoint or of an exported folder."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from miras_jax.data import DataError, Folder, Vocabulary, saved_vocabulary
from miras_jax.nn.lora import LoraConfig
from miras_jax.training import checkpoint, exported
from miras_jax.training.errors import UserError
from miras_jax.training.state import State

Keys = tuple[str, ...]
Shape = tuple[int, ...]


def keys_of(path: tuple[Any, ...]) -> Keys:
    """What a path of the state's tree is called in a checkpoint, step by step."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights that lie somewhere, and what is written beside them.

    Attributes:
      folder: the checkpoint or the exported folder.
      metadata: of the checkpoint, or what `config.json` says.
      is_export: which of the two.
    """

    folder: pathlib.Path
    metadata: Mapping[str, Any]
    is_export: bool

    @property
    def config(self) -> Mapping[str, Any]:
        """What is known of the run's configuration: at least "model"."""
        return self.metadata if self.is_export else self.metadata.get("config", {})

    @property
    def model(self) -> Mapping[str, Any]:
        """The fields of its `ModelConfig`."""
        return self.config.get("model", {})

    @property
    def lora(self) -> LoraConfig:
        """The LoRA whose matrices are among the weights; an exported folder has merged them."""
        return LoraConfig() if self.is_export else checkpoint.lora_of(self.config)

    @property
    def files(self) -> pathlib.Path:
        """The folder of the tokenizer's file: of the run, or the exported one."""
        return self.folder if self.is_export else self.folder.parent.parent

    def vocabulary(self) -> Vocabulary:
        """The vocabulary of its tokens, bytes if nothing says otherwise.

        Raises:
          UserError: its file is missing or another one, or its library is not installed.
        """
        try:
            described = self.metadata.get("vocabulary", {"kind": "bytes"})
            return saved_vocabulary(described, Folder(str(self.files)))
        except DataError as error:
            raise UserError(str(error)) from error

    @functools.cached_property
    def state(self) -> dict[Keys, Shape]:
        """The shapes of all arrays of the state by their place; none of an exported folder."""
        if self.is_export:
            return {}
        state = ocp.checkpointables_metadata(self.folder).metadata["state"]
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return {keys_of(path): tuple(x.shape) for path, x in leaves}

    @functools.cached_property
    def _tensors(self) -> dict[str, np.ndarray]:
        return exported.read_tensors(self.folder)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of the parameters, by name."""
        if self.is_export:
            return {name: x.shape for name, x in self._tensors.items()}
        return {
            ".".join(keys[1:]).removesuffix(".value"): shape
            for keys, shape in self.state.items()
            if keys[0] == "params"
        }

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Parameters by name, each laid out as it is asked for."""
        if not self.is_export:
            return checkpoint.load_tensors(self.folder, wanted) if wanted else {}

        def place(x: jax.ShapeDtypeStruct, values: np.ndarray) -> jax.Array:
            values = values.astype(x.dtype)
            return jax.make_array_from_callback(x.shape, x.sharding, lambda at: values[at])

        return {name: place(x, self._tensors[name]) for name, x in wanted.items()}

    def read_state(self, wanted: State) -> State:
        """The whole state, which has the structure and the shapes of `wanted`."""
        return ocp.load_checkpointables(self.folder, {"state": wanted})["state"]


def open_source(path: str) -> Source:
    """Looks at what lies at `path`; the weights are read later.

    Raises:
      UserError: there is neither a checkpoint nor an exported folder of this library.
    """
    folder = pathlib.Path(path)
    if (folder / exported.CONFIG).is_file():
        return Source(folder, exported.read_config(folder), True)
    found = checkpoint.find_checkpoint(folder)
    # Not by Orbax, which would start the devices: how many there are may not be settled yet.
    metadata = json.loads((found / "_CHECKPOINT_METADATA").read_text()).get("custom_metadata") or {}
    if "model" not in metadata.get("config", {}):
        raise UserError(f"{found} does not say which model it is of: not of this library")
    return Source(found, metadata, False)
