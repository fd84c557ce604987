"""A torn, changed or deleted file of the newest checkpoint: the one before is used, and said."""

import dataclasses
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from miras_jax import cli, export
from miras_jax.training import UserError, train
from miras_jax.training.checkpoint import load_model
from miras_jax.training.integrity import MANIFEST, fault, seal
from tests.training.toy import records


@pytest.fixture
def run(finished_toy, tmp_path):
    """A copy of the finished run with checkpoints 2, 4 and 6."""
    config = dataclasses.replace(finished_toy, directory=str(tmp_path / "run"))
    shutil.copytree(finished_toy.directory, config.directory)
    return config


def checkpoints(config):
    return pathlib.Path(config.directory, "checkpoints")


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def flip(file):
    """Flips one bit in the middle: the size stays."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def data_file(checkpoint):
    """The largest file, which holds the arrays."""
    return max(checkpoint.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)


def weights(path):
    return [np.asarray(x) for x in jax.tree.leaves(load_model(path)[0])]


def test_every_change_of_every_file_is_found(finished_toy, tmp_path):
    newest = checkpoints(finished_toy) / "6"
    assert fault(newest) is None
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert len(files) > 8
    for name in files:
        for damage in (truncate, flip, pathlib.Path.unlink):
            copy = shutil.copytree(newest, tmp_path / "6")
            damage(copy / name)
            wrong = fault(copy)
            if str(name) == "commit_success.txt":  # written last; nothing is read from it
                assert wrong is None
            elif str(name) == MANIFEST and damage is pathlib.Path.unlink:
                assert wrong is None  # as an earlier version leaves it
            else:
                assert wrong is not None, (name, damage)
                assert str(name) in wrong
            shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("damage", "file"),
    [(truncate, data_file), (flip, data_file), (pathlib.Path.unlink, "_CHECKPOINT_METADATA")],
    ids=["arrays-torn", "arrays-changed", "metadata-deleted"],
)
def test_the_run_goes_on_from_the_one_before(run, finished_toy, capsys, damage, file):
    newest = checkpoints(run) / "6"
    damage(file(newest) if callable(file) else newest / file)
    damaged = sorted(str(path.relative_to(newest)) for path in newest.rglob("*"))
    train(run)
    said = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    aside = pathlib.Path(run.directory, "bad_checkpoints", "6")
    assert len(said) == 1
    assert said[0].startswith("checkpoint 6 is damaged (")
    assert said[0].endswith(f"moved to {aside}; using {checkpoints(run)}/4")
    assert sorted(str(path.relative_to(aside)) for path in aside.rglob("*")) == damaged
    assert records(run) == records(finished_toy)
    for x, y in zip(weights(run.directory), weights(finished_toy.directory), strict=True):
        np.testing.assert_array_equal(x, y)


def test_all_damaged_is_an_error_and_nothing_is_touched(run):
    for step in (2, 4, 6):
        truncate(data_file(checkpoints(run) / str(step)))
    before = {path: path.stat().st_mtime_ns for path in checkpoints(run).rglob("*")}
    metrics = pathlib.Path(run.directory, "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged: 6 \(.*\), 4 .*, 2 .*"):
        train(run)
    assert {path: path.stat().st_mtime_ns for path in checkpoints(run).rglob("*")} == before
    assert pathlib.Path(run.directory, "metrics.jsonl").read_bytes() == metrics


def test_readers_fall_back_and_move_nothing(run, capsys):
    flip(data_file(checkpoints(run) / "6"))
    expected = weights(checkpoints(run) / "4")
    for x, y in zip(weights(run.directory), expected, strict=True):
        np.testing.assert_array_equal(x, y)
    assert export.load_model(run.directory)[1]["step"] == 4
    assert cli.main(["generate", run.directory, "--max-tokens", "1"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert all(text.startswith("checkpoint 6 is damaged (state/") for text in said)
    assert all(text.endswith(f"using {checkpoints(run)}/4") for text in said)
    assert sorted(path.name for path in checkpoints(run).iterdir()) == ["2", "4", "6"]
    with pytest.raises(UserError, match=r"no checkpoint of .*/6 can be used: 6 .*not what was"):
        load_model(checkpoints(run) / "6")  # named outright: no other will do


def test_a_checkpoint_of_an_earlier_version_is_used(run):
    (checkpoints(run) / "6" / MANIFEST).unlink()
    assert fault(checkpoints(run) / "6") is None
    load_model(run.directory)
    seal(checkpoints(run) / "6")
    assert fault(checkpoints(run) / "6") is None
