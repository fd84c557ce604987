"""What a trained model's memories do along a text, drawn and in figures, for `miras inspect`."""

import importlib.util

import jax
import numpy as np
from rich.table import Table

from miras_jax.memory import Diagnostics, Memory
from miras_jax.nn import LanguageModel
from miras_jax.training.diagnostics import summary
from miras_jax.training.errors import UserError

# By field of `Diagnostics`: the panel's title and the unit of its axis.
PANELS = {
    "loss_before": ("loss of each pair before it is learned", "loss (the bias's unit)"),
    "loss_after": ("loss of each pair after it is learned", "loss (the bias's unit)"),
    "step_norm": ("size of the change, decay and write", "l2 norm (unit of the weights)"),
    "memory_norm": ("size of the memory", "l2 norm (unit of the weights)"),
    "retention": ("retention: what one token leaves of the memory", "factor a token (0 to 1)"),
    "step": ("step of the inner gradient descent", "eta (the gate's value)"),
}
NUMBERED = "memories, counted without the blocks of attention"
POINTS = 128
"""Averaging windows along the text; shorter texts are drawn token by token."""


def check_plotting() -> None:
    """Refuses to begin where there is nothing to draw with.

    Raises:
      UserError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("miras inspect draws with matplotlib: pip install matplotlib")


def read(model: LanguageModel, tokens: np.ndarray) -> Diagnostics:
    """What the inner loops do while the model reads tokens `[T]`; arrays `[layers, 1, T, H]`.

    Raises:
      UserError: the model's memory is attention, which has no inner loop.
    """
    if not isinstance(model.config.build_memory(), Memory):
        raise UserError(
            f"{model.config.memory} keeps pairs and has no inner loop to inspect: choose a model"
            " whose memory learns, such as yaad"
        )
    diagnose = jax.jit(lambda model, tokens: model.diagnose(tokens))
    return jax.device_get(diagnose(model, tokens[None]))


def smooth(x: np.ndarray, width: int) -> np.ndarray:
    """Means of x `[T]` over the `width` tokens round each one, fewer at the ends."""
    box = np.ones(width)
    return np.convolve(x, box, "same") / np.convolve(np.ones_like(x), box, "same")


def draw(diagnostics: Diagnostics, title: str, path: str) -> None:
    """Writes a PNG with a panel for each figure and in it a line for each memory, the mean over the
    heads, smoothed over a 128th of the text."""
    import matplotlib

    matplotlib.use("Agg")  # no window: it runs where there is no screen
    from matplotlib import pyplot

    layers, _, total, _ = diagnostics.step.shape
    width = max(1, total // POINTS)
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.8, layers))
    figure, axes = pyplot.subplots(3, 2, figsize=(12, 10), sharex=True, layout="constrained")
    axes[0, 1].sharey(axes[0, 0])  # the losses before and after
    for axis, (name, (heading, unit)) in zip(axes.flat, PANELS.items(), strict=True):
        for layer, color in enumerate(colors):
            line = smooth(getattr(diagnostics, name)[layer, 0].mean(axis=-1), width)
            axis.plot(np.arange(total), line, color=color, label=f"memory {layer}", linewidth=1)
        axis.set(title=heading, ylabel=unit)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("position in the text (tokens)")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title=NUMBERED,
        loc="outside lower center",
        ncols=min(layers, 8),
    )
    tokens = "token" if width == 1 else f"{width} tokens"
    figure.suptitle(f"{title}\nmean over the heads, over windows of {tokens}")
    figure.savefig(path, format="png", dpi=100)
    pyplot.close(figure)


def table(diagnostics: Diagnostics) -> Table:
    """Means over the text and the heads, a row for each memory, and the largest memory norm."""
    columns = {
        "loss before": "loss_before",
        "loss after": "loss_after",
        "step norm": "step_norm",
        "memory norm": "memory_norm",
        "largest": "max_memory_norm",
        "retention": "retention",
        "step": "step",
    }
    figures = summary(diagnostics)
    made = Table("memory", *columns, box=None, pad_edge=False)
    for layer in range(len(diagnostics.step)):
        made.add_row(str(layer), *(f"{figures[name][layer]:.4g}" for name in columns.values()))
    return made
