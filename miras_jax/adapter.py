"""What a run with LoRA learned, apart from its base: a small folder, and the two put together.

`adapter.safetensors` has the parameters that were trained, the matrices and what else the run's
patterns named; `config.json` says of which model, and which base: its place and a checksum of the
parameters that were not trained.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import miras_jax
from miras_jax import export
from miras_jax.data.vocabulary import Vocabulary
from miras_jax.nn import LanguageModel
from miras_jax.nn.lora import LoraConfig, merge_lora
from miras_jax.nn.names import from_tensors, tensors
from miras_jax.training import checkpoint, exported
from miras_jax.training.config import TrainableConfig
from miras_jax.training.errors import UserError
from miras_jax.training.trainable import is_trained

FORMAT, WEIGHTS = "miras_jax adapter", "adapter.safetensors"


def is_adapter(path: str | pathlib.Path) -> bool:
    """Whether a folder with a config.json says that it is one."""
    try:
        return json.loads((pathlib.Path(path) / exported.CONFIG).read_text())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read(folder: str | pathlib.Path) -> dict[str, Any]:
    """What `config.json` says.

    Raises:
      UserError: there is none, or it is not of this format.
    """
    return exported.read_config(folder, FORMAT)


def save(
    model: LanguageModel,
    folder: str | pathlib.Path,
    metadata: Mapping[str, Any],
    *,
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """Writes what was trained; the folder appears when it is complete.

    Args:
      model: of a run with LoRA.
      folder: where; must not exist, or be empty.
      metadata: of the model, as `export.load_model` gives it.
      vocabulary: the tokenizer with its file.

    Returns:
      what `config.json` says.

    Raises:
      UserError: the model is of no run with LoRA, or the folder holds something.
      DataError: safetensors is not installed.
    """
    config = metadata.get("config", metadata)
    trainable = _trainable(config)
    if not trainable.lora.rank:
        raise UserError("--lora separate is of a run with LoRA: this model has none")
    out, values = export.new_folder(folder, "float32"), tensors(model)
    trained = {name: x for name, x in values.items() if is_trained(name, trainable)}
    weights = export.numbers(trained, "float32")
    if "base" in metadata:
        base = metadata["base"]["path"]
    else:
        base = str(pathlib.Path(config["start"]["checkpoint"] or "").absolute())
    said = {
        "format": FORMAT,
        "format_version": exported.FORMAT_VERSION,
        "library_version": miras_jax.__version__,
        "model": config["model"],
        "trainable": config["trainable"],
        "base": {"path": base, "sha256": _sha256(values, trainable)},
        "parameter_count": sum(math.prod(x.shape) for x in weights.values()),
        "step": metadata["step"],
        "vocabulary": vocabulary.describe(),
        "packed": bool(metadata.get("packed")),
    }
    export.write(out, said, WEIGHTS, weights, vocabulary)
    return said


def load(folder: str | pathlib.Path, base: str | None = None) -> LanguageModel:
    """Reads a folder that `save` wrote together with its base, onto the first device.

    Args:
      folder: the folder.
      base: run, checkpoint or exported folder; None takes the one that the run began with.

    Raises:
      UserError: the base is not there, or has other weights; or what `export.load` refuses.
      DataError: safetensors is not installed.
    """
    folder, config = pathlib.Path(folder), read(folder)
    path = base or config["base"]["path"]
    try:
        whole, _ = export.load_model(path)
    except UserError as error:
        raise UserError(f"{folder} is LoRA alone and needs its base: {error}") from None
    trainable = _trainable(config)
    shapes = checkpoint.model_shapes(config, folder / exported.CONFIG)
    expected = tensors(shapes)
    found = exported.read_tensors(folder, WEIGHTS)
    own = {name: x for name, x in expected.items() if is_trained(name, trainable)}
    export.check(folder / WEIGHTS, own, found)
    values = tensors(merge_lora(whole)) | {name: jnp.asarray(x) for name, x in found.items()}
    rest = {name for name in expected if name not in own}
    if not rest <= values.keys() or _sha256(values, trainable) != config["base"]["sha256"]:
        raise UserError(
            f"{path} is not the base of {folder}: its weights are not those that it was trained"
            " with; name the base, or one that was exported from it in float32"
        )
    return from_tensors(shapes, values)


def _trainable(config: Mapping[str, Any]) -> TrainableConfig:
    found = config.get("trainable", {})
    return TrainableConfig(tuple(found.get("patterns", ())), LoraConfig(**found.get("lora", {})))


def _sha256(values: Mapping[str, jax.Array], trainable: TrainableConfig) -> str:
    """Of the parameters that are not trained, with their names."""
    digest = hashlib.sha256()
    for name in sorted(values):
        if not is_trained(name, trainable):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(jax.device_get(values[name])).tobytes())
    return digest.hexdigest()
