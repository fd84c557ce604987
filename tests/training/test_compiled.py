"""The folder of compiled programs: what a kill may have cut is not kept."""

import os
import pathlib

import jax
import pytest

from miras_jax.training.compiled import OPTION, drop_unfinished, keep_compiled


@pytest.fixture
def unset():
    """No folder is chosen, and the smallest programs are kept."""
    changes = {OPTION: None, "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def touch(path: pathlib.Path, seconds: int) -> None:
    path.write_text("")
    os.utime(path, (seconds, seconds))


@pytest.mark.parametrize(("last_record", "kept"), [(20, {"old-cache", "old-atime"}), (None, set())])
def test_entries_after_the_last_record_are_deleted(tmp_path, last_record, kept):
    cache, metrics = tmp_path / "compiled", tmp_path / "metrics.jsonl"
    cache.mkdir()
    for name, seconds in (("old", 10), ("same", 20), ("new", 30)):
        touch(cache / f"{name}-cache", seconds)
    touch(cache / "old-atime", 30)  # when it was read
    touch(cache / "new-atime", 30)
    if last_record:
        touch(metrics, last_record)
    else:
        (cache / "old-atime").unlink()
    drop_unfinished(cache, metrics)
    assert {path.name for path in cache.iterdir()} == kept


def test_programs_are_kept_in_the_run_while_it_lasts(tmp_path, unset):
    with keep_compiled(tmp_path):
        jax.jit(lambda x: x * 3 + 1)(1.0)
        assert list((tmp_path / "compiled").glob("*-cache"))
    assert getattr(jax.config, OPTION) is None


def test_the_user_may_choose_another_place(tmp_path, compiled):
    chosen = getattr(jax.config, OPTION)
    assert chosen
    with keep_compiled(tmp_path):
        assert getattr(jax.config, OPTION) == chosen
    assert not list(tmp_path.iterdir())
