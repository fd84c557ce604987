"""Synthetic tasks by name: `task:mqar:pairs=8:length=128,limit=500`; see docs/tasks.md."""

import dataclasses

from miras_jax import tasks
from miras_jax.evals.device import Model
from miras_jax.evals.errors import EvaluationError
from miras_jax.evals.recall import evaluate_task
from miras_jax.evals.result import Result
from miras_jax.evals.suite import Common, Evaluator, Subject


@dataclasses.dataclass(frozen=True)
class Options(Common):
    """Options of `task:NAME`; the settings of the task follow its name, with colons."""


def prepare(target: str, options: Options, subject: Subject) -> list[Evaluator]:
    """Makes the task of `task:NAME:SETTING=VALUE:SETTING=VALUE`."""
    try:
        task = tasks.parse(target.replace(":", ","))
    except (ValueError, OSError) as error:
        raise EvaluationError(f"task:{target}: {error}") from error
    size = options.batch_size or subject.batch_size

    def run(model: Model) -> Result:
        try:
            found = evaluate_task(model, task, examples=options.limit, batch_size=size)
        except ValueError as error:
            raise EvaluationError(f"task:{target}: {error}") from error
        counts = {"examples": int(found.pop("count"))}
        errors = {
            name.replace("standard_error", "accuracy"): found.pop(name)
            for name in [*found]
            if name.startswith("standard_error")
        }
        return Result(found, errors, counts)

    return [Evaluator(options.name or target.partition(":")[0], run)]
