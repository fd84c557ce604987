"""`miras evaluate` and evaluators during a run: the same figures in the table, the record and the
metrics."""

import dataclasses
import json

import jax
import pytest

from miras_jax import cli
from miras_jax.cli import prepare_tasks as prepare  # what `miras train` gives to training
from miras_jax.data import load_vocabulary
from miras_jax.evals import EvaluationError, suite
from miras_jax.evals.result import Result
from miras_jax.evaluation_record import number
from miras_jax.export import load_model
from miras_jax.training import EvaluationConfig, MeshConfig, UserError, train
from tests.evals.oracles import Uniform
from tests.training.toy import records, toy

QUESTION = {"context": "the memory", "choices": [" learns", " what"], "gold": 0}


def write_inputs(folder):
    """A text and a file of questions; returns the tasks."""
    (folder / "words.txt").write_text("the memory learns what it reads " * 8)
    (folder / "questions.jsonl").write_text(f"{json.dumps(QUESTION)}\n" * 3)
    return (f"perplexity:{folder}/words.txt", f"zeroshot:{folder}/questions.jsonl")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on two devices, evaluated after steps 2, 4, 6 and 7; its tasks after 4 and 7."""
    folder = tmp_path_factory.mktemp("evaluate")
    tasks = write_inputs(folder)
    config = toy(
        folder,
        evaluation=EvaluationConfig(
            every=2, batches=1, sample_tokens=0, tasks=tasks, tasks_every=2
        ),
        mesh=MeshConfig(fsdp=2),
        steps=7,
    )
    final = train(config, prepare_tasks=prepare)
    return config, tasks, final


def test_tasks_are_run_on_the_mesh_of_the_run(run):
    config, tasks, final = run
    found = {r["step"]: r for r in records(config) if "eval/loss" in r}
    assert [*found] == [2, 4, 6, 7]
    assert [step for step, r in found.items() if "eval/words/loss" in r] == [4, 7]
    model, _ = load_model(config.directory)  # on one device
    expected = prepare(tasks, vocabulary=load_vocabulary("bytes"))(model)
    assert {"eval/words/bits_per_byte", "eval/questions/acc"} < expected.keys()
    for name, value in expected.items():
        # float32, summed on two devices.
        assert final[name] == found[7][name] == pytest.approx(value, rel=1e-5)


def test_the_command_prints_and_records_the_same(run, tmp_path, capsys):
    config, tasks, final = run
    out = tmp_path / "made" / "evaluation.json"
    asked = [f"{tasks[0]},mode=rolling,window=32,context=17,positions,name=rolled", *tasks]
    assert cli.main(["evaluate", config.directory, "--tasks", *asked, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    record = json.loads(out.read_text())
    rolled, words, questions = record["results"]
    assert [x["name"] for x in record["results"]] == ["rolled", "words", "questions"]
    for result in (words, questions):
        for name, value in result["figures"].items():
            assert value == pytest.approx(final[f"eval/{result['name']}/{name}"], rel=1e-5)
            assert number(value) in printed
    assert rolled["task"] == asked[0]
    assert rolled["options"] | {"mode": "rolling", "window": 32} == rolled["options"]
    assert rolled["counts"] == words["counts"]
    assert sum(rolled["curves"]["tokens"]) == rolled["counts"]["tokens"] == 256
    assert "bits_per_byte from token 64" in printed
    assert (record["checkpoint"], record["step"]) == (config.directory, 7)
    assert record["model"] == dataclasses.asdict(config.model)
    model, _ = load_model(config.directory)
    assert record["parameters"] == sum(x.size for x in jax.tree.leaves(model))
    assert record["versions"]["jax"] == jax.__version__
    assert record["hardware"]["backend"] == "cpu"
    assert record["vocabulary"]["kind"] == "bytes"
    asked = ["--tasks", tasks[0], "--control", "frozen", "--out", str(out)]
    assert cli.main(["evaluate", config.directory, *asked]) == 0
    broken = json.loads(out.read_text())
    assert broken["model"]["control"] == "frozen"
    assert broken["results"][0]["figures"] != words["figures"]


def test_an_infinite_figure_is_no_failure(run, tmp_path, monkeypatch, capsys):
    """null in the record; left out of the metrics, where it would end the run."""
    config, tasks, _ = run
    result = Result({"loss": 1e3, "perplexity": float("inf")})
    made = [suite.Evaluator("words", lambda model: result)]
    monkeypatch.setattr(suite, "prepare", lambda tasks, subject: made)
    assert prepare(tasks, vocabulary=None)(Uniform()) == {"eval/words/loss": 1e3}
    monkeypatch.setattr("miras_jax.evals.prepare", lambda tasks, subject: made)
    out = tmp_path / "evaluation.json"
    assert cli.main(["evaluate", config.directory, "--tasks", tasks[0], "--out", str(out)]) == 0
    assert json.loads(out.read_text())["results"][0]["figures"]["perplexity"] is None


def test_what_is_done_is_kept_where_a_task_fails(run, tmp_path, monkeypatch, capsys):
    def fail(model):
        raise MemoryError

    config, tasks, _ = run
    made = [
        suite.Evaluator("first", lambda model: Result({"acc": 0.5})),
        suite.Evaluator("b", fail),
    ]
    monkeypatch.setattr("miras_jax.evals.prepare", lambda tasks, subject: made)
    out = tmp_path / "evaluation.json"
    with pytest.raises(MemoryError):
        cli.main(["evaluate", config.directory, "--tasks", tasks[0], "--out", str(out)])
    assert [x["name"] for x in json.loads(out.read_text())["results"]] == ["first"]
    assert "0.5000" in capsys.readouterr().out


def test_bad_requests_say_what_to_change(run, capsys):
    config, tasks, _ = run
    assert cli.main(["evaluate", config.directory, "--tasks", f"{tasks[0]},windw=3"]) == 2
    assert "perhaps you meant window" in capsys.readouterr().err
    asked = ["--tasks", tasks[0], "--control", "backwards"]
    assert cli.main(["evaluate", config.directory, *asked]) == 2
    assert "model.control must be one of ascent, frozen" in capsys.readouterr().err
    # Said before the checkpoint is looked for.
    assert cli.main(["evaluate", "nowhere", "--tasks", "riddles:x"]) == 2
    assert "KIND of perplexity, zeroshot, harness" in capsys.readouterr().err


def test_training_needs_to_be_told_how(tmp_path):
    tasks = write_inputs(tmp_path)
    config = toy(tmp_path, evaluation=EvaluationConfig(tasks=tasks))
    with pytest.raises(UserError, match="prepare_tasks"):
        train(config)
    taken = toy(tmp_path, evaluation=EvaluationConfig(tasks=("zeroshot:none.jsonl",)))
    with pytest.raises(EvaluationError, match="no file, folder"):
        train(taken, prepare_tasks=prepare)
    with pytest.raises(UserError, match="tasks_every must not be negative"):
        train(toy(tmp_path, evaluation=EvaluationConfig(tasks_every=-1)))
    assert not (tmp_path / "run").exists()
