"""A model as a folder that other programs can read, and back.

`model.safetensors` has the weights, `config.json` says what they are; a tokenizer's file and the
programs of `decode_program` may stand beside them. docs/export.md describes the format.
"""

import dataclasses
import json
import math
import pathlib
import shutil
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import miras_jax
from miras_jax.data import DataError, Folder, Tokenizer, saved_vocabulary
from miras_jax.data.errors import need
from miras_jax.data.vocabulary import Vocabulary, load_vocabulary
from miras_jax.decode_program import Decode, lower
from miras_jax.nn import LanguageModel
from miras_jax.nn.lora import merge_lora
from miras_jax.nn.names import from_tensors, tensors
from miras_jax.training import checkpoint
from miras_jax.training.errors import UserError
from miras_jax.training.exported import (
    CONFIG,
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    WEIGHTS,
    read_config,
    read_tensors,
)


def save(
    model: LanguageModel,
    folder: str | pathlib.Path,
    *,
    dtype: str = "float32",
    step: int | None = None,
    vocabulary: Vocabulary | None = None,
    packed: bool = False,
    decode: Decode | None = None,
) -> dict[str, Any]:
    """Writes a model; the folder appears when it is complete.

    Args:
      model: the model; matrices of LoRA are added to its kernels.
      folder: where; must not exist, or be empty.
      dtype: of the weights, `float32` as they are or `bfloat16`, rounded to nearest.
      step: updates that the weights have had, if known.
      vocabulary: the tokenizer with its file; None is bytes.
      packed: whether documents began with a separator in training.
      decode: what to compile the decode step for; None leaves it out.

    Returns:
      what `config.json` says.

    Raises:
      UserError: the folder holds something, the dtype is not one of the two, or the decode step
        cannot be made as asked.
      DataError: safetensors is not installed.
    """
    out = new_folder(folder, dtype)
    model = merge_lora(model)
    weights = numbers(tensors(model), dtype)
    vocabulary = vocabulary or load_vocabulary("bytes")
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": miras_jax.__version__,
        "model": dataclasses.asdict(model.config),
        "dtype": dtype,
        "parameter_count": sum(math.prod(x.shape) for x in weights.values()),
        "step": step,
        "vocabulary": vocabulary.describe(),
        "packed": packed,
        "decode": None,
    }
    programs = {}
    if decode is not None:
        config["decode"], programs = lower(model, weights, decode)

    write(out, config, WEIGHTS, weights, vocabulary, programs)
    return config


def new_folder(folder: str | pathlib.Path, dtype: str) -> pathlib.Path:
    """Where to write, once it is known that it can be."""
    need("safetensors.numpy", "export")
    out = pathlib.Path(folder).resolve()
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} holds something already: choose another --out or remove it")
    return out


def numbers(values: Mapping[str, jax.Array], dtype: str) -> dict[str, np.ndarray]:
    """The arrays on the host, in the type of the file."""
    # Not ascontiguousarray, which makes a vector of a number.
    return {
        name: np.asarray(jax.device_get(x), dtype=jnp.dtype(dtype), order="C")
        for name, x in values.items()
    }


def write(
    out: pathlib.Path,
    config: dict[str, Any],
    name: str,
    weights: dict[str, np.ndarray],
    vocabulary: Vocabulary,
    programs: Mapping[str, bytes] = types.MappingProxyType({}),
) -> None:
    """Writes a folder beside its place, then moves it there."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
    partial.mkdir(parents=True)
    library = need("safetensors.numpy", "export")
    library.save_file(weights, partial / name, metadata={"format": config["format"]})
    for file, content in programs.items():
        (partial / file).write_bytes(content)
    if vocabulary.content:
        (partial / vocabulary.describe()["file"]).write_bytes(vocabulary.content)
    (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    partial.replace(out)


def load(folder: str | pathlib.Path) -> LanguageModel:
    """Reads a model that `save` wrote onto the first device; its parameters are float32 again.

    Raises:
      UserError: it is no such folder, of a later format, of a model that is not registered, or a
        tensor is missing, too many, or of another shape or type; names the first.
      DataError: safetensors is not installed.
    """
    folder = pathlib.Path(folder)
    config = read_config(folder)
    shapes = checkpoint.model_shapes(config, folder / CONFIG)
    expected, found = tensors(shapes), read_tensors(folder)
    check(folder / WEIGHTS, expected, found)
    return from_tensors(
        shapes, {name: jnp.asarray(found[name], x.dtype) for name, x in expected.items()}
    )


def check(path: pathlib.Path, expected: dict[str, Any], found: dict[str, np.ndarray]) -> None:
    """Refuses weights of another model."""
    for name, x in expected.items():
        if name not in found:
            raise UserError(f"{path} has no tensor {name}; its model has one of {x.shape}")
        if found[name].shape != x.shape:
            raise UserError(
                f"{path}: tensor {name} is {found[name].shape}, its model has it {x.shape}"
            )
        if (dtype := found[name].dtype.name) not in DTYPES:
            raise UserError(f"{path}: tensor {name} is {dtype}, not one of {', '.join(DTYPES)}")
    if extra := next((name for name in found if name not in expected), None):
        raise UserError(f"{path} has a tensor {extra}, which its model does not have")


def load_model(path: str | pathlib.Path) -> tuple[LanguageModel, dict[str, Any]]:
    """As `checkpoint.load_model`, of an exported folder too; the metadata also has the `step`.

    LoRA that was exported apart is read with the base it names.
    """
    from miras_jax import adapter  # which reads its base from here

    if (pathlib.Path(path) / CONFIG).is_file():
        if adapter.is_adapter(path):
            return adapter.load(path), adapter.read(path)
        return load(path), read_config(path)
    found = checkpoint.find_sound_checkpoint(pathlib.Path(path))
    model, metadata = checkpoint.read_model(found)
    return model, {**metadata, "step": int(found.name) if found.name.isdecimal() else None}


def load_vocabulary_of(path: str | pathlib.Path, metadata: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a model that `load_model` read, bytes if nothing says otherwise.

    Raises:
      UserError: its file is missing or another one, or its library is not installed.
    """
    folder = pathlib.Path(path)
    if not (folder / CONFIG).is_file():
        folder = checkpoint.find_checkpoint(folder).parent.parent
    try:
        return saved_vocabulary(metadata.get("vocabulary", {"kind": "bytes"}), Folder(str(folder)))
    except DataError as error:
        raise UserError(str(error)) from error


def load_tokenizer(path: str | pathlib.Path, metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer of `load_vocabulary_of`."""
    return load_vocabulary_of(path, metadata).tokenizer
