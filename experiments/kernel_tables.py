"""What the pages of measured kernels share: who measured, tables, and the page of the timings."""

import datetime
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
from kernel_ops import OPS, Op
from kernel_traffic import DEVICES, bound, traffic, work
from matplotlib.figure import Figure

PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")


def report() -> dict:
    """Command, date, device and versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": str(datetime.date.today()),
        "platform": jax.default_backend(),
        "device": device.device_kind,
        "versions": versions,
    }


def heading(report: dict) -> str:
    """The report as a sentence."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return f"`{report['command']}`, {report['date']}, on {report['device']}, {versions}."


def table(columns: list[str], lines: list[list]) -> str:
    """A markdown table."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


PASSES = ("forward", "forward and backward")


def page(record: dict) -> str:
    """The text of docs/results/kernels.md, from the record of `bench_kernels.py`."""
    text = ["# Time of the kernels", ABOUT]
    text += ["## Accelerators"]
    if not record["accelerators"]:
        text += [
            "Not measured yet: the tables stay empty until `make bench-kernels` runs on a machine "
            "with an accelerator. What the compilers say is in `make kernels`."
        ]
    for part in record["accelerators"].values():
        text += [heading(part["report"]), *accelerator_tables(part["results"])]
    text += ["## Bounds", BOUNDS, devices_table(), bounds_table(OPS), "## CPU"]
    if record["cpu"]:
        text += [heading(record["cpu"]["report"]), *cpu_tables(record["cpu"]["results"])]
        if record["cpu"]["report"].get("busy"):
            text += [BUSY]
        if "--rows" in record["cpu"]["report"]["command"]:
            text += ["Rows that the command does not name are of an earlier run."]
    else:
        text += ["Not measured yet."]
    return "\n\n".join(text) + "\n"


ABOUT = (
    "`make bench-kernels` writes this page. Nothing is timed that has not just passed its check: "
    "output, state and gradients of 192 tokens of the same widths against the recurrent form. "
    "Programs take turns, the least time of each counts. B, T, H: rows, tokens, heads; D: key and "
    "value width."
)
BUSY = (
    "Other work ran on the machine: the milliseconds are the process's CPU time on one core, not "
    "the time of the clock."
)
BOUNDS = (
    "Bytes are those of the kernels' operands and results in main memory, each once: tokens (q, k, "
    "v, gates), y, state, and in a backward pass their gradients and the saved states. FLOPs are "
    "of the matrix products in the chunked form (`miras_jax.memory.flops`), times three with a "
    "backward pass; what is computed again counts nothing. The bound of a device is the longer of "
    "the two at its published peaks. First the forward pass alone, then forward and backward. "
    "As the TPU's kernels count; a GPU's take shorter chunks of a linear memory and save more "
    "states. bfloat16; deep memories take chunks of 64 tokens."
)


def devices_table() -> str:
    """The published peaks."""
    columns = ["device", "bfloat16 TFLOP/s", "GB/s", "source"]
    lines = [
        [on.name, f"{on.flops / 1e12:.0f}", f"{on.bandwidth / 1e9:,.0f}", on.source]
        for on in DEVICES.values()
    ]
    return table(columns, lines)


def bounds_table(ops: tuple[Op, ...]) -> str:
    """Sizes of the arrays, the bytes counted, FLOPs, and the bound of each device."""
    columns = ["op", *(f"{what} MB" for what in ("tokens", "y", "state", "saved", "gradients"))]
    columns += ["moved MB", "GFLOP", *(f"{on.name} ms" for on in DEVICES.values())]
    lines = []
    for op in ops:
        forward, both = traffic(op), traffic(op, backward=True)
        sizes = [forward["tokens"], forward["y"], forward["state"] / 2, both["saved states"] / 2]
        cells = [f"{x / 1e6:,.1f}" for x in (*sizes, both["gradients"])]
        moved = [f"{sum(found.values()) / 1e6:,.0f}" for found in (forward, both)]
        cells += [" / ".join(moved), f"{work(op) / 1e9:,.0f} / {work(op, True) / 1e9:,.0f}"]
        cells += [f"{bound(op, on):.2f} / {bound(op, on, True):.2f}" for on in DEVICES.values()]
        lines.append([op.name.removesuffix(" bfloat16"), *cells])
    return table(columns, lines)


def accelerator_tables(results: list[dict]) -> list[str]:
    """Times and fractions of the peaks, and what did not run."""
    columns = ["op", "pass", "form", "ms", "million tokens/s", "GB", "GFLOP"]
    columns += ["of bandwidth", "of products", "chunked / form", "largest error"]
    chunked = {
        (Op(**{f: x[f] for f in Op._fields}), x["pass"]): x["ms"]
        for x in results
        if x["form"] == "chunked" and "ms" in x
    }
    lines, refused = [], []
    for x in results:
        op = Op(**{f: x[f] for f in Op._fields})
        if "refused" in x:
            refused.append([op.name, x["form"], x["refused"].replace("|", "\\|")])
            continue
        of = [f"{x[k]:.0%}" if k in x else "" for k in ("of bandwidth", "of products")]
        base = chunked.get((op, x["pass"]))
        figures = [f"{x['ms']:.3f}", f"{x['tokens/s'] / 1e6:.2f}"]
        figures += [f"{x['bytes'] / 1e9:.3f}", f"{x['flops'] / 1e9:,.0f}", *of]
        figures += [f"{base / x['ms']:.2f}" if base else "", f"{max(x['errors'].values()):.0e}"]
        lines.append([op.name, x["pass"], x["form"], *figures])
    text = [table(columns, lines)]
    if refused:
        text += ["Not timed:", table(["op", "form", "reason"], refused)]
    return text


ALIKE = 1.05
"""Ratio up to which two forms are as fast as each other."""


def cpu_tables(results: list[dict]) -> list[str]:
    """The time of "auto" over that of the fastest form in pure JAX, by row and length."""
    lengths = sorted({x["tokens"] for x in results})
    over = sorted((x for x in results if x["ratio"] > ALIKE), key=lambda x: -x["ratio"])
    named = ", ".join(
        f"{x['row']} at T = {x['tokens']:,}, {x['pass']} ({x['ratio']:.2f})" for x in over
    )
    text = [
        '`form="auto"` beside the forms in pure JAX (recurrent, chunked, associative), float32, '
        "B = 2, H = 4, D = 64: its time over that of the fastest, and in brackets the fastest and "
        "its milliseconds. A form that was four times slower than the fastest is not run at longer "
        f"sequences. Over {ALIKE} are {len(over)} of {len(results)}"
        + (f": {named}." if over else ".")
    ]
    for what in PASSES:
        cells: dict[str, dict] = {}
        for x in results:
            if x["pass"] == what:
                best = min(x["ms"], key=x["ms"].get)
                shown = f"{x['ratio']:.2f} ({best} {x['ms'][best]:.3g})"
                cells.setdefault(x["row"], {})[x["tokens"]] = shown
        lines = [[row, *(found.get(t, "") for t in lengths)] for row, found in cells.items()]
        columns = ["row", *(f"T = {t:,}" for t in lengths)]
        text += [f"### {what.capitalize()}", table(columns, lines)]
    return text


def plot(record: dict, path: Path) -> None:
    """Draws what is there: on accelerators tokens a second of every op, on a CPU the fastest form
    over "auto"."""
    parts = list(record["accelerators"].items())
    rows = len(parts) + bool(record["cpu"])
    if not rows:
        return
    figure = Figure(figsize=(12, 4.5 * rows))
    axes = figure.subplots(rows, 2, squeeze=False)
    for line, (kind, part) in zip(axes, parts, strict=False):
        for axis, what in zip(line, PASSES, strict=True):
            _plot_ops(axis, [x for x in part["results"] if x.get("pass") == what])
            axis.set_title(f"{kind}, {what}")
    if record["cpu"]:
        for axis, what in zip(axes[-1], PASSES, strict=True):
            _plot_cpu(axis, [x for x in record["cpu"]["results"] if x["pass"] == what])
            axis.set_title(f"CPU, {what}")
    figure.tight_layout()
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _plot_ops(axis, results: list[dict]) -> None:
    names = list(dict.fromkeys(Op(**{f: x[f] for f in Op._fields}).name for x in results))
    for form in dict.fromkeys(x["form"] for x in results):
        mine = [x for x in results if x["form"] == form]
        at = [names.index(Op(**{f: x[f] for f in Op._fields}).name) for x in mine]
        axis.plot(at, [x["tokens/s"] for x in mine], "o", label=form, markersize=4)
    axis.set_yscale("log")
    axis.set_ylabel("tokens/s")
    axis.set_xticks(
        range(len(names)), [n.rsplit(" ", 1)[0] for n in names], rotation=90, fontsize=5
    )
    axis.legend()


def _plot_cpu(axis, results: list[dict]) -> None:
    for row in dict.fromkeys(x["row"] for x in results):
        mine = sorted((x for x in results if x["row"] == row), key=lambda x: x["tokens"])
        axis.plot([x["tokens"] for x in mine], [x["ratio"] for x in mine], ".-", label=row, lw=0.8)
    axis.axhline(1.05, color="black", lw=0.8, ls="--")
    lengths = sorted({x["tokens"] for x in results})
    axis.set_xscale("log")
    axis.set_xticks(lengths, [f"{t:,}" for t in lengths])
    axis.minorticks_off()
    axis.set_xlabel("T")
    axis.set_ylabel('time of "auto" / fastest form')
    axis.legend(fontsize=5, ncols=2)
