"""The studies: their runs are what they say, and their pages say what the records say."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest

from miras_jax import zoo
from miras_jax.evals import suite
from miras_jax.nn import sizes
from miras_jax.training.config import validate

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "experiments"))  # scripts import each other by their plain names

import run_study  # noqa: E402
import study_pages  # noqa: E402
import study_runs  # noqa: E402
import study_summary  # noqa: E402

FILES = sorted((ROOT / "experiments" / "studies").glob("*.py"))
RESULTS = ROOT / "docs" / "results"
FIGURE = re.compile(r"\d[\d,]*\.\d+")

TINY = '''"""A study of two runs.

    python experiments/run_study.py tiny.py
"""

from miras_jax.nn import ModelConfig
from miras_jax.training import *


def config(bias="deltanet", noise="0", seed="0"):
    return TrainConfig(
        model=ModelConfig(memory=bias, vocab_size=16, dim=8, depth=1, heads=1, ff_dim=8),
        data=DataConfig(source="task:corrupted,pairs=2,vocab_size=16", window=24, batch_size=4),
        evaluation=EvaluationConfig(every=2, batches=1),
        log=LogConfig(every=1),
        steps=STEPS,
        seed=int(seed),
    )


def tasks(bias, noise, seed):
    return ("task:corrupted:pairs=2:vocab_size=16:length=24,limit=4,name=noise_0",)


def served(bias, noise, seed):
    return {"": {}, "frozen": {"control": "frozen"}}


RUNS = [{"bias": "deltanet", "noise": "0", "seed": seed} for seed in ("0", "1")]
'''


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Models that a study registers are gone after a test."""
    monkeypatch.setattr(zoo, "ROWS", dict(zoo.ROWS))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_runs_are_accepted_and_as_large_as_they_say(path):
    study = run_study.read_study(path)
    assert len({tuple(run.items()) for run in study.runs}) == len(study.runs)
    seeds = {run["seed"] for run in study.runs}
    assert len(seeds) >= 3
    counts: dict[str, list[int]] = {}
    for settings in study.runs:
        if settings["seed"] == "0" and settings.get("pairs", "4") == "4":
            config = study.config(**settings)
            validate(config)
            for task in run_study.call(study.tasks, settings):
                suite.parse(task)
            for changes in run_study.call(study.served, settings).values():
                dataclasses.replace(config.model, **changes)
            if settings.get("control", "none") == "none" and path.stem != "choices":
                counts.setdefault(settings.get("dim", ""), []).append(
                    sizes.parameters(config.model)
                )
    for same in counts.values():
        # One unit of the SwiGLU's width is up to 0.6% of the smallest model.
        assert max(same) <= 1.01 * min(same)


def test_a_study_is_run_once(tmp_path, capfd):
    path, out = tmp_path / "noise.py", tmp_path / "noise.jsonl"
    words = [str(path), "--work", str(tmp_path / "work"), "--out", str(out), "--jobs", "1"]
    path.write_text(TINY.replace("STEPS", "2"))
    run_study.main(words)
    assert "2 of 2 runs to do" in capfd.readouterr().out
    records = run_study.read_records(out)
    assert [r["settings"]["seed"] for r in records] == ["0", "1"]
    for record in records:
        assert record["tokens"] == 2 * 4 * 24
        assert record["curves"]["eval/accuracy"]["tokens"] == [192]
        assert len(record["curves"]["train/loss"]["values"]) == 2
        assert set(record["evaluations"]) == {"noise_0", "noise_0, frozen"}
        assert record["config"]["directory"] == ""
        assert record["cpu_seconds"] > 0
        assert str(tmp_path) not in json.dumps({**record, "command": ""})
    run_study.main([*words, "--only", "seed=1"])
    assert "0 of 2 runs to do" in capfd.readouterr().out

    # Another configuration is another run.
    path.write_text(TINY.replace("STEPS", "3"))
    run_study.main([*words, "--only", "seed=1"])
    assert "1 of 2 runs to do" in capfd.readouterr().out
    assert [r["tokens"] for r in run_study.read_records(out)] == [288]  # the old ones are gone

    [record_of_three] = run_study.read_records(out)
    [log] = [p for p in tmp_path.glob("work/*/log") if "step 3/3" in p.read_text()]
    assert "continuing" not in log.read_text()  # not the other run, trained longer
    study = run_study.read_study(path)
    text, _ = study_pages.page("noise", study_runs.Runs(study, run_study.read_records(out)))
    assert "1 of 2 runs, seeds 1" in text

    # Other tasks of the same run are measured without training it again.
    path.write_text(TINY.replace("STEPS", "3").replace("name=noise_0", "name=noise_0.5"))
    run_study.main([*words, "--measure", "--only", "seed=1"])
    assert "1 of 2 runs to do" in capfd.readouterr().out
    [again] = run_study.read_records(out)
    assert set(again["evaluations"]) == {"noise_0.5", "noise_0.5, frozen"}
    assert again["curves"] == record_of_three["curves"]
    with pytest.raises(SystemExit, match="no run has bias=none"):
        run_study.main([*words, "--only", "bias=none"])


def test_runs_of_another_text_are_not_mixed(tmp_path):
    out, study = tmp_path / "novels.jsonl", run_study.read_study(study_pages.STUDIES / "novels.py")
    first, second = made_up(study)[:2]
    run_study.add(out, study, first)
    second["corpus"] = {"version": "other", "sha256": "other"}
    with pytest.raises(SystemExit, match="runs of another text"):
        run_study.add(out, study, second)
    assert len(run_study.read_records(out)) == 1


