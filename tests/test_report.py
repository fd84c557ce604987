"""Reports of runs: each step once, what is known and what is not, pictures, and errors."""

import dataclasses
import importlib.util
import json
import re

import jax
import numpy as np
import pytest

from miras_jax import cli, report, report_plots, report_runs
from miras_jax.training import LogConfig, UserError, train
from miras_jax.training.checkpoint import load_model
from tests.training.toy import toy

LOG = LogConfig(every=2, diagnostics_every=2)


def train_record(step, loss, **more):
    names = {"rate": report_runs.RATE, "elapsed": report_runs.ELAPSED}
    more = {names.get(name, name): value for name, value in more.items()}
    return {"step": step, "train/loss": loss, "train/grad_norm": 1.0, **more}


def eval_record(step, bits, name=""):
    return {"step": step, f"eval/{name}bits_per_byte": bits, f"eval/{name}loss": 0.7 * bits}


def write_run(folder, records, end=""):
    folder.mkdir(parents=True)
    text = "".join(json.dumps(record) + "\n" for record in records) + end
    (folder / "metrics.jsonl").write_text(text)
    return str(folder)


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps that was stopped after two."""
    config = toy(tmp_path_factory.mktemp("trained"), steps=2, log=LOG)
    train(config)
    train(dataclasses.replace(config, steps=4))
    return config


def test_report_of_a_run(trained, tmp_path, capsys):
    capsys.readouterr()
    out = tmp_path / "new" / "report"
    assert cli.main(["report", trained.directory, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    parameters = sum(x.size for x in jax.tree.leaves(load_model(trained.directory)[0]))
    assert f"| run | deltanet | {parameters:,} | 4 | 512 |" in said.out  # 16 tokens, 8 rows
    row = next(line for line in said.out.splitlines() if line.startswith("| run | delta"))
    assert "| - |" not in row
    page = (out / "report.md").read_text()
    assert row in page
    pictures = re.findall(r"\]\((.*\.png)\)", page)
    assert pictures == [
        f"{name}.png" for name in ("loss", "bits_per_byte", "norms", "groups", "speed", "memories")
    ]
    assert all(is_png(out / picture) for picture in pictures)


def test_times_go_on_after_a_restart(trained):
    (run,) = report_runs.read_runs([trained.directory])
    steps, seconds = run.seconds()
    assert steps.tolist() == [1, 2, 4]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert run.notes == ()


def test_a_restart_counts_once():
    first = [train_record(s, 9.0) for s in (2, 4, 6, 8)]
    first[2:2] = [eval_record(4, 9.0)]
    again = [train_record(5, 1.0), eval_record(5, 2.0), train_record(6, 1.5)]
    kept = report_runs.once([*first, *again])
    assert kept == [first[0], first[1], first[2], *again]
    # The same step again, with no earlier one between.
    assert report_runs.once([*first[:2], train_record(4, 3.0)]) == [first[0], train_record(4, 3.0)]
    # Records of several kinds at one step stay.
    assert report_runs.once(first) == first


@pytest.mark.parametrize("end", ['{"step": 5, "train/lo', '{"step": 5}', '{"st\n', "\x00\x00"])
def test_a_torn_last_line_is_left_out_and_said(tmp_path, end, capsys):
    folder = write_run(tmp_path / "run", [train_record(1, 3.0), train_record(4, 2.0)], end)
    (run,) = report_runs.read_runs([folder])
    assert [record["step"] for record in run.records] == [1, 4]
    assert cli.main(["report", folder, "--out", str(tmp_path / "out")]) == 0
    note = "run: the last line of metrics.jsonl was cut off and is left out"
    assert f"miras: {note}\n" == capsys.readouterr().err
    assert f"- {note}" in (tmp_path / "out" / "report.md").read_text()


def test_what_is_not_known_is_a_dash(tmp_path):
    (run,) = report_runs.read_runs([write_run(tmp_path / "run", [train_record(3, 2.5)])])
    assert "| run | - | - | 3 | - | 2.5000 / 2.5000 | - | - | - | - | - |" in report.table([run])
    assert [panel.seconds for panel in report_plots.panels([run])["loss"]] == [False]


def test_last_and_best_and_held_out_texts_by_name(tmp_path):
    records = [train_record(1, 4.0, rate=100.0), train_record(2, 2.0, rate=300.0)]
    records += [eval_record(2, 1.5) | eval_record(2, 1.25, "code/"), train_record(3, 3.0, rate=1e3)]
    records += [eval_record(3, 1.75) | eval_record(3, 1.0, "code/") | eval_record(3, 3.0, "a|b/")]
    one = write_run(tmp_path / "one" / "run", records)
    two = write_run(tmp_path / "two" / "run", records[:2])
    runs = report_runs.read_runs([one, two])
    table = report.table(runs)
    assert f"| {one} | - | - | 3 | - | 3.0000 / 2.0000 | 1.2250 / 1.0500 |" in table
    assert "| 1.7500 / 1.5000 | 300 |" in table
    assert "| run | code | a\\|b |" in table
    assert f"| {one} | 1.0000 / 1.0000 | 3.0000 / 3.0000 |\n| {two} | - | - |" in table
    titles = [panel.title for panel in report_plots.panels(runs)["bits_per_byte"]]
    assert titles == ["held-out text", "held-out text code", "held-out text a|b"]
    assert all(is_png(path) for path in report.write(runs, str(tmp_path / "out"))[1:])


def test_seconds_of_runs_that_did_not_write_them():
    records = [train_record(1, 4.0), train_record(11, 3.0, rate=20.0)]
    records += [eval_record(11, 1.0), train_record(21, 3.0, rate=40.0)]
    run = report_runs.Run("run", records, tokens_per_step=8)
    steps, seconds = run.seconds()
    assert steps.tolist() == [1, 11, 21]
    # The first step at the median of 30 tokens/s.
    np.testing.assert_allclose(seconds, np.cumsum([8 / 30, 80 / 20, 80 / 40]))


def test_nulls_and_utilization_are_drawn(tmp_path):
    records = [train_record(s, 4.0, **{"throughput/mfu": 0.4}) for s in (1, 2)]
    records += [{"step": 2, "inner/step": [0.1, None]}]
    run = report_runs.Run("run", records, tokens_per_step=8)
    panels = report_plots.panels([run])
    assert [panel.figure for panel in panels["speed"]] == ["throughput/mfu"]
    assert [panel.figure for panel in panels["memories"]] == ["inner/step"]
    assert {path.name for path in report_plots.draw([run], tmp_path)} == {
        f"{name}.png" for name in ("loss", "norms", "speed", "memories")
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no run at .*run: there is no such folder"),
        ({}, "run is no run: it has no metrics.jsonl"),
        ({"metrics.jsonl": ""}, "has no record of training yet"),
        ({"metrics.jsonl": '{"step": 3, "eval/loss": 1.0}\n'}, "has no record of training yet"),
        ({"metrics.jsonl": '{"step": 1}\nhalf\n{"step": 2}\n'}, "line 2: not a JSON object with"),
        ({"metrics.jsonl": '[1]\n{"step": 2}\n'}, "line 1: not a JSON object with a `step`"),
    ],
)
def test_what_is_no_run(tmp_path, capsys, content, message):
    folder = tmp_path / "run"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    out = tmp_path / "out"
    assert cli.main(["report", str(folder), "--out", str(out)]) == 2
    assert re.match(f"miras: error: .*{message}.*\n$", capsys.readouterr().err)
    assert not out.exists()


def test_a_run_given_twice(tmp_path):
    folder = write_run(tmp_path / "run", [train_record(1, 1.0)])
    with pytest.raises(UserError, match="given twice"):
        report_runs.read_runs([folder, folder + "/"])


def test_out_that_is_a_file(tmp_path, capsys):
    folder = write_run(tmp_path / "run", [train_record(1, 1.0)])
    (tmp_path / "out").write_text("")
    assert cli.main(["report", folder, "--out", str(tmp_path / "out")]) == 2
    assert "out" in capsys.readouterr().err


def test_names_the_package_where_matplotlib_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    assert cli.main(["report", "nowhere"]) == 2
    expected = "miras: error: miras report draws with matplotlib: pip install matplotlib\n"
    assert capsys.readouterr().err == expected
