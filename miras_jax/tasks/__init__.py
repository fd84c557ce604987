"""Synthetic tasks of memory, drawn from a seed: one file per family, one entry per task.

numpy alone; `scoring` grades what a model answers.
"""

import dataclasses

from miras_jax.tasks.mad import Compression, Memorization, SelectiveCopying
from miras_jax.tasks.mad_recall import FuzzyRecall, InContextRecall
from miras_jax.tasks.mqar import MQAR, MQARMix
from miras_jax.tasks.needle import Needle
from miras_jax.tasks.parsing import convert, is_task, split
from miras_jax.tasks.recall_variants import Compositional, Corrupted, Forgetting
from miras_jax.tasks.states import StateTracking
from miras_jax.tasks.task import Example, Task

TASKS: dict[str, Task] = {
    "mqar": MQAR(),
    "mqar_mix": MQARMix(),
    "mqar_extrapolation": MQAR(pairs=8, length=128, test_lengths=(128, 256, 512, 1024)),
    "forgetting": Forgetting(),
    "compositional": Compositional(),
    "corrupted": Corrupted(),
    "mad_in_context": InContextRecall(),
    "mad_fuzzy": FuzzyRecall(),
    "mad_noisy": InContextRecall(vocab_size=32, noise_tokens=16, noise=0.2),
    "mad_selective_copying": SelectiveCopying(),
    "mad_compression": Compression(),
    "mad_memorization": Memorization(),
    "passkey": Needle(),
    "needle_word": Needle(value="word"),
    "needle_uuid": Needle(value="uuid"),
    "needle_among_needles": Needle(haystack="needle"),
    "parity": StateTracking(degree=2),
    "s3": StateTracking(degree=3),
    "s5": StateTracking(degree=5),
}
"""Every task by name, with its default settings."""

__all__ = [
    "MQAR",
    "TASKS",
    "Compositional",
    "Compression",
    "Corrupted",
    "Example",
    "Forgetting",
    "FuzzyRecall",
    "InContextRecall",
    "MQARMix",
    "Memorization",
    "Needle",
    "SelectiveCopying",
    "StateTracking",
    "Task",
    "get",
    "is_task",
    "names",
    "parse",
]


def names() -> list[str]:
    """Every task's name."""
    return list(TASKS)


def get(name: str, **choices) -> Task:
    """A task, with settings replaced: `get("mqar", pairs=8, length=128)`.

    Raises:
      ValueError: no task has that name or such a setting, or the recipe cannot be carried out.
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}; there are {', '.join(TASKS)}.")
    fields = [field.name for field in dataclasses.fields(TASKS[name])]
    if unknown := sorted(set(choices) - set(fields)):
        raise ValueError(f"{name} has no {', '.join(unknown)}; its settings: {', '.join(fields)}.")
    return dataclasses.replace(TASKS[name], **choices)


def parse(text: str, **defaults) -> Task:
    """A task from text: `parse("mqar,pairs=8,length=128")`, with or without `task:` before it.

    Args:
      text: the name, then settings; several numbers in one are joined by +.
      defaults: settings where the text has none.

    Raises:
      ValueError: as `get`, or the text is not of this form.
    """
    name, settings = split(text)
    return get(name, **{**defaults, **(convert(TASKS[name], settings) if name in TASKS else {})})
