"""Kinds of tasks: a module with options of its own is all that a new one takes."""

import dataclasses
import sys
import types

import pytest

from miras_jax.data import load_vocabulary
from miras_jax.evals import EvaluationError, Evaluator, Result, Subject, prepare, suite
from tests.evals.oracles import Uniform


@dataclasses.dataclass(frozen=True)
class Options(suite.Common):
    seed: int = dataclasses.field(default=0, metadata={"least": 0})
    settings: dict[str, str] = dataclasses.field(default_factory=dict)


@pytest.fixture
def riddles(monkeypatch):
    """The kind `riddle`, which collects what it does not know."""
    module = types.ModuleType("riddles")
    module.Options = Options

    def prepare(target, options, subject):
        figures = {"seed": options.seed, "settings": len(options.settings)}
        return [Evaluator(options.name or target, lambda model: Result(figures))]

    module.prepare = prepare
    monkeypatch.setitem(sys.modules, "riddles", module)
    monkeypatch.setitem(suite.KINDS, "riddle", "riddles")


def test_a_kind_is_a_module_and_a_row(riddles):
    task = "riddle:sphinx,legs=4+2+3,seed=0,settings=x,name=old"
    [found] = prepare([task], Subject(load_vocabulary("bytes")))
    assert (found.name, found.task) == ("old", task)
    assert found.options["settings"] == {"legs": "4+2+3", "settings": "x"}
    assert found.run(Uniform()).figures == {"seed": 0, "settings": 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("legs", "no option 'legs'"),
        ("legs=", "no option 'legs'"),
        ("legs=4,legs=2", "'legs' twice"),
        ("seed=-1", "seed must be a whole number of at least 0"),
        ("limit=0", "limit must be a whole number of at least 1"),
    ],
)
def test_what_is_no_setting_is_refused(riddles, words, message):
    with pytest.raises(EvaluationError, match=message):
        suite.parse(f"riddle:sphinx,{words}")
