"""The curves of runs as PNG files: one picture a subject, one panel a figure, one colour a run."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from miras_jax.report_runs import BITS, RATE, Run

NORMS = {
    "train/grad_norm": ("gradient, before clipping", "l2 norm"),
    "train/update_norm": ("update", "l2 norm (unit of the weights)"),
}
INNER = {
    "inner/loss_before": ("loss of a pair before it is learned", "loss (the bias's unit)"),
    "inner/loss_after": ("loss of a pair after it is learned", "loss (the bias's unit)"),
    "inner/step_norm": ("change by one token, decay and write", "l2 norm (unit of the weights)"),
    "inner/memory_norm": ("size of the memory, mean", "l2 norm (unit of the weights)"),
    "inner/max_memory_norm": ("size of the memory, largest", "l2 norm (unit of the weights)"),
    "inner/retention": ("what one token leaves of the memory", "factor a token (0 to 1)"),
    "inner/step": ("step of the inner gradient descent", "eta (the gate's value)"),
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """One figure of the records against tokens (or steps where a run does not know its tokens), or
    against seconds."""

    figure: str
    title: str
    unit: str
    seconds: bool = False
    log: bool = False


def panels(runs: Sequence[Run]) -> dict[str, list[Panel]]:
    """By picture the panels that at least one run has figures for."""
    loss = ("training loss", "nats a token")
    found = {
        "loss": [Panel("train/loss", *loss), Panel("train/loss", *loss, seconds=True)],
        "bits_per_byte": [
            Panel(name, f"held-out text{_text_of(name)}", "bits per byte")
            for name in _names(runs, "eval/", BITS)
            if not name.endswith(("order0_" + BITS, "order1_" + BITS))
        ],
        "accuracy": [
            Panel(name, name.removeprefix("eval/").replace("/", ", "), "right answers (0 to 1)")
            for name in _names(runs, "eval/accuracy")
        ],
        "norms": [Panel(name, *words, log=True) for name, words in NORMS.items()],
        "groups": [
            Panel(f"{norm}/{group}", f"{words[0]}: {group}", words[1], log=True)
            for group in _groups(runs)
            for norm, words in NORMS.items()
        ],
        "speed": [
            Panel(RATE, "throughput", "tokens/s"),
            Panel("throughput/mfu", "model FLOPs utilization", "of the peak (0 to 1)"),
        ],
        "memories": [Panel(name, *words) for name, words in INNER.items()],
    }
    kept = {
        picture: [panel for panel in each if any(_has(run, panel) for run in runs)]
        for picture, each in found.items()
    }
    return {picture: each for picture, each in kept.items() if each}


def draw(runs: Sequence[Run], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the pictures that there are figures for and returns their paths."""
    import matplotlib

    matplotlib.use("Agg")  # no window: it runs where there is no screen
    paths = []
    for picture, each in panels(runs).items():
        paths.append(folder / f"{picture}.png")
        _draw(runs, picture, each, paths[-1])
    return paths


def _draw(runs: Sequence[Run], picture: str, each: list[Panel], path: pathlib.Path) -> None:
    from matplotlib import pyplot

    columns = min(len(each), 2)
    rows = -(-len(each) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(6.5 * columns, 3.2 * rows + 1), squeeze=False, layout="constrained"
    )
    in_tokens = all(run.tokens_per_step for run in runs)
    for axis, panel in zip(axes.flat, each, strict=False):
        positive = True
        for i, run in enumerate(runs):
            if not _has(run, panel):
                continue
            steps, values = run.series(panel.figure)
            x = steps
            if panel.seconds:
                x = np.interp(steps, *run.seconds())
            elif in_tokens:
                x = steps * run.tokens_per_step
            lines = values[:, None] if values.ndim == 1 else values
            marker = "." if len(x) < 30 else ""
            # Memories from the first, pale, to the last.
            for line, alpha in zip(lines.T, np.linspace(1, 0.3, lines.shape[1])[::-1], strict=True):
                axis.plot(x, line, marker=marker, color=f"C{i % 10}", alpha=alpha, linewidth=1)
            positive = positive and bool((values > 0).all())
        across = "seconds" if panel.seconds else "tokens" if in_tokens else "steps"
        axis.set(title=panel.title, ylabel=panel.unit, xlabel=across)
        if panel.log and positive:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(each) :]:
        axis.set_axis_off()
    handles = [
        pyplot.Line2D([], [], color=f"C{i % 10}", label=run.name) for i, run in enumerate(runs)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(runs), 4))
    if picture == "memories":
        figure.suptitle("memories from the first, pale, to the last")
    figure.savefig(path, format="png", dpi=100)
    pyplot.close(figure)


def _has(run: Run, panel: Panel) -> bool:
    return len(run.series(panel.figure)[0]) > 0 and (not panel.seconds or len(run.seconds()[0]) > 0)


def _names(runs: Sequence[Run], start: str, end: str = "") -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.names(start, end)))


def _groups(runs: Sequence[Run]) -> list[str]:
    names = [name for norm in NORMS for name in _names(runs, norm + "/")]
    return list(dict.fromkeys(name.rpartition("/")[2] for name in names))


def _text_of(name: str) -> str:
    """` NAME` of eval/NAME/bits_per_byte, and nothing of the texts together."""
    _, *name, _ = name.split("/")
    return " " + name[0] if name else ""
