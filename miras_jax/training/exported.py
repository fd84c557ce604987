"""An exported folder as it is read: what `config.json` says and the weights by name.

docs/export.md describes the format.
"""

import json
import pathlib
from typing import Any

import numpy as np

from miras_jax.data.errors import need
from miras_jax.training.errors import UserError

FORMAT = "miras_jax"
FORMAT_VERSION = 1
"""Raised when a reader of the version before would misread a folder."""
DTYPES = ("float32", "bfloat16")
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def read_config(folder: str | pathlib.Path, expected: str = FORMAT) -> dict[str, Any]:
    """What `config.json` says, of the format `expected`.

    Raises:
      UserError: there is none, or it is not of this format.
    """
    path = pathlib.Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no exported model in {folder}: it has no {CONFIG}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != expected:
        raise UserError(f"{path} is not of an exported model: it does not say format {expected!r}")
    if (version := config.get("format_version")) != FORMAT_VERSION:
        raise UserError(f"{path} is of format {version}, this version reads {FORMAT_VERSION}")
    return config


def read_tensors(folder: str | pathlib.Path, file: str = WEIGHTS) -> dict[str, np.ndarray]:
    """The weights as they lie in `file`, by name.

    Raises:
      UserError: the file is missing or damaged.
      DataError: safetensors is not installed.
    """
    library, path = need("safetensors.numpy", "export"), pathlib.Path(folder) / file
    try:
        return library.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{folder} has lost its {file}") from None
    except need("safetensors", "export").SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}") from None
