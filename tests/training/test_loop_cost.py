"""What the loop costs: no compilation twice, none in a second run, and a host that runs ahead."""

import contextlib
import pathlib

import jax

from miras_jax.training import CheckpointConfig, EvaluationConfig, LogConfig, loop, metrics, train
from tests.training.test_full_disk import experiment
from tests.training.toy import toy

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def watched(step):
    """Yields a list that gets the step at which each program is compiled or taken from disk."""
    steps = []

    def note(event, duration, **kwargs):
        if event == COMPILED:
            steps.append(step())

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield steps
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def test_nothing_is_compiled_after_the_second_step(tmp_path, monkeypatch):
    """Neither by evaluations, diagnostics and checkpoints, which all come at the first step too."""
    config = toy(
        tmp_path,
        evaluation=EvaluationConfig(every=1, batches=2, sample_tokens=0),
        checkpoint=CheckpointConfig(every=1, keep=2),
        log=LogConfig(every=1, diagnostics_every=1, diagnostics_tokens=16),
        on_nonfinite="skip",
    )
    at = [0]
    push = metrics.Monitor.push

    def counted(self, step, *rest):
        at[0] = step
        push(self, step, *rest)

    monkeypatch.setattr(metrics.Monitor, "push", counted)
    jax.clear_caches()
    with watched(lambda: at[0]) as steps:
        train(config)
    assert len(steps) > 3  # the listener hears them
    assert max(steps) <= 2


def test_a_second_run_compiles_nothing(forks, tmp_path):
    """All programs come from the run's folder: not one is missed in it."""
    path, config = experiment(tmp_path)
    count = {"before": "tests.training.faulty:count_programs"}
    first = forks.miras("train", path, **count)
    kept = [*pathlib.Path(config.directory, "compiled").glob("*-cache")]
    assert len(kept) > 3  # the first weights, the step, its start and the evaluation
    assert first.out.splitlines()[-1] == str({"misses": len(kept), "hits": 0})
    pathlib.Path(config.directory, "checkpoints").rename(tmp_path / "elsewhere")
    second = forks.miras("train", path, **count)
    assert second.out.splitlines()[-1] == str({"misses": 0, "hits": len(kept)})


def test_profile_of_a_window_of_steps(tmp_path, capsys):
    config = toy(tmp_path, log=LogConfig(every=1, profile_at=2, profile_steps=2))
    train(config)
    folder = pathlib.Path(config.directory, "profile")
    assert f"profile of steps 2 to 3: {folder}" in capsys.readouterr().out.splitlines()
    (trace,) = folder.rglob("*.xplane.pb")
    content = trace.read_bytes()
    assert b"train_step" in content  # what ran in it


def test_the_host_runs_ahead_of_the_device(tmp_path, monkeypatch):
    """While a step runs, the next batch is read and nothing is waited for but the step before."""
    order = []
    original = loop.Reader.read
    push, look = metrics.Monitor.push, metrics.Monitor._look

    def read(self, step):
        order.append(("read", step))
        return original(self, step)

    def pushed(self, step, *rest):
        order.append(("dispatched", step))
        push(self, step, *rest)

    def looked(self, step, *rest):
        order.append(("looked at", step))
        look(self, step, *rest)

    monkeypatch.setattr(loop.Reader, "read", read)
    monkeypatch.setattr(metrics.Monitor, "push", pushed)
    monkeypatch.setattr(metrics.Monitor, "_look", looked)
    waits = []
    block = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: (waits.append(x), block(x))[1])
    train(toy(tmp_path, steps=5, checkpoint=CheckpointConfig(every=100)))
    assert order.index(("read", 5)) < order.index(("dispatched", 5)) < order.index(("looked at", 4))
    assert not waits
