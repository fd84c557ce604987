"""What an evaluation leaves: a JSON record that says all it depends on, and a table."""

import dataclasses
import datetime
import json
import math
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
from rich.table import Table

import miras_jax
from miras_jax.evals.result import Result
from miras_jax.evals.suite import Evaluator

FORMAT, VERSION = "miras_jax evaluation", 1
LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "tokenizers", "sentencepiece", "lm_eval")


def describe(
    evaluators: Sequence[Evaluator], results: Sequence[tuple[Result, float]], **subject: Any
) -> dict[str, Any]:
    """The record, in plain JSON values; `null` stands for what is not finite.

    Args:
      evaluators: what was run.
      results: of each its result and the seconds that it took, compilation included.
      **subject: what is known of the model and the request.
    """
    record = {
        "format": FORMAT,
        "format_version": VERSION,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **subject,
        "versions": versions(),
        "hardware": hardware(),
        "results": [
            {
                "name": each.name,
                "task": each.task,
                "options": each.options,
                "figures": result.figures,
                "standard_errors": result.errors,
                "counts": result.counts,
                "curves": result.curves,
                "seconds": round(seconds, 3),
            }
            for each, (result, seconds) in zip(evaluators, results, strict=True)
        ],
    }
    return plain(record)


def write(record: dict[str, Any], path: str) -> None:
    """Writes the record; the file is there when it is complete."""
    partial = f"{path}.partial"
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(partial, "w", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)


def versions() -> dict[str, str]:
    """Of this library, Python and the libraries that are installed and can change a figure."""
    found = {"miras_jax": miras_jax.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The devices of this process, and the machine that they are in."""
    devices = jax.devices()
    return {
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
    }


def table(evaluators: Sequence[Evaluator], results: Sequence[tuple[Result, float]]) -> Table:
    """A row for each figure, and one for each bucket of a curve."""
    made = Table("name", "figure", box=None, pad_edge=False)
    for column in ("value", "std. error"):
        made.add_column(column, justify="right")
    made.add_column("over")
    for each, (result, _) in zip(evaluators, results, strict=True):
        first, over = each.name, ", ".join(f"{name} {x:,}" for name, x in result.counts.items())
        for name, value in result.figures.items():
            error = result.errors.get(name)
            made.add_row(first, name, number(value), "" if error is None else number(error), over)
            first = over = ""
        curve = result.curves
        for i, start in enumerate(curve.get("start", ())):
            value = number(curve["bits_per_byte"][i])
            what = f"tokens {curve['tokens'][i]:,}"
            if "memory_norm" in curve:
                norms = (number(layer[i]) for layer in curve["memory_norm"])
                what += f", memory norm {' '.join(norms)}"
            made.add_row("", f"bits_per_byte from token {start:,}", value, "", what)
    return made


def number(x: float) -> str:
    """Writes a figure for people."""
    if 1e-3 <= abs(x) < 1e5 or x == 0:
        return f"{x:.4f}" if abs(x) < 100 else f"{x:,.1f}"
    return f"{x:.3e}"


def plain(value: Any) -> Any:
    """The value as JSON has it; `null` stands for what is not finite."""
    if dataclasses.is_dataclass(value):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(name): plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
