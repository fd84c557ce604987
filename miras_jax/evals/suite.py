"""Evaluators by what a user writes: `KIND:TARGET,option=value`, as `perplexity:text.txt,limit=3`.

A kind is a module with a dataclass `Options`, which extends `Common`, and a function
`prepare(target, options, subject)`, which reads what it needs and returns its evaluators. Options
that the dataclass does not have are refused, or collected as text in its field `settings`, if it
has one. Nothing else knows the kinds: a new one is a module and a row of `KINDS`.
"""

import dataclasses
import difflib
import importlib
import math
import os
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

from miras_jax.data import Vocabulary
from miras_jax.evals.device import Model
from miras_jax.evals.errors import EvaluationError
from miras_jax.evals.result import Result

KINDS = {
    "perplexity": "miras_jax.evals.perplexity",
    "zeroshot": "miras_jax.evals.multiple_choice",
    "harness": "miras_jax.evals.harness",
    "task": "miras_jax.evals.synthetic",
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """What evaluators have to know of the model that they will be given.

    Attributes:
      vocabulary: its tokenizer.
      packed: whether documents began with the separator in training.
      batch_size, piece: see `scoring.score`.
      include_path: a folder of lm-evaluation-harness tasks.
      taken: names that evaluators may not have.
    """

    vocabulary: Vocabulary
    packed: bool = False
    batch_size: int = 16
    piece: int = 512
    include_path: str | None = None
    taken: tuple[str, ...] = ()

    @staticmethod
    def name_of(target: str) -> str:
        """What an evaluator of a file or folder is called: the name without its ending."""
        return os.path.basename(target.rstrip("/")).split(".")[0] or target


@dataclasses.dataclass(frozen=True)
class Common:
    """Options of every kind."""

    name: str | None = None
    """What its figures are called; the target's name if not given."""
    limit: int | None = None
    """Documents or items to read, the first ones; all if not given."""
    batch_size: int | None = None
    """Rows in a batch, in the place of the command's."""
    piece: int | None = None
    """Tokens that are read at once, in the place of the command's."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """One evaluation, ready to be run on any model of the subject's vocabulary.

    Attributes:
      name: of its figures.
      run: from a model to its result.
      task: what the user wrote, and all options; `prepare` fills them in.
    """

    name: str
    run: Callable[[Model], Result]
    task: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Request:
    """One task as it was asked for, checked."""

    task: str
    target: str
    options: Common
    module: Any


def parse(task: str) -> Request:
    """Reads `KIND:TARGET,option=value,flag`; a target has no comma.

    Raises:
      EvaluationError: no such kind or option, or a value that it cannot have.
    """
    kind, colon, rest = task.partition(":")
    target, *words = rest.split(",")
    if kind not in KINDS or not colon or not target:
        raise EvaluationError(
            f"task {task!r} must be KIND:TARGET,option=value, with a KIND of {', '.join(KINDS)}"
        )
    module = importlib.import_module(KINDS[kind])
    own = {field.name for field in dataclasses.fields(module.Options)} - {"settings"}
    values: dict[str, Any] = {}
    settings: dict[str, str] = {}
    for word in words:
        name, value = _option(task, word, module.Options)
        if name in values | settings:
            raise EvaluationError(f"task {task!r} has the option {name!r} twice")
        (values if name in own else settings)[name] = value
    if settings:
        values["settings"] = settings
    return Request(task, target, module.Options(**values), module)


def prepare(tasks: Sequence[str], subject: Subject) -> list[Evaluator]:
    """Reads everything that the tasks name, so that what is missing shows before a model runs.

    Raises:
      EvaluationError, DataError: what is wrong with which task.
    """
    found: list[Evaluator] = []
    for request in [parse(task) for task in tasks]:
        options = dataclasses.asdict(request.options)
        for each in request.module.prepare(request.target, request.options, subject):
            found.append(dataclasses.replace(each, task=request.task, options=options))
    names = [each.name for each in found]
    for each in found:
        if names.count(each.name) > 1 or each.name in subject.taken:
            raise EvaluationError(f"the name {each.name!r} is taken: give a task another name=NAME")
        if not each.name or set(each.name) & set("/*?["):  # of a pattern there is no name
            raise EvaluationError(f"a task cannot be called {each.name!r}: give it a name=NAME")
    return found


def prepare_for_training(
    tasks: Sequence[str], subject: Subject
) -> Callable[[Model], dict[str, float]]:
    """Makes of tasks one function from a model to figures for its metrics, `eval/NAME/FIGURE`;
    figures that are infinite, such as the perplexity of a hopeless model, are left out."""
    evaluators = prepare(tasks, subject)

    def run(model: Model) -> dict[str, float]:
        return {
            f"eval/{each.name}/{figure}": value
            for each in evaluators
            for figure, value in each.run(model).figures.items()
            if not math.isinf(value)
        }

    return run


def _option(task: str, word: str, options: type[Common]) -> tuple[str, Any]:
    """Reads one `option=value`; a flag may stand alone."""
    name, equals, text = word.partition("=")
    kinds = typing.get_type_hints(options)
    is_open = kinds.pop("settings", None) is not None
    if name not in kinds and is_open and name and text:
        return name, text
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, 1)
        hint = f"perhaps you meant {near[0]}" if near else f"there are {', '.join(kinds)}"
        raise EvaluationError(f"task {task!r} has no option {name!r}: {hint}")
    kind = kinds[name]
    if isinstance(kind, types.UnionType):  # X | None
        kind = typing.get_args(kind)[0]
    if kind is bool:
        text, equals = (text, equals) if equals else ("true", "=")
        if text in ("true", "false"):
            return name, text == "true"
        expected = "true or false"
    elif typing.get_origin(kind) is Literal:
        if text in typing.get_args(kind):
            return name, text
        expected = " or ".join(typing.get_args(kind))
    elif kind is int:
        least = options.__dataclass_fields__[name].metadata.get("least", 1)
        if text.isdecimal() and int(text) >= least:
            return name, int(text)
        expected = f"a whole number of at least {least}"
    else:
        if text:
            return name, text
        expected = "some text"
    raise EvaluationError(f"task {task!r}: {name} must be {expected}, got {text!r}")
