"""Multiple choice and last-word prediction without training for it ("zero-shot"), from JSON lines.

The fields of an item say what it is:

- `context`, `choices`, `gold`: one context and several continuations, of which the gold-th is
  right (HellaSwag, PIQA, ARC, BoolQ, SIQA).
- `contexts`, `continuation`, `gold`: the choice is among contexts, and what follows all of them is
  scored (WinoGrande's partial evaluation, Trinh and Le 2018, arXiv 1806.02847).
- `context`, `continuation`: the model has to give the continuation itself (LAMBADA).

Continuations bring their own leading space.
"""

import dataclasses
import glob
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from miras_jax.data import Tokenizer
from miras_jax.evals.device import Model
from miras_jax.evals.errors import EvaluationError
from miras_jax.evals.result import Result, exponential, known, ratio_error, standard_error
from miras_jax.evals.scoring import score
from miras_jax.evals.suite import Common, Evaluator, Subject

Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Item:
    """A question.

    Attributes:
      pairs: (context, continuation) of every choice; of LAMBADA the one there is.
      gold: which is right; None where the model has to give the continuation itself.
      among_contexts: the continuations are all the same.
    """

    pairs: tuple[Pair, ...]
    gold: int | None
    among_contexts: bool = False


@dataclasses.dataclass(frozen=True)
class Options(Common):
    """Options of `zeroshot:PATH`."""


def prepare(target: str, options: Options, subject: Subject) -> list[Evaluator]:
    """Reads the items of `zeroshot:TARGET`: a file, all `.jsonl` files of a folder, a pattern."""
    if os.path.isdir(target):
        paths = sorted(glob.glob(os.path.join(glob.escape(target), "*.jsonl")))
    else:
        paths = [target] if os.path.isfile(target) else sorted(glob.glob(target))
    if not paths:
        raise EvaluationError(f"zeroshot:{target} is no file, folder of .jsonl files or pattern")

    def evaluator(path: str) -> Evaluator:
        items = read_items(path, options.limit)

        def run(model: Model) -> Result:
            return evaluate(
                model,
                items,
                subject.vocabulary.tokenizer,
                packed=subject.packed,
                batch_size=options.batch_size or subject.batch_size,
                piece=options.piece or subject.piece,
            )

        return Evaluator((len(paths) == 1 and options.name) or subject.name_of(path), run)

    return [evaluator(path) for path in paths]


def read_items(path: str, limit: int | None = None) -> list[Item]:
    """Reads a file of items, one JSON object a line.

    Raises:
      EvaluationError: names the first line that is none, or says that there are none.
    """
    items: list[Item] = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(items) >= limit:
                break
            if line.strip():
                try:
                    items.append(_item(json.loads(line)))
                except (ValueError, UnicodeDecodeError) as error:
                    raise EvaluationError(f"{path}, line {number}: {error}") from None
    if not items:
        raise EvaluationError(f"{path} holds no items")
    if len({item.gold is None for item in items}) > 1:
        raise EvaluationError(f"{path} mixes items with choices and items without")
    return items


def _item(fields: Any) -> Item:
    """Checks one object; says in a ValueError what is wrong with it."""
    if not isinstance(fields, dict):
        raise ValueError("no JSON object")
    among_contexts = "contexts" in fields
    if "choices" in fields:
        pairs = [(_text(fields, "context"), text) for text in _texts(fields, "choices")]
    elif among_contexts:
        pairs = [(text, _text(fields, "continuation")) for text in _texts(fields, "contexts")]
    else:
        pairs = [(_text(fields, "context"), _text(fields, "continuation"))]
    if not all(continuation for _, continuation in pairs):
        raise ValueError("there is nothing to score: a continuation is empty")
    gold = fields.get("gold")
    if "choices" not in fields and not among_contexts:
        return Item(tuple(pairs), None)
    if type(gold) is not int or not 0 <= gold < len(pairs):
        raise ValueError(f"gold must be a number from 0 to {len(pairs) - 1}, got {gold!r}")
    return Item(tuple(pairs), gold, among_contexts)


def _text(fields: dict, name: str) -> str:
    if not isinstance(value := fields.get(name), str):
        raise ValueError(f"{name!r} must be text")
    return value


