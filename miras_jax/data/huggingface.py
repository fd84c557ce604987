"""Hugging Face `datasets` as a source: `hf:NAME:SPLIT`, imported only when it is asked for.

NAME is a folder that `save_to_disk` wrote, or a data set of the Hub (`allenai/c4,en` with a
configuration), or `BUILDER=FILES`, such as `json=data/*.jsonl`, which is
`load_dataset(BUILDER, data_files=FILES)`.
"""

import functools
import hashlib
import os
from typing import Any

from miras_jax.data.errors import DataError, need

PREFIX = "hf:"


@functools.lru_cache(maxsize=4)
def load(source: str) -> Any:
    """Loads a split, memory-mapped; rows are read when they are asked for.

    Raises:
      DataError: the source is not of this form, cannot be loaded, or the extra is not installed.
    """
    name, colon, split = source.removeprefix(PREFIX).rpartition(":")
    if not colon or not name or not split:
        raise DataError(f"{source} must be hf:NAME:SPLIT, such as hf:allenai/c4,en:train")
    datasets = need("datasets", "datasets")
    datasets.disable_progress_bars()
    builder, _, files = name.partition("=")
    try:
        if os.path.isdir(name):
            found = datasets.load_from_disk(name)
            return found[split] if isinstance(found, datasets.DatasetDict) else found
        if files:
            return datasets.load_dataset(builder, data_files=files, split=split)
        path, _, config = name.partition(",")
        return datasets.load_dataset(path, config or None, split=split)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source} cannot be loaded: {error}") from error


def sha256_of(source: str, field: str) -> str:
    """sha256 of all texts as UTF-8, a zero byte after each: `datasets` says nothing of its own that
    depends on the content alone."""
    digest, table = hashlib.sha256(), load(source)
    for first in range(0, len(table), 1024):
        for text in table[first : first + 1024][field]:
            digest.update(str(text).encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
