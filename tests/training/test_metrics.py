"""The metrics file through a crash, and the watch on every step."""

import json
import os
import sys

import jax
import numpy as np
import pytest

from miras_jax.training import metrics
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


def test_times_of_the_steps_and_of_the_input_since_the_last_record(tmp_path, monkeypatch):
    clock = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: clock)
    path = tmp_path / "metrics.jsonl"
    seconds = [None, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 5.0, 6.0]  # by step
    with monitor(path) as m:
        for step in range(1, 11):
            with m.reading():
                clock += seconds[step] / 2
            clock += seconds[step] / 2
            m.push(step, step_metrics(1.0), np.arange(4))
            m.drain()
            if step == 3:  # an evaluation is no part of a step
                clock += 100
                m.pause()
    first, second, third = read_records(path)
    assert "throughput/step_seconds_p50" not in first  # it compiles
    names = [f"throughput/step_seconds_p{p}" for p in (50, 90, 99)]
    for record, times in ((second, [1, 2, 3, 4]), (third, [5, 5, 5, 5, 6])):
        expected = np.percentile(times, (50, 90, 99))
        np.testing.assert_allclose([record[name] for name in names], expected)
        np.testing.assert_allclose(record["throughput/input_wait_seconds"], np.mean(times) / 2)
    elapsed = [r["throughput/elapsed_seconds"] for r in (first, second, third)]
    assert elapsed == [9, 9 + 10 + 100, 119 + 26]
    assert [r["data/tokens"] for r in (first, second, third)] == [128, 640, 1280]

    clock = 1e6  # the process was away for long
    with monitor(path, start=5) as m:
        clock += 7
        m.push(6, step_metrics(1.0), np.arange(4))
        m.drain()
        clock += 1
        m.push(10, step_metrics(1.0), np.arange(4))
        m.drain()
    assert read_records(path)[-1]["throughput/elapsed_seconds"] == 119 + 8


def test_norms_of_groups_are_in_the_records_and_not_in_messages(tmp_path):
    with monitor(tmp_path / "metrics.jsonl") as m:
        for step in (1, 2):
            m.push(step, step_metrics(1.0) | {"train/grad_norm/gates": 0.5}, np.arange(4))
        m.push(3, step_metrics(np.nan) | {"train/grad_norm/gates": 0.5}, np.array([17, 4]))
        with pytest.raises(DivergedError, match=r"step 3: .*\(train/grad_norm 1, train/loss nan\)"):
            m.drain()
    (record,) = read_records(tmp_path / "metrics.jsonl")
    assert record["train/grad_norm/gates"] == 0.5


def test_utilization_where_the_peak_is_known(tmp_path, monkeypatch):
    monkeypatch.setitem(metrics.PEAK_FLOPS, jax.devices()[0].device_kind, 1e6)
    with monitor(tmp_path / "metrics.jsonl", every=1, devices=4) as m:
        for step in (1, 2):
            m.push(step, step_metrics(1.0), np.arange(4))
        m.drain()
    record = read_records(tmp_path / "metrics.jsonl")[-1]
    assert record["throughput/mfu"] == record["throughput/flops_per_second"] / 4e6


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    stats = [{"bytes_in_use": 5, "peak_bytes_in_use": 6}, {"bytes_in_use": 4}, None]
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(each) for each in stats])
    found = metrics.memory_in_use()
    assert found["throughput/device_bytes"] == 5
    assert found["throughput/device_peak_bytes"] == 6
    if sys.platform == "linux":
        assert 1e6 < found["throughput/host_bytes"] < 1e12
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None)])
    assert "throughput/device_bytes" not in metrics.memory_in_use()


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
