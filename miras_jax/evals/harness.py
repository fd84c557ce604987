"""Tasks of lm-evaluation-harness (extra `eval`): an adapter for its `TemplateLM`, and the kind.

`HarnessModel` can be given to `lm_eval.simple_evaluate` directly. It needs neither torch nor
transformers.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from miras_jax.data import Tokenizer
from miras_jax.data.errors import need
from miras_jax.evals.device import Model
from miras_jax.evals.errors import EvaluationError
from miras_jax.evals.multiple_choice import score_pairs
from miras_jax.evals.perplexity import document_nats
from miras_jax.evals.result import Result
from miras_jax.evals.suite import Common, Evaluator, Subject
from miras_jax.nn import generate

TemplateLM = need("lm_eval.api.model", "eval").TemplateLM

BOOTSTRAPS = 100
"""Resamples for standard errors of metrics that have no formula, lm-evaluation-harness' own count
in its task groups; accuracies have one."""
STRIDE = 256
"""Attention's cache is as long as a multiple of this, so that few lengths are compiled."""


@dataclasses.dataclass(frozen=True)
class Options(Common):
    """Options of `harness:TASK`."""

    fewshot: int | None = None
    """Solved examples before each question; the task's own number if not given."""
    window: int | None = None
    """Tokens of a rolling window, for tasks of perplexity; one memory over the whole text if not
    given."""


class HarnessModel(TemplateLM):
    """A model as lm-evaluation-harness asks for it.

    Args:
      model: the model; `generate_until` needs a `LanguageModel`.
      tokenizer: the model's.
      packed: whether documents began with the separator in training; contexts do then, too.
      window: tokens of the windows in which texts are scored; None carries the memory over each.
      batch_size, piece: see `scoring.score`.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        packed: bool = False,
        window: int | None = None,
        batch_size: int = 16,
        piece: int = 512,
    ):
        super().__init__()
        self._model, self._tokenizer, self._window = model, tokenizer, window
        self._before = [tokenizer.separator] if packed else []
        self._sizes = {"batch_size": batch_size, "piece": piece}

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.separator

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        return self._tokenizer.encode(string).tolist()

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_
    ) -> list[tuple[float, bool]]:
        separator = self._tokenizer.separator
        # An empty context comes as a separator, which `score_pairs` would put there itself.
        pairs = [
            ([] if context == [separator] else context, after) for _, context, after in requests
        ]
        scores = score_pairs(
            self._model, pairs, before=self._before, separator=separator, **self._sizes
        )
        return [(x.logprob, x.greedy) for x in scores]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        nats = document_nats(
            self._model,
            [self._tokenizer.encode(request.args[0]) for request in requests],
            separator=self._tokenizer.separator,
            window=self._window,
            **self._sizes,
        )
        return (-nats).tolist()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        mesh = jax.sharding.get_mesh()
        if not mesh.empty and mesh.size > 1:
            raise EvaluationError("tasks that generate run on one device: evaluate the checkpoint")
        return [self._continue(*request.args) for request in requests]

    def _continue(self, context: str, asked: dict[str, Any]) -> str:
        """Continues a context up to the first of the texts where it has to stop, without it."""
        options = need("lm_eval.models.utils", "eval").normalize_gen_kwargs(asked)
        stops, most = [x for x in options["until"] if x], options["max_gen_toks"]
        prompt = [*self._before, *self.tok_encode(context)] or [self.eot_token_id]
        slots = -(-(len(prompt) + most) // STRIDE) * STRIDE
        ids: list[int] = []
        text = ""
        for token in generate(
            self._model,
            np.array(prompt, np.int32),
            steps=slots - len(prompt),
            key=jax.random.key(0),
            temperature=options.get("temperature", 0.0) if options.get("do_sample") else 0.0,
            vocab_size=self._tokenizer.vocab_size,
        ):
            if token == self.eot_token_id:
                break
            ids.append(token)
            text = self._tokenizer.decode(ids)
            if len(ids) == most or any(stop in text for stop in stops):
                break
        ends = [at for stop in stops if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text


def prepare(target: str, options: Options, subject: Subject) -> list[Evaluator]:
    """Looks the task, or group of tasks, `harness:TARGET` up."""
    tasks = need("lm_eval.tasks", "eval")
    manager = None
    if subject.include_path is not None:
        if not os.path.isdir(subject.include_path):
            raise EvaluationError(f"there is no folder {subject.include_path} of harness tasks")
        manager = tasks.TaskManager(include_path=subject.include_path, include_defaults=False)
    if manager is None or target not in manager.all_tasks:  # thousands of files to be listed
        manager = tasks.TaskManager(include_path=subject.include_path)
    if target not in manager.all_tasks:
        raise EvaluationError(f"lm-evaluation-harness has no task {target!r}: see lm_eval ls tasks")

    def run(model: Model) -> Result:
        adapter = HarnessModel(
            model,
            subject.vocabulary.tokenizer,
            packed=subject.packed,
            window=options.window,
            batch_size=options.batch_size or subject.batch_size,
            piece=options.piece or subject.piece,
        )
        with _one_process():
            found = need("lm_eval.evaluator", "eval").simple_evaluate(
                model=adapter,
                tasks=[target],
                task_manager=manager,
                num_fewshot=options.fewshot,
                limit=options.limit,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=False,
            )
        return result_of(found, target)

    return [Evaluator(options.name or target, run)]


def result_of(found: dict[str, Any], target: str) -> Result:
    """Turns what `simple_evaluate` returns into figures; those of a group's tasks are TASK.FIGURE,
    those of a filter FIGURE.FILTER."""
    result = Result({}, {}, {})
    for task, values in found["results"].items():
        prefix = "" if task == target else f"{task}."
        for key, value in values.items():
            name, comma, filtered = key.partition(",")
            if not comma or isinstance(value, str):  # the alias; "N/A"
                continue
            name = prefix + name + ("" if filtered == "none" else f".{filtered}")
            kind = result.errors if "_stderr" in name else result.figures
            kind[name.replace("_stderr", "")] = float(value)
    samples = {task: count["effective"] for task, count in found["n-samples"].items()}
    result.counts["items"] = sum(samples.values())
    return result


@contextmanager
def _one_process() -> Iterator[None]:
    """Keeps the harness from forking, which a process that runs jax must not do."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before