def _texts(fields: dict, name: str) -> list[str]:
    value = fields.get(name)
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(x, str) for x in value):
        raise ValueError(f"{name!r} must be a list of two texts or more")
    return value


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Ids of the context and of what follows it, cut out of the ids of both together.

    Spaces at the context's end go with the continuation, whose first token they begin; as in
    lm-evaluation-harness.
    """
    kept = context.rstrip()
    continuation, context = context[len(kept) :] + continuation, kept
    before = tokenizer.encode(context).tolist() if context else []
    after = tokenizer.encode(context + continuation).tolist()[len(before) :]
    # Nothing is left where the two share their last token.
    return before, after or tokenizer.encode(continuation).tolist()


@dataclasses.dataclass(frozen=True)
class PairScore:
    """How likely a continuation is: log probability in nats, whether it is what greedy decoding
    gives, and its tokens."""

    logprob: float
    greedy: bool
    tokens: int


def score_pairs(
    model: Model,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    before: Sequence[int],
    separator: int,
    batch_size: int = 16,
    piece: int = 512,
) -> list[PairScore]:
    """Scores continuations after their contexts, both as ids.

    Args:
      model: the model.
      pairs: (context, continuation), the continuations not empty.
      before: ids to put before every context.
      separator: stands for a context that is empty.
      batch_size, piece: see `score`.
    """
    sequences = [
        np.array([*([*before, *context] or [separator]), *after], np.int32)
        for context, after in pairs
    ]
    found: list[PairScore | None] = [None] * len(pairs)
    for scored in score(model, sequences, batch_size=batch_size, piece=piece):
        size = len(pairs[scored.index][1])
        total = math.fsum(scored.logprobs[-size:].astype(float))
        found[scored.index] = PairScore(total, bool(scored.greedy[-size:].all()), size)
    return found


def evaluate(
    model: Model,
    items: Sequence[Item],
    tokenizer: Tokenizer,
    *,
    packed: bool = False,
    batch_size: int = 16,
    piece: int = 512,
) -> Result:
    """Answers the items.

    Args:
      model: the model.
      items: all with choices, or all without.
      tokenizer: the model's.
      packed: whether documents began with the separator in training; contexts do then, too.
      batch_size, piece: see `score`; they do not change the result.

    Returns:
      With choices `acc`, the part of the items whose likeliest choice is the right one; `acc_norm`,
      the same by log probability per byte of the choice (without its leading space; not where the
      choice is among contexts); `chance`, what guessing gives. Without choices `acc`, the part
      whose continuation is what greedy decoding gives, and `perplexity`, exp of the mean nats per
      continuation. With either `gold_bits_per_byte`, of the right continuations: it shows progress
      where accuracies are still at chance.
    """
    ids = [encode_pair(tokenizer, *pair) for item in items for pair in item.pairs]
    scores = score_pairs(
        model,
        ids,
        before=[tokenizer.separator] if packed else [],
        separator=tokenizer.separator,
        batch_size=batch_size,
        piece=piece,
    )
    of_items, at = [], 0
    for item in items:
        of_items.append((item, scores[at : at + len(item.pairs)]))
        at += len(item.pairs)
    measure = _last_words if items[0].gold is None else _choices
    figures, errors = measure(of_items)

    right = [(item.pairs[item.gold or 0][1], found[item.gold or 0]) for item, found in of_items]
    bits = np.array([-x.logprob / math.log(2) for _, x in right])
    sizes = np.array([len(text.encode()) for text, _ in right], float)
    figures["gold_bits_per_byte"] = math.fsum(bits) / sizes.sum()
    errors["gold_bits_per_byte"] = ratio_error(bits, sizes)
    counts = {"items": len(items), "tokens": sum(x.tokens for x in scores)}
    return Result(figures, known(errors), counts)


Figures = dict[str, float]


def _choices(of_items: list[tuple[Item, list[PairScore]]]) -> tuple[Figures, Figures]:
    """`acc`, `acc_norm` and `chance`, and the standard errors; the first of equals wins."""
    hits: dict[str, list[float]] = {"acc": [], "acc_norm": []}
    for item, scores in of_items:
        logprobs = np.array([x.logprob for x in scores])
        hits["acc"].append(float(np.argmax(logprobs) == item.gold))
        if not item.among_contexts:
            sizes = [max(1, len(text.lstrip().encode())) for _, text in item.pairs]
            hits["acc_norm"].append(float(np.argmax(logprobs / sizes) == item.gold))
    measured = {name: values for name, values in hits.items() if len(values) == len(of_items)}
    figures = {name: math.fsum(values) / len(values) for name, values in measured.items()}
    figures["chance"] = math.fsum(1 / len(item.pairs) for item, _ in of_items) / len(of_items)
    return figures, {name: standard_error(values) for name, values in measured.items()}


def _last_words(of_items: list[tuple[Item, list[PairScore]]]) -> tuple[Figures, Figures]:
    """`acc` and `perplexity`, and the standard errors, the perplexity's to first order."""
    hits = [float(scores[0].greedy) for _, scores in of_items]
    nats = [-scores[0].logprob for _, scores in of_items]
    perplexity = exponential(math.fsum(nats) / len(nats))
    errors = {"acc": standard_error(hits), "perplexity": perplexity * standard_error(nats)}
    return {"acc": math.fsum(hits) / len(hits), "perplexity": perplexity}, errors