def test_statistics():
    assert study_runs.spread([]) == "-"
    assert study_runs.spread([0.5]) == "0.500"
    assert study_runs.spread([1.0, 2.0, 3.0]) == "2.000 ± 1.000"
    found = study_runs.difference({"0": 2.0, "1": 4.0, "2": 9.0}, {"0": 1.0, "1": 1.0})
    assert found == (2.0, 1.0)  # 1 and 3: deviation sqrt(2) over sqrt(2)
    assert study_runs.difference({"0": 1.0}, {"0": 1.0}) is None


def made_up(study) -> list[dict]:
    """A record for every run, of which one diverged and one is missing."""
    records = []
    for i, settings in enumerate(study.runs[:-1]):
        config = run_study.described(study.config(**settings))
        record = {"settings": settings, "command": "miras train", "config": config}
        record |= {"date": "2030-01-01", "corpus": {"version": "abc", "sha256": "abcdef"}}
        record["versions"] = dict.fromkeys(("python", "jax", "jaxlib", "flax"), "1")
        record["hardware"] = {"device": "cpu", "machine": "x86_64", "cores": 1, "processors": 2}
        if i == len(study.runs) // 2:
            records.append({**record, "diverged": "step 3"})
            continue
        names = ("bits_per_byte", "accuracy", "order0_bits_per_byte", "order1_bits_per_byte")
        names = ("train/loss", "train/grad_norm", *(f"eval/{name}" for name in names))
        values = [3.0, 2.0 + 0.5 * int(settings["seed"])]
        curve = {"tokens": [0, 10**6], "seconds": [0.0, 2.0], "values": values}
        tasks = [word.rpartition("name=")[2] for word in study.tasks(**settings)]
        served = study.served(**settings)
        curves = {"start": [256, 8192], "bits_per_byte": [2.5, 2.0]}
        curves["memory_norm"] = [[1, 2], [3, 4]]
        found = {
            "figures": {"accuracy": 0.5, "bits_per_byte": 2.0 + 0.5 * int(settings["seed"])},
            "standard_errors": {"bits_per_byte": 0.01},
            "counts": {"documents": 7},
            "curves": curves,
        }
        record |= {"parameters": 10, "tokens": 20, "cpu_seconds": 30.0, "wall_seconds": 60.0}
        record["curves"] = dict.fromkeys(names, curve)
        record["evaluations"] = {
            f"{task}, {name}" if name else task: found for task in tasks for name in served
        }
        records.append(record)
    return records


@pytest.mark.parametrize("name", study_pages.PAGES)
def test_pages_of_made_up_runs(name):
    study = study_pages.runs_of(name).study
    records = made_up(study)
    assert all(run_study.is_of(record, study) for record in records)
    text, figure = study_pages.page(name, study_runs.Runs(study, records))
    assert f"{len(study.runs) - 1} of {len(study.runs)} runs, seeds 0, 1, 2" in text
    assert "Diverged" in text
    assert figure.axes
    assert {
        "mqar": "2.500 ± 0.500",
        "novels": "| mamba2 | 2.500 ± 0.500 | +0.0000 ± 0.0000 | 10 | 20 | 30 ± 0 |",
        "extrapolation": "| yaad | 2.500 ± 0.000 | 2.000 ± 0.000 |",
        "choices": "2.500 ± 0.500 (3)",
        "noise": "0.500 ± 0.000",
    }[name] in text
    assert not run_study.is_of({**records[0], "settings": {}}, study)
    other = {**records[0]["config"], "steps": 1}
    assert not run_study.is_of({**records[0], "config": other}, study)
    del records[0]["config"]["max_skipped"]  # of a time when there was no such field
    assert run_study.is_of(records[0], study)


@pytest.mark.parametrize("name", study_pages.PAGES)
def test_pages_say_what_the_records_say(name):
    runs = study_pages.runs_of(name)
    if not runs.records:
        pytest.skip(f"no runs of the study {runs.study.name} yet")
    text, _ = study_pages.page(name, runs)
    assert (RESULTS / f"{name}.md").read_text() == text
    assert (RESULTS / f"{name}.png").exists()


def test_summary_of_made_up_runs(tmp_path):
    for name in ("mqar", "novels"):
        records = made_up(run_study.read_study(study_pages.STUDIES / f"{name}.py"))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records))
    study_summary.main(["--results", str(tmp_path)])
    text = (tmp_path / "models.md").read_text()
    recall, bits = "2.500 ± 0.500 | 2.500 ± 0.500", "2.500 ± 0.500"
    assert f"| yaad | {recall} | {bits} | +0.0000 ± 0.0000 | +0.0000 ± 0.0000 | 30 ± 0 |" in text
    assert f"| ttt_mlp | {recall} | {bits} | - | +0.0000 ± 0.0000 | 30 ± 0 |" in text


def test_summary_says_what_the_records_say():
    assert (RESULTS / "models.md").read_text() == study_summary.summary()


def test_the_choice_of_a_model_is_made_from_the_results():
    """Every figure of a paragraph of docs/models.md stands in a page that the paragraph links."""
    paragraphs = (ROOT / "docs" / "models.md").read_text().split("\n\n")
    quoted = 0
    for paragraph in paragraphs:
        pages = re.findall(r"\(results/(\w+)\.md\)", paragraph)
        known = FIGURE.findall("".join((RESULTS / f"{page}.md").read_text() for page in pages))
        figures = FIGURE.findall(paragraph)
        assert set(figures) <= set(known), paragraph
        quoted += len(figures)
    assert quoted > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_records_are_of_runs_as_the_study_has_them(path):
    if not (records := run_study.read_records(RESULTS / f"{path.stem}.jsonl")):
        pytest.skip(f"no runs of the study {path.stem} yet")
    study = run_study.read_study(path)
    assert all(run_study.is_of(record, study) for record in records)
