"""A run, and the same run in pieces: bit for bit the same, however it was interrupted."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

from miras_jax.training import (
    DivergedError,
    LogConfig,
    MeshConfig,
    OptimizerConfig,
    StoppedError,
    UserError,
    checkpoint,
    loop,
    train,
)
from miras_jax.training.checkpoint import find_checkpoint, load_model
from tests.training.toy import MODEL, records, toy, write_text


def weights(config):
    return [np.asarray(x) for x in jax.tree.leaves(load_model(config.directory)[0])]


def steps_on_disk(config):
    root = pathlib.Path(config.directory, "checkpoints")
    return sorted(int(path.name) for path in root.iterdir())


@pytest.fixture
def at_step():
    """A context in which a function is called when the batch of a step is read."""

    @contextlib.contextmanager
    def watch(step, act):
        original = loop.train_iterator

        class Watched:
            def __init__(self, *args, **options):
                self.inner, self.end = original(*args, **options), step * options["batch_size"]

            def __next__(self):
                batch = next(self.inner)
                if self.inner.get_state()["global_next_index"] == self.end:
                    act()
                return batch

            def __getattr__(self, name):
                return getattr(self.inner, name)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train_iterator", Watched)
            yield

    return watch


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    config = toy(tmp_path_factory.mktemp("uninterrupted"))
    final = train(config)
    return config, final


def test_run_learns_evaluates_and_saves(uninterrupted):
    config, final = uninterrupted
    log = records(config)
    assert [r["step"] for r in log if "train/loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in log if "eval/loss" in r] == [3, 6]
    assert log[-1] == final
    assert steps_on_disk(config) == [2, 4, 6]
    nats, bits = final["eval/loss"], final["eval/bits_per_byte"]
    np.testing.assert_allclose(bits, nats / np.log(2), rtol=1e-6)  # one document: no separator
    assert 0 < final["eval/order1_bits_per_byte"] < final["eval/order0_bits_per_byte"] < 8
    _, metadata = load_model(config.directory)
    assert metadata["config"] == json.loads(json.dumps(dataclasses.asdict(config)))


def test_stopped_twice_equals_uninterrupted(tmp_path, at_step, uninterrupted):
    config = toy(tmp_path)
    for step, signum, code in ((3, signal.SIGINT, 130), (5, signal.SIGTERM, 143)):
        before = signal.getsignal(signum)
        with (
            at_step(step, functools.partial(os.kill, os.getpid(), signum)),
            pytest.raises(StoppedError, match=f"saved at step {step} of 6.*COMMAND") as stop,
        ):
            train(config, command="COMMAND")
        assert stop.value.exit_code == code
        assert signal.getsignal(signum) is before
        assert steps_on_disk(config)[-1] == step

    with at_step(5, pytest.fail):  # the data goes on after step 5
        final = train(config)
    assert final == uninterrupted[1]
    assert records(config) == records(uninterrupted[0])
    for x, y in zip(weights(config), weights(uninterrupted[0]), strict=True):
        np.testing.assert_array_equal(x, y)


def test_finished_run_says_so_and_can_be_prolonged(uninterrupted, capsys, monkeypatch):
    config, final = uninterrupted
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_iterator", pytest.fail)
        assert train(config, command="COMMAND") == final
    said = capsys.readouterr().out
    assert "nothing to do" in said
    assert "6 of 6 steps" in said
    assert f"{final['eval/bits_per_byte']:.3f} bits per byte" in said
    assert f"{config.directory}/checkpoints/6" in said
    assert "COMMAND --steps 12" in said


@pytest.fixture
def finished(uninterrupted, tmp_path):
    """A copy of the finished run, to go on with."""
    config = dataclasses.replace(uninterrupted[0], directory=str(tmp_path / "copy"))
    shutil.copytree(uninterrupted[0].directory, config.directory)
    return config


@pytest.mark.parametrize("latest", [4, None])
def test_continues_what_was_killed_while_writing(finished, uninterrupted, latest):
    """Killed in the checkpoint of step 6, or in the very first one."""
    folder = pathlib.Path(finished.directory)
    for step in steps_on_disk(finished):
        if latest is None or step > latest:
            shutil.rmtree(folder / f"checkpoints/{step}")
    partial = folder / f"checkpoints/{6 if latest else 2}.orbax-checkpoint-tmp"
    partial.mkdir()
    (partial / "half").write_text("written")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/loss": 9.0}\n{"step": 8, "train/lo')
    train(finished)
    assert records(finished) == records(uninterrupted[0])
    assert steps_on_disk(finished) == [2, 4, 6]  # and nothing half written
    for x, y in zip(weights(finished), weights(uninterrupted[0]), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_hybrid_trains_goes_on_and_is_loaded(tmp_path):
    model = dataclasses.replace(MODEL, hybrid=True, depth=2, window=4, remat=False)
    config = toy(tmp_path, model=model, steps=3)
    train(config)
    whole, expected = records(config), weights(config)
    shutil.rmtree(pathlib.Path(config.directory, "checkpoints/3"))
    train(config)
    assert records(config) == whole
    for x, y in zip(weights(config), expected, strict=True):
        np.testing.assert_array_equal(x, y)
    assert load_model(config.directory)[0].config == model


def test_one_process_at_a_time(finished):
    with (
        checkpoint.open_checkpoints(finished),
        pytest.raises(UserError, match="another process is training in"),
    ):
        train(finished)
    train(finished)  # the lock is free again


def test_prolonged_on_another_mesh(finished):
    longer = dataclasses.replace(finished, steps=8, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    assert train(longer)["step"] == 8
    log = records(longer)
    assert [r["step"] for r in log if "train/loss" in r] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert log[: len(records(finished))] == records(finished)


def test_rows_over_devices_give_the_same_losses(uninterrupted, tmp_path):
    """Also of validation, in microbatches, and with the inner loops looked into on the way."""
    mesh, log = MeshConfig(fsdp=2, sequence=2), LogConfig(every=1, diagnostics_every=3)
    config = toy(tmp_path, mesh=mesh, log=log, accumulation=2)
    data = dataclasses.replace(config.data, source=uninterrupted[0].data.source)
    train(dataclasses.replace(config, data=data))
    for name in ("train/loss", "eval/loss"):
        got, expected = (
            [r[name] for r in records(c) if name in r] for c in (config, uninterrupted[0])
        )
        # Float32 sums in another order, through six updates.
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert [r["step"] for r in records(config) if "inner/step" in r] == [3, 6]


def test_divergence_keeps_the_last_good_checkpoint(finished):
    optimizer = OptimizerConfig(learning_rate=1e38, warmup_steps=0)
    before = records(finished)
    with pytest.raises(DivergedError, match=r"step 7: train/.* windows of the batch: \d+.*/6$"):
        train(dataclasses.replace(finished, steps=8, optimizer=optimizer))
    assert steps_on_disk(finished) == [2, 4, 6]
    assert find_checkpoint(pathlib.Path(finished.directory)).name == "6"
    assert records(finished) == before


def test_refuses_to_continue_another_run(uninterrupted, tmp_path):
    config, _ = uninterrupted
    other = dataclasses.replace(config, steps=9, model=dataclasses.replace(config.model, dim=32))
    with pytest.raises(UserError, match=r"model.dim is 32, but the run in .* has 16;"):
        train(other)
    with pytest.raises(UserError, match=r"seed is 5, but"):
        train(dataclasses.replace(config, seed=5))
    source = write_text(tmp_path / "text.txt")
    source.write_text(source.read_text() + "!")
    data = dataclasses.replace(config.data, source=str(source))
    with pytest.raises(UserError, match=r"corpus.* is '.*', but"):
        train(dataclasses.replace(config, data=data))


@pytest.mark.parametrize("content", [None, ".", "checkpoints", "2024", "checkpoints/7"])
def test_missing_checkpoint(tmp_path, content):
    path = tmp_path / "run"
    if content:
        (path / content).mkdir(parents=True)
    with pytest.raises(UserError, match="no checkpoint"):
        load_model(path)
