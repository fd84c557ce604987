"""The metrics file through a crash, and the watch on every step."""

import json
import os
import sys

import numpy as np
import pytest

from miras_jax.training.errors import DivergedError
from miras_jax.training.metrics import MetricsFile, Monitor, read_records


def monitor(path, **changes):
    options = {"start": 0, "steps": 10, "every": 5, "tokens": 128, "flops_per_token": 2.0}
    return Monitor(path, **options | changes)


def step_metrics(loss):
    return {"train/loss": np.float32(loss), "train/grad_norm": np.float32(1)}


def test_opening_drops_what_comes_after_and_half_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 2, 3, 4)]
    path.write_text("".join(lines) + '{"step": 5, "train/lo')
    file = MetricsFile(path, 2)
    file.write({"step": 3, "train/loss": 1.5})
    assert read_records(path) == [
        {"step": 1},
        {"step": 2},
        {"step": 2},
        {"step": 3, "train/loss": 1.5},
    ]  # before closing: every record is flushed
    file.close()


def test_records_the_first_every_nth_and_the_last_step(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    with monitor(path, steps=12) as m:
        for step in range(1, 13):
            m.push(step, step_metrics(step), np.arange(4))
        assert read_records(path)[-1]["step"] == 10  # the running step has not been looked at
        m.drain()
    assert [record["step"] for record in read_records(path)] == [1, 5, 10, 12]
    last = read_records(path)[-1]
    assert last["train/loss"] == 12
    assert last["throughput/flops_per_second"] == 2 * last["throughput/tokens_per_second"]
    assert len({record["data/index_crc32"] for record in read_records(path)}) == 1
    assert "step 12/12  loss 12.0000" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_stops_at_what_is_not_finite(tmp_path, bad):
    with monitor(tmp_path / "metrics.jsonl") as m:
        m.push(1, step_metrics(1.0), np.array([3]))
        m.push(2, step_metrics(bad), np.array([17, 4]))
        with pytest.raises(DivergedError, match=r"step 2: train/loss is not finite .*: 17, 4$"):
            m.drain()
        with pytest.raises(DivergedError, match="step 2: eval/loss"):
            m.evaluation(2, {"eval/loss": bad})
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [1]


def test_throughput_is_of_the_steps_since_the_last_record_or_pause(tmp_path, monkeypatch):
    clock = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: clock)
    with monitor(tmp_path / "metrics.jsonl") as m:
        for step in range(1, 11):
            m.push(step, step_metrics(1.0), np.arange(4))
            clock += 0.5 if step > 5 else 2.0
            if step == 4:  # as for an evaluation, which takes a long time
                m.drain()
                clock += 100
                m.pause()
        m.drain()
    records = read_records(tmp_path / "metrics.jsonl")
    speeds = [record.get("throughput/tokens_per_second") for record in records]
    # The first step compiles. Step 5 alone: 128 tokens in 2 s; then five steps of half a second.
    assert speeds == [None, 64.0, 256.0]


def test_bar_shows_the_count_in_80_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with monitor(tmp_path / "metrics.jsonl", start=118, steps=500) as m:
        for step in (119, 120):
            m.push(step, step_metrics(step), np.arange(4))
        m.drain()
    *_, bar, _cursor = capsys.readouterr().out.splitlines()
    for shown in ("120/500", "━━━", "loss 120.0000", "tokens/s "):
        assert shown in bar


@pytest.mark.parametrize(("tty", "term"), [(False, "xterm"), (True, "dumb")])
def test_no_bar_without_a_terminal(tmp_path, monkeypatch, capsys, tty, term):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty)
    with monitor(tmp_path / "metrics.jsonl") as m:
        m.push(1, step_metrics(1.0), np.arange(4))
        m.drain()
    assert capsys.readouterr().out == "step  1/10  loss 1.0000  grad norm 1.000\n"


def test_goes_on_when_nobody_reads(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with monitor(tmp_path / "metrics.jsonl", every=1) as m:
            for step in (1, 2):
                m.push(step, step_metrics(1.0), np.arange(4))
            m.drain()
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [1, 2]
