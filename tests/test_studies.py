"""The studies: their runs are what they say, and their pages say what the records say."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest

from miras_jax import zoo
from miras_jax.nn import sizes
from miras_jax.training.config import validate

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "experiments"))  # scripts import each other by their plain names

import run_study  # noqa: E402
import study_pages  # noqa: E402

FILES = sorted((ROOT / "experiments" / "studies").glob("*.py"))
RESULTS = ROOT / "docs" / "results"

TINY = '''"""A study of two runs.

    python experiments/run_study.py tiny.py
"""

from miras_jax.nn import ModelConfig
from miras_jax.training import *


def config(bias="deltanet", noise="0", seed="0"):
    return TrainConfig(
        model=ModelConfig(memory=bias, vocab_size=16, dim=8, depth=1, heads=1, ff_dim=8),
        data=DataConfig(source="task:mqar,pairs=2,vocab_size=16", window=16, batch_size=4),
        evaluation=EvaluationConfig(every=2, batches=1),
        log=LogConfig(every=1),
        steps=STEPS,
        seed=int(seed),
    )


def tasks(bias, noise, seed):
    return ("task:mqar:pairs=2:vocab_size=16:length=16,limit=4,name=noise_0",)


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
        if settings["seed"] == "0" and settings.get("pairs", "8") == "8":
            config = study.config(**settings)
            validate(config)
            run_study.call(study.tasks, settings, {})
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
        assert record["tokens"] == 2 * 4 * 16
        assert record["curves"]["eval/accuracy"]["tokens"] == [128]
        assert len(record["curves"]["train/loss"]["values"]) == 2
        assert set(record["evaluations"]) == {"noise_0", "noise_0, frozen"}
        assert "directory" not in record["config"]
        assert str(tmp_path) not in json.dumps({**record, "command": ""})
    run_study.main([*words, "--only", "seed=1"])
    assert "0 of 2 runs to do" in capfd.readouterr().out

    # Another configuration is another run.
    path.write_text(TINY.replace("STEPS", "3"))
    run_study.main([*words, "--only", "seed=1"])
    assert "1 of 2 runs to do" in capfd.readouterr().out
    assert [r["tokens"] for r in run_study.read_records(out)] == [128, 192]

    study = dataclasses.replace(run_study.read_study(path))
    text, _ = study_pages.page("noise", study_pages.Runs(study, run_study.read_records(out)))
    assert "2 runs, seeds 0, 1" in text
    with pytest.raises(SystemExit, match="no run has bias=none"):
        run_study.main([*words, "--only", "bias=none"])


def test_statistics():
    assert study_pages.spread([]) == "-"
    assert study_pages.spread([0.5]) == "0.500"
    assert study_pages.spread([1.0, 2.0, 3.0]) == "2.000 ± 1.000"
    found = study_pages.difference({"0": 2.0, "1": 4.0, "2": 9.0}, {"0": 1.0, "1": 1.0})
    assert found == (2.0, 1.0)  # 1 and 3: deviation sqrt(2) over sqrt(2)
    assert study_pages.difference({"0": 1.0}, {"0": 1.0}) is None


@pytest.mark.parametrize("name", study_pages.PAGES)
def test_pages_say_what_the_records_say(name):
    study = study_pages.PAGES[name][0]
    if not (records := run_study.read_records(RESULTS / f"{study}.jsonl")):
        pytest.skip(f"no runs of the study {study} yet")
    runs = study_pages.Runs(run_study.read_study(study_pages.STUDIES / f"{study}.py"), records)
    text, _ = study_pages.page(name, runs)
    assert (RESULTS / f"{name}.md").read_text() == text
    assert (RESULTS / f"{name}.png").exists()
    for record in records:  # of the configuration that the study has today
        config = run_study.made(runs.study, record["settings"], {}, Path("runs"))
        if record["settings"]["seed"] == "0":
            assert run_study.plain(config) == record["config"], re.sub(r"\s+", " ", str(config))
