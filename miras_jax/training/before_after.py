"""What a run that begins with a checkpoint gained and lost: held-out text, before and after.

Before the first step, and at every evaluation, the model is also measured on the held-out text of
the run that the checkpoint is of: the old data.
"""

from collections.abc import Callable, Sequence
from typing import Any

from miras_jax.data import TrainingText, count_rows, is_completions, load_text
from miras_jax.nn import LanguageModel
from miras_jax.training.config import TrainConfig
from miras_jax.training.errors import UserError
from miras_jax.training.metrics import Record
from miras_jax.training.source import open_source

OLD = "old_data"
Evaluate = Callable[[LanguageModel], dict[str, float]]


def old_text(config: TrainConfig) -> TrainingText | str:
    """The text of the checkpoint's own run, or why it cannot be read any more."""
    try:
        source = open_source(config.start.checkpoint)
    except UserError as error:
        return str(error)
    if source.is_export:
        return "an exported folder does not say what it was trained on"
    data, known = source.config["data"], source.metadata["corpus"]
    try:
        found = load_text(_read(data["source"]), _read(data["validation"]))
    except (ValueError, OSError) as error:
        return f"{data['source']!r}: {error}"
    if found.sha256 != known["sha256"]:
        return f"{data['source']!r} has changed since"
    if not all(count_rows(text, config.data.window) for text in found.validation.values()):
        return f"the held-out text of {data['source']!r} is shorter than data.window"
    return found


def _read(names: Any) -> Any:
    """What JSON made a list was a tuple."""
    return tuple(names) if isinstance(names, list) else names


def with_old_text(evaluate: Evaluate, evaluate_old: Evaluate) -> Evaluate:
    """Adds the figures of all old text together, as `eval/old_data/...`."""

    def both(params: LanguageModel) -> dict[str, float]:
        old = evaluate_old(params)
        names = ("loss", "bits_per_byte")
        return evaluate(params) | {f"eval/{OLD}/{name}": old[f"eval/{name}"] for name in names}

    return both


def lines(config: TrainConfig, corpus: TrainingText, records: Sequence[Record]) -> list[str]:
    """Says how good the model was and is, given the records of evaluations."""
    if config.start.checkpoint is None or not records or records[0]["step"]:
        return []
    before, after = records[0], records[-1]
    completions = all(map(is_completions, corpus.validation.values()))
    tokens = "completion token" if completions else "token"
    said = [f"before and after {after['step']} steps, on held-out text:"]
    for prefix, what in (("eval/", "new data"), (f"eval/{OLD}/", "old data")):
        if f"{prefix}loss" not in before.keys() & after.keys():
            found = old_text(config)
            reason = found if isinstance(found, str) else "it could not be read all the time"
            said.append(f"  {what}: not measured, {reason}")
            continue
        pairs = [
            f"{before[prefix + name]:.3f} -> {after[prefix + name]:.3f} {unit}"
            for name, unit in (
                ("bits_per_byte", "bits per byte"),
                ("loss", f"nats per {tokens if prefix == 'eval/' else 'token'}"),
            )
        ]
        said.append(f"  {what}: {', '.join(pairs)}")
    return said
