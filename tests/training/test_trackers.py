"""Trackers: the records of the file, each once, in TensorBoard's event files and in W&B's calls."""

import dataclasses
import importlib.util
import pathlib
import struct
import subprocess
import sys
import time
import types

import pytest

from miras_jax.training import LogConfig, UserError, train
from miras_jax.training.metrics import read_records
from miras_jax.training.trackers import check_trackers, open_trackers, scalars
from tests.training.toy import toy

RECORD = {"step": 3, "a/b": 1.5, "a/n": 2, "inner/x": [0.5, None, 2.0], "data/crc32": "00ff"}
NUMBERS = {"a/b": 1.5, "a/n": 2, "inner/x/0": 0.5, "inner/x/2": 2.0}


def events(folder):
    """Reads event files: records of a length, its checksum, a message and its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack_from("<Q", data)
            yield event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[size + 16 :]


def logged(folder):
    """The scalars of event files by step and name, as TensorBoard shows them: a restart purges."""
    found = {}
    for event in events(folder):
        if event.session_log.status:
            found = {key: value for key, value in found.items() if key[0] < event.step}
        for value in event.summary.value:
            found[event.step, value.tag] = value.simple_value
    return found


@pytest.fixture
def wandb(monkeypatch):
    """A module that takes the calls of W&B's and keeps them."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    module.starts, module.logs, module.finished = [], [], 0

    class Run:
        def log(self, figures, step):
            module.logs.append((step, figures))

        def finish(self):
            module.finished += 1

    def init(**options):
        module.starts.append(options)
        return Run()

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_scalars_are_the_numbers():
    assert dict(scalars(RECORD)) == NUMBERS


def test_event_file_has_the_numbers(tmp_path):
    config = toy(tmp_path, log=LogConfig(trackers=("tensorboard",)))
    (tracker,) = open_trackers(config, start=0)
    tracker.write(RECORD)
    tracker.write({"step": 4, "a/b": 2.5})
    folder = pathlib.Path(config.directory, "tensorboard")
    expected = {(3, name): value for name, value in NUMBERS.items()} | {(4, "a/b"): 2.5}
    end = time.monotonic() + 60
    while logged(folder) != expected and time.monotonic() < end:
        time.sleep(0.1)  # a thread writes them about once a second
    assert logged(folder) == expected  # before closing
    tracker.close()
    (tracker,) = open_trackers(config, start=3)
    tracker.close()
    del expected[4, "a/b"]
    assert logged(folder) == expected


def test_a_run_tells_all_its_records_and_goes_on(tmp_path, wandb):
    log = LogConfig(every=2, diagnostics_every=2, trackers=("tensorboard", "wandb"))
    config = toy(tmp_path, steps=2, log=log)
    train(config)
    train(dataclasses.replace(config, steps=4))
    folder = pathlib.Path(config.directory)
    records = read_records(folder / "metrics.jsonl")
    expected = {(r["step"], n): x for r in records for n, x in scalars(r)}
    assert {(step, n): x for step, figures in wandb.logs for n, x in figures.items()} == expected
    assert logged(folder / "tensorboard") == pytest.approx(expected, rel=1e-6)  # float32

    assert wandb.finished == len(wandb.starts) == 2
    first, second = wandb.starts
    assert first["id"] == second["id"] == (folder / "wandb_id").read_text()
    assert first["resume"] == "allow"
    assert first["name"] == "run"
    assert first["config"]["model"]["memory"] == "deltanet"


def test_what_cannot_begin_is_said(tmp_path, wandb):
    def refuse(**_options):
        raise Exception("no login")

    config = toy(tmp_path, log=LogConfig(trackers=("tensorboard", "wandb")))
    pathlib.Path(config.directory).mkdir()
    wandb.init = refuse
    with pytest.raises(UserError, match=r"log\.trackers: wandb cannot begin: no login"):
        open_trackers(config, start=0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("mlflow",), "log.trackers: there is no tracker 'mlflow'; choose from tensorboard, wandb"),
        (("wandb", "wandb"), "log.trackers names wandb twice"),
    ],
)
def test_refuses_other_names(tmp_path, wandb, names, message):
    config = toy(tmp_path, log=LogConfig(trackers=names))
    with pytest.raises(UserError, match=message):
        train(config)
    assert not pathlib.Path(config.directory).exists()


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_names_the_package_that_is_missing(monkeypatch, name, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(UserError, match=f"{name} is not installed: pip install {package}$"):
        check_trackers([name])


def test_imported_only_when_asked():
    code = "import sys, miras_jax.training; print({'wandb', 'tensorboardX'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
