"""A source that stalls or fails: the run says at which step, saves, and can go on."""

import os
import re
import signal
import threading

import pytest

from miras_jax import cli
from miras_jax.training import InputError, SaveError, StoppedError, loop, reading, train
from tests.training.forks import ROOT
from tests.training.test_full_disk import experiment
from tests.training.toy import records, toy


class Counting:
    """An iterator whose batch and state is how many were read; what `act` does, happens first."""

    def __init__(self, act=lambda number: None):
        self.read, self.act = 0, act

    def __next__(self):
        self.act(self.read)
        self.read += 1
        return self.read

    def get_state(self):
        return self.read


@pytest.fixture
def broken_at(monkeypatch):
    """Calls a function before the batch of a step is read."""

    def watch(step, act):
        original = loop.train_iterator

        class Broken:
            def __init__(self, *arguments, **options):
                self.inner, self.read = original(*arguments, **options), 0

            def __next__(self):
                self.read += 1
                if self.read == step:
                    act()
                return next(self.inner)

            def __getattr__(self, name):
                return getattr(self.inner, name)

        monkeypatch.setattr(loop, "train_iterator", Broken)
        return monkeypatch.undo

    return watch


def test_the_place_is_that_of_the_last_batch_returned():
    go = threading.Event()

    def stall(number):
        if number == 2:
            go.wait()

    with reading.Reader(Counting(stall), 0.2, "SOURCE") as reader:
        assert reader.get_state() == 0
        assert [reader.read(1), reader.read(2)] == [1, 2]
        with pytest.raises(InputError, match=r"step 3: no batch .* 'SOURCE' .*timeout 0\.2 s"):
            reader.read(3)
        go.set()  # that batch comes after all: nobody was given it
        assert reader.get_state() == 2


@pytest.mark.parametrize("timeout", [0, None])
def test_without_a_limit_it_waits(timeout):
    with reading.Reader(
        Counting(lambda number: threading.Event().wait(0.1)), timeout, ""
    ) as reader:
        assert reader.read(1) == 1


def test_asked_to_stop_it_does_not_wait_for_a_source_that_stalls(tmp_path, broken_at):
    go = threading.Event()

    def stall():
        os.kill(os.getpid(), signal.SIGTERM)
        go.wait()

    broken_at(4, stall)
    with pytest.raises(StoppedError, match="stopped and saved at step 3 of 6") as stop:
        train(toy(tmp_path))  # the limit is ten minutes
    go.set()
    assert (stop.value.exit_code, stop.value.stuck) == (143, True)


def test_a_failing_source_saves_and_keeps_the_cause(tmp_path, broken_at, finished_toy):
    config = toy(tmp_path)

    def fail():
        raise OSError(5, "Input/output error", "/data/shard-3")

    undo = broken_at(4, fail)
    said = r"step 4: .*: OSError: .*/data/shard-3' \(.*test_reading.py, line \d+\); saved"
    with pytest.raises(InputError, match=said) as error:
        train(config, command="COMMAND")
    undo()
    assert str(error.value).endswith("saved at step 3 of 6; to go on: COMMAND")
    assert error.value.__cause__.errno == 5
    train(config)
    assert records(config) == records(finished_toy)


def test_a_stalled_source_ends_the_process(forks, tmp_path, finished_toy):
    """Not even threads that read for ever keep it."""
    path, config = experiment(tmp_path)
    # Four windows are read ahead: with those of five batches, three have come for certain.
    stall = {"before": "tests.training.faulty:stall", "options": {"reads": 8 * 4 + 4}}
    ended = forks.miras("train", path, "--data.timeout", "5", **stall)
    assert ended.code == 4, ended
    said = ended.err.splitlines()[-1]
    assert said.startswith("miras: error: step 5: no batch came from data.source")
    assert "within data.timeout 5 s; saved at step 4 of 6; to go on: " in said
    assert "Traceback" not in ended.err
    assert forks.miras("train", path).code == 0
    assert records(config) == records(finished_toy)


def test_the_guide_lists_the_exit_codes():
    guide = (ROOT / "docs" / "training.md").read_text()
    for error, words in ((SaveError, "could not be written"), (InputError, "did not come within")):
        assert re.search(rf"^\| {error.exit_code} \| .*{words}", guide, re.MULTILINE)
        assert f"{error.exit_code}: " in cli.main.__doc__
