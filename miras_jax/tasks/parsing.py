"""Tasks as text: `mqar,pairs=16,length=128`, and `task:` before it where a data source is named."""

import types
import typing
from typing import Any, Literal

from miras_jax.tasks.task import Task

PREFIX = "task:"


def is_task(source: Any) -> bool:
    """Whether a data source is a task."""
    return isinstance(source, str) and source.startswith(PREFIX)


def split(text: str) -> tuple[str, dict[str, str]]:
    """The name and the settings of `NAME,FIELD=VALUE,FIELD=VALUE`, with or without the prefix.

    Raises:
      ValueError: a setting has no value or comes twice.
    """
    name, *words = text.removeprefix(PREFIX).split(",")
    settings: dict[str, str] = {}
    for word in words:
        field, equals, value = word.partition("=")
        if not (field and equals and value) or field in settings:
            raise ValueError(f"{text!r}: after the name come FIELD=VALUE, each once, got {word!r}.")
        settings[field] = value
    return name, settings


def convert(task: Task, settings: dict[str, str]) -> dict[str, Any]:
    """Values of the types of the task's fields; several numbers are joined by +, as in 64+128.

    Raises:
      ValueError: a value is not of its field's type. Fields that there are not stay text.
    """
    kinds = typing.get_type_hints(type(task))
    return {
        field: _value(field, text, kinds[field]) if field in kinds else text
        for field, text in settings.items()
    }


def _value(field: str, text: str, kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if text == "None":
            return None
        [kind] = [each for each in typing.get_args(kind) if each is not types.NoneType]
    if typing.get_origin(kind) is tuple:
        return tuple(_value(field, part, typing.get_args(kind)[0]) for part in text.split("+"))
    if typing.get_origin(kind) is Literal:
        return text  # the task knows its choices
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{field} must be True or False, got {text!r}.")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{field} must be of type {kind.__name__}, got {text!r}.") from None
