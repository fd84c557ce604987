"""A full disk: what could not be written is said, and the last good checkpoint is left intact.

The limit is real. A process may limit the size of the files it writes (RLIMIT_FSIZE) without being
root: `write` then fails in the kernel, half way through a file, as on a full disk, and says "File
too large" for "No space left on device". Where the tests may mount, a small tmpfs is filled too.
"""

import pathlib
import subprocess

import pytest

from miras_jax.training.integrity import fault
from tests.training.toy import records, toy

# The arrays of a checkpoint are a file of 97 kB, its largest; a record has 0.5 kB.
ARRAYS, TWO_RECORDS = 80_000, 1_500


def experiment(folder: pathlib.Path):
    """Writes the toy as a file that a process can read; returns its path and configuration."""
    path = folder / "experiment.py"
    path.write_text(
        "import pathlib\nfrom tests.training.toy import toy\n"
        f"config = toy(pathlib.Path({str(folder)!r}))\n"
    )
    return str(path), toy(folder)


def left(config) -> list[str]:
    """The names of the checkpoints; each is sound. What a thread of the library was still writing
    when the run ended may lie beside them, until the next start."""
    found = sorted(pathlib.Path(config.directory, "checkpoints").iterdir())
    found = [path for path in found if "tmp" not in path.name]
    assert [fault(path) for path in found] == [None] * len(found)
    return [path.name for path in found]


def assert_said(ended, what: str, why: str, config, good: int) -> None:
    """One sentence: what could not be written, why, and where to go on from."""
    assert ended.code == 3, ended
    assert ended.err.splitlines()[-1] == (
        f"miras: error: {what}: {why}; last good checkpoint: {config.directory}/checkpoints/{good}"
    ), ended.err
    assert "Traceback" not in ended.err


def test_no_room_for_a_record_or_a_checkpoint(forks, tmp_path, finished_toy):
    path, config = experiment(tmp_path)
    two = {"before": "tests.training.faulty:stop_after", "options": {"step": 2}}
    assert forks.miras("train", path, **two).code == 143
    for size, what in (
        (TWO_RECORDS, f"{config.directory}/metrics.jsonl cannot be written"),
        (ARRAYS, f"no checkpoint can be written in {config.directory}/checkpoints"),
    ):
        full = {"before": "tests.training.faulty:limit_files", "options": {"size": size}}
        ended = forks.miras("train", path, **full)
        assert_said(ended, what, "File too large", config, 2)
        assert left(config) == ["2"]
    assert forks.miras("train", path).code == 0
    assert left(config) == ["2", "4", "6"]
    assert not list(pathlib.Path(config.directory, "checkpoints").glob("*tmp*"))
    assert records(config) == records(finished_toy)


def test_a_disk_that_is_really_full(forks, tmp_path, finished_toy):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        path, config = experiment(disk)
        ended = forks.miras("train", path)
        what = f"no checkpoint can be written in {config.directory}/checkpoints"
        assert_said(ended, what, "No space left on device", config, 4)
        assert left(config) == ["2", "4"]
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert forks.miras("train", path).code == 0
        assert records(config) == records(finished_toy)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
