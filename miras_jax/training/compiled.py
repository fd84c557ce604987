"""Compiled programs stay with the run: a restart on the same kind of machine begins at once."""

import contextlib
import pathlib
import time
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from miras_jax.training.errors import SaveError

OPTION = "jax_compilation_cache_dir"
LEAST = "jax_persistent_cache_min_compile_time_secs"


@contextlib.contextmanager
def keep_compiled(directory: pathlib.Path) -> Iterator[None]:
    """Keeps what is compiled in `directory` / compiled, unless the user has chosen another place.

    The run must be locked: entries that a killed process may have cut are deleted.
    """
    if getattr(jax.config, OPTION):
        yield
        return
    cache = directory.absolute() / "compiled"
    if jax.process_index() == 0:  # the one that writes entries, too
        drop_unfinished(cache, directory / "metrics.jsonl")
    began, least = time.time_ns(), getattr(jax.config, LEAST)
    jax.config.update(LEAST, 0.0)  # a run has few programs: all are kept, small ones too
    _choose(str(cache))
    try:
        yield
    except SaveError:  # what did not fit on a full disk is cut as well
        _drop(cache, began)
        raise
    finally:
        _choose(None)
        jax.config.update(LEAST, least)


def drop_unfinished(cache: pathlib.Path, metrics: pathlib.Path) -> None:
    """Deletes the entries that may be incomplete.

    jax writes an entry in place and never overwrites it: one that a kill cut would be in the way
    for ever. An entry is known to be whole if the process lived to write metrics after it.
    """
    whole = metrics.stat().st_mtime_ns if metrics.exists() else 0
    _drop(cache, whole)


def _drop(cache: pathlib.Path, since: int) -> None:
    for entry in cache.glob("*-cache"):
        if entry.stat().st_mtime_ns >= since:
            entry.unlink()
            entry.with_name(f"{entry.name.removesuffix('-cache')}-atime").unlink(missing_ok=True)


def _choose(cache: str | None) -> None:
    jax.config.update(OPTION, cache)
    compilation_cache.reset_cache()  # else jax keeps to the place it found at its first compilation
