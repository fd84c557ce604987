"""Runs compared: a table of their metrics and pictures of their curves, for `miras report`."""

import importlib.util
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from miras_jax import report_plots
from miras_jax.report_runs import BITS, RATE, Run
from miras_jax.training.errors import UserError


def check_plotting() -> None:
    """Refuses to begin where there is nothing to draw with.

    Raises:
      UserError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("miras report draws with matplotlib: pip install matplotlib")


def table(runs: Sequence[Run]) -> str:
    """The runs in Markdown: a row for each, a dash where something is not known; and where held-out
    texts have names, their bits per byte in a table of their own."""
    columns: dict[str, Callable[[Run], str]] = {
        "run": lambda run: run.name,
        "model": lambda run: run.model or "-",
        "parameters": lambda run: _number(run.parameters, ",d"),
        "steps": lambda run: _number(run.records[-1]["step"], ",d"),
        "tokens": lambda run: _number(run.tokens, ",d"),
        "training loss, last / best": lambda run: _last_and_best(run, "train/loss"),
        "held-out loss, last / best": lambda run: _last_and_best(run, "eval/loss"),
        "bits per byte, last / best": lambda run: _last_and_best(run, f"eval/{BITS}"),
        "tokens/s": lambda run: _number(_median(run, RATE), ",.0f"),
        "step p50 / p90 / p99 (ms)": _step_times,
        "wall time (s)": lambda run: _number(_last(run.seconds()[1]), ",.1f"),
    }
    rows = [[cell(run) for cell in columns.values()] for run in runs]
    text = _markdown([list(columns), *rows])
    text += (
        "\n\nLosses: nats per token. Tokens/s and the percentiles of a step's time are medians"
        " over the records, each of which is of the steps since the one before. Wall time ends with"
        " the last record of training."
    )
    if names := _held_out(runs):
        rows = [
            [run.name, *(_last_and_best(run, f"eval/{n}/{BITS}") for n in names)] for run in runs
        ]
        text += "\n\nBits per byte by held-out text, last / best:\n\n"
        text += _markdown([["run", *names], *rows])
    return text


def _held_out(runs: Iterable[Run]) -> list[str]:
    """Names of the held-out texts of all the runs."""
    figures = (name.split("/") for run in runs for name in run.names("eval/", f"/{BITS}"))
    return list(dict.fromkeys(parts[1] for parts in figures if len(parts) == 3))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    )
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _last(values: np.ndarray) -> float | None:
    return float(values[-1]) if len(values) else None


def _median(run: Run, name: str) -> float | None:
    values = run.series(name)[1]
    return float(np.median(values)) if len(values) else None


def _last_and_best(run: Run, name: str) -> str:
    values = run.series(name)[1]
    return f"{values[-1]:.4f} / {values.min():.4f}" if len(values) else "-"


def _step_times(run: Run) -> str:
    times = [_median(run, f"throughput/step_seconds_p{p}") for p in (50, 90, 99)]
    return "-" if None in times else " / ".join(f"{1000 * time:.1f}" for time in times)


def write(runs: Sequence[Run], folder: str) -> list[pathlib.Path]:
    """Writes report.md and its pictures to a folder, which it makes; returns their paths.

    Raises:
      OSError: the folder cannot be made or written.
    """
    out = pathlib.Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    pictures = report_plots.draw(runs, out)
    lines = ["# Report", "", table(runs)]
    notes = [f"- {run.name}: {note}" for run in runs for note in run.notes]
    lines += ["", *notes] if notes else []
    for picture in pictures:
        lines += ["", f"![{picture.stem}]({picture.name})"]
    page = out / "report.md"
    page.write_text("\n".join(lines) + "\n")
    return [page, *pictures]
