"""Writes the pages of the studies, docs/results/STUDY.md with plots, from the records of runs.

    make results
    python experiments/study_pages.py [--results docs/results]

The records, docs/results/STUDY.jsonl, are written by experiments/run_study.py.
"""

import argparse
import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from kernel_tables import table
from matplotlib.figure import Figure
from run_study import RESULTS, is_of, read_records, read_study, texts
from study_runs import (
    MISSING,
    Runs,
    cpu_seconds,
    difference,
    last,
    of_evaluation,
    signed,
    spread,
)

from miras_jax import tasks
from miras_jax.tasks.scoring import accuracy

STUDIES = Path(__file__).resolve().parent / "studies"
BITS, ACCURACY = "eval/bits_per_byte", "eval/accuracy"


def about(runs: Runs) -> str:
    """Who measured what, when and with what."""
    records = runs.records
    dates = sorted({record["date"] for record in records})
    seeds = ", ".join(sorted({record["settings"]["seed"] for record in records}))
    libraries = ("python", "jax", "jaxlib", "flax")
    versions = {", ".join(f"{n} {r['versions'][n]}" for n in libraries) for r in records}
    machines = {
        f"{r['hardware']['device']} ({r['hardware']['machine']}, {r['hardware']['cores']} of"
        f" {r['hardware']['processors']} cores a run)"
        for r in records
    }
    hours, wall = (
        sum(record.get(name) or 0 for record in records) / 3600
        for name in ("cpu_seconds", "wall_seconds")
    )
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    lines = [
        f"{len(records)} of {len(runs.study.runs)} runs, seeds {seeds}, {when}, on"
        f" {' and '.join(sorted(machines))}; {' and '.join(sorted(versions))}; {hours:.1f} hours of"
        f" the processor's time for the steps of training, {wall:.1f} by the clock until the last"
        " of them, with compilation and evaluations on the way."
        f" `{runs.study.name}.jsonl` has a line for each run: command, configuration, curves and"
        " figures."
    ]
    if read := texts(records):
        lines[0] += f" Version of the text: {', '.join(read)}."
    if failed := [r["command"] for r in records if "diverged" in r]:
        lines.append(f"Diverged, and left out of the means: {', '.join(failed)}.")
    return "\n\n".join(lines)


def sizes(runs: Runs, **settings: str) -> list[str]:
    """Parameters, tokens and seconds of the runs with these settings."""
    found = runs.of(**settings)
    if not found:
        return [MISSING] * 3
    seconds = runs.cell(cpu_seconds, ".0f", **settings)
    return [f"{found[0]['parameters']:,}", f"{found[0]['tokens']:,}", seconds]


# -- recall -------------------------------------------------------------------------------------


def mqar(runs: Runs) -> tuple[str, Figure]:
    """Accuracy by width and pairs."""
    lines: list[list[str]] = []
    dims, pairs = (sorted(runs.values(name), key=int) for name in ("dim", "pairs"))
    there = {(r["settings"]["pairs"], r["settings"]["dim"]) for r in runs.records}
    places = [(n, d) for n, d in itertools.product(pairs, dims) if (n, d) in there]
    for memory, control in itertools.product(runs.values("memory"), ("none", "frozen")):
        row = [
            runs.cell(last(ACCURACY), memory=memory, control=control, dim=d, pairs=n)
            for n, d in places
        ]
        if set(row) != {MISSING}:
            lines.append([memory + (", frozen" if control == "frozen" else ""), *row])
    columns = [f"{n} pairs, width {d}" for n, d in places]
    costs = [
        [memory, d, n, *sizes(runs, memory=memory, dim=d, pairs=n, control="none")]
        for memory, (n, d) in itertools.product(runs.values("memory"), places)
    ]
    chance = ", ".join(f"{1 / int(n):.3f} of {n} pairs" for n in pairs)
    text = (
        f"Accuracy on 1,024 test rows; a guess among the values of the row gives {chance}.\n\n"
        + table(["model", *columns], lines)
        + "\n\n"
        + table(["model", "width", "pairs", "parameters", "tokens", "CPU seconds"], costs)
    )
    figure = Figure(figsize=(4 * len(pairs), 4), layout="constrained")
    axes = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axis, n in zip(axes, pairs, strict=True):
        for i, memory in enumerate(runs.values("memory")):
            for control, style in (("none", "-"), ("frozen", ":")):
                points = [
                    (int(d), runs.by_seed(last(ACCURACY), memory=memory, control=control, dim=d,
                                          pairs=n).values())
                    for d in dims
                ]  # fmt: skip
                points = [(d, list(values)) for d, values in points if values]
                if points:
                    draw(axis, points, f"C{i}", style, memory if control == "none" else None)
        axis.set(title=f"{n} pairs", xlabel="width", ylim=(-0.02, 1.02))
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy (dotted: frozen memory)")
    axes[-1].legend(fontsize=7)
    return text, figure


def draw(axis, points: list[tuple[float, list[float]]], color: str, style: str, label) -> None:
    """Means with standard deviations as error bars."""
    xs = [x for x, _ in points]
    means = [statistics.fmean(values) for _, values in points]
    errors = [statistics.stdev(values) if len(values) > 1 else 0 for _, values in points]
    axis.errorbar(xs, means, errors, color=color, linestyle=style, marker=".", label=label, lw=1)


# -- language -----------------------------------------------------------------------------------


of_text = of_evaluation("text", "bits_per_byte")


def novels(runs: Runs) -> tuple[str, Figure]:
    """Bits per byte, beside Gated DeltaNet and beside a frozen memory."""
    memories = runs.values("memory")
    bits = {m: runs.by_seed(of_text, memory=m, control="none") for m in memories}
    base = bits.get("gated_deltanet", {})
    lines = [
        [m, spread(bits[m].values()), signed(difference(bits[m], base)) if m != "gated_deltanet"
         else "0", *sizes(runs, memory=m, control="none")]
        for m in memories
    ]  # fmt: skip
    controls = []
    for m in memories:
        frozen = runs.by_seed(of_text, memory=m, control="frozen")
        if found := difference(frozen, bits[m]):
            mean, error = found
            times = f"{mean / error:.1f}" if error else MISSING
            beside = signed(difference(frozen, base))
            controls.append([m, spread(frozen.values()), signed(found), times, beside])
    ways = [of_evaluation(name, "bits_per_byte") for name in ("long", "afresh", "long, frozen")]
    stretches = [
        [m, *(runs.cell(way, memory=m, control="none") for way in ways)]
        for m in memories
        if runs.by_seed(ways[0], memory=m, control="none")
    ]
    first = next(iter(runs.of(control="none")))["evaluations"]["text"]
    text = (
        "Bits per byte of held-out text when training ends, less is better; the difference to Gated"
        " DeltaNet with its standard error over seeds. They are of"
        f" {first['counts']['documents']} stretches, over which the standard error of one model is"
        f" {first['standard_errors']['bits_per_byte']:.3f}; all models read the same ones.\n\n"
        + table(
            ["model", "bits per byte", "beside gated_deltanet", "parameters", "tokens",
             "CPU seconds"], lines)
        + "\n\nWhat learning while reading is worth: the same models, trained with a memory that"
        " never changes (`model.control=frozen`).\n\n"
        + table(["model", "frozen", "lost by freezing", "lost, in standard errors",
                 "frozen, beside a free gated_deltanet"], controls)
    )  # fmt: skip
    if stretches:
        window = runs.records[0]["config"]["data"]["window"]
        text += (
            "\n\nThe trained models on stretches of 16,384 bytes with one memory, with one that"
            f" begins afresh after every {window} bytes, and with one that is frozen only now: bits"
            " per byte.\n\n" + table(["model", "one memory", "afresh", "frozen now"], stretches)
        )
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for i, memory in enumerate(memories):
        found = [
            r["curves"][BITS]
            for r in runs.of(memory=memory, control="none")
            if r["cpu_seconds"] is not None
        ]  # fmt: skip
        if not found:
            continue
        for axis, across in zip(axes, ("tokens", "seconds"), strict=True):
            places = [statistics.fmean(x) for x in zip(*(c[across] for c in found), strict=True)]
            values = zip(*(c["values"] for c in found), strict=True)
            draw(axis, list(zip(places, map(list, values), strict=True)), f"C{i}", "-", memory)
    axes[0].set(xlabel="tokens", ylabel="bits per byte")
    axes[1].set(xlabel="seconds of one core, steps alone")
    axes[1].legend(fontsize=7)
    for axis in axes:
        axis.grid(alpha=0.3)
    return text, figure


def extrapolation(runs: Runs) -> tuple[str, Figure]:
    """Bits per byte and norms by position, far beyond the length of training."""
    memories = [m for m in runs.values("memory") if _curve(runs, m, "long")]
    starts = _curve(runs, memories[0], "long")[0]["start"]
    lines, gains = [], []
    for memory in memories:
        both = (_curve(runs, memory, "long"), _curve(runs, memory, "afresh"))
        carried, afresh = (np.array([c["bits_per_byte"] for c in curves]) for curves in both)
        lines.append([memory, *(spread(x, ".3f") for x in carried.T.tolist())])
        gains.append([memory, *(spread(x, "+.3f") for x in (carried - afresh).T.tolist())])
    columns = ["model", *(f"{start:,}" for start in starts)]
    window = runs.records[0]["config"]["data"]["window"]
    text = (
        f"Models that were trained on rows of {window} bytes read stretches of 16,384 bytes with"
        " one memory: bits per byte of the bytes from each position to the next one. Each position"
        " has its own bytes, some easier than others: compare models in a column.\n\n"
        + table(columns, lines)
        + f"\n\nThe same less the bits per byte of a memory that begins afresh after every {window}"
        " bytes, at the same bytes. Below zero the longer past helps.\n\n"
        + table(columns, gains)
        + "\n\nThe norm of the memories (mean over heads and blocks), by position, one stretch:\n\n"
    )
    norms = []
    for memory in memories:
        found = _curve(runs, memory, "norms")
        if found:
            blocks = [[statistics.fmean(x) for x in zip(*c["memory_norm"], strict=True)]
                      for c in found]  # fmt: skip
            norms.append([memory, *(spread(x, ".3g") for x in zip(*blocks, strict=True))])
    text += table(columns, norms)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    places = [max(start, 32) for start in starts]
    for i, memory in enumerate(memories):
        curves = _curve(runs, memory, "long")
        values = zip(*(c["bits_per_byte"] for c in curves), strict=True)
        draw(axes[0], list(zip(places, map(list, values), strict=True)), f"C{i}", "-", memory)
        for c in _curve(runs, memory, "norms")[:1]:
            means = [statistics.fmean(x) for x in zip(*c["memory_norm"], strict=True)]
            axes[1].plot(places[: len(means)], means, color=f"C{i}", marker=".", lw=1)
    axes[0].set(ylabel="bits per byte")
    axes[0].axvline(window, color="grey", lw=0.8, ls=":")
    axes[0].legend(fontsize=7)
    axes[1].set(ylabel="l2 norm of a memory", yscale="log")
    for axis in axes:
        axis.set(xscale="log", xlabel="position (dotted: the length of training)")
        axis.grid(alpha=0.3)
    return text, figure


def _curve(runs: Runs, memory: str, name: str) -> list[dict]:
    return [
        record["evaluations"][name]["curves"]
        for record in runs.records
        if record["settings"]["memory"] == memory and name in record.get("evaluations", {})
    ]


# -- choices ------------------------------------------------------------------------------------


def largest_norm(record: dict) -> float | None:
    """The largest gradient norm after the warm-up."""
    curve, warmup = record["curves"]["train/grad_norm"], record["config"]["optimizer"]
    tokens = record["config"]["data"]["window"] * record["config"]["data"]["batch_size"]
    after = warmup["warmup_steps"] * tokens
    values = zip(curve["tokens"], curve["values"], strict=True)
    return max((v for t, v in values if t > after and v is not None), default=None)


def choices(runs: Runs) -> tuple[str, Figure]:
    """Maps of exponents, thresholds, anchors and sizes of chunks."""
    names = runs.values("choice")
    grid = [name.split("-") for name in names if name.startswith("p-")]
    ps, qs = (list(dict.fromkeys(parts[i] for parts in grid)) for i in (1, 3))

    def both(name: str) -> str:
        ended = ["diverged" in r for r in runs.records if r["settings"]["choice"] == name]
        found = runs.by_seed(largest_norm, choice=name)
        top = f" ({max(found.values()):.3g})" if found else ""
        lost = f", {sum(ended)} of {len(ended)} diverged" if any(ended) else ""
        return runs.cell(of_text, choice=name) + top + lost

    every = runs.records[0]["config"]["log"]["every"]
    text = (
        "Each cell: bits per byte of held-out text, and in brackets the largest gradient norm"
        f" after the warm-up, before clipping at 1, of one step in {every}.\n\n"
        "## Moneta: exponents of bias and retention\n\n"
    )
    text += table(
        ["bias", *(f"retention q = {q}" for q in qs)],
        [[f"p = {p}", *(both(f"p-{p}-q-{q}") for q in qs)] for p in ps],
    )
    others = [n for n in names if n == "yaad" or n.startswith(("threshold", "anchor", "decay"))]
    text += "\n\n## Yaad: thresholds and retention\n\n"
    text += table(["choice", "bits per byte"], [[name, both(name)] for name in others])
    trained = [(("16" if n == "yaad" else n.removeprefix("chunk-")), n) for n in names
               if n == "yaad" or n.startswith("chunk-")]  # fmt: skip
    trained.sort(key=lambda pair: int(pair[0]))
    text += (
        "\n\n## Yaad: sizes of chunks, trained and served\n\nBits per byte of the same text.\n\n"
    )
    text += table(
        ["trained with", *(f"read with {size}" for size, _ in trained), "CPU seconds"],
        [
            [size, *(runs.cell(of_evaluation(f"text, chunk-{other}", "bits_per_byte"), choice=name)
                     for other, _ in trained),
             runs.cell(cpu_seconds, ".0f", choice=name)]
            for size, name in trained
        ],
    )  # fmt: skip
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for i, q in enumerate(qs):
        points = [(float(p), list(runs.by_seed(of_text, choice=f"p-{p}-q-{q}").values()))
                  for p in ps]  # fmt: skip
        draw(axes[0], [x for x in points if x[1]], f"C{i}", "-", f"q = {q}")
    axes[0].set(xlabel="p of the bias", ylabel="bits per byte")
    axes[0].legend(fontsize=7)
    for i, (size, name) in enumerate(trained):
        points = []
        for other, _ in trained:
            figure_of = of_evaluation(f"text, chunk-{other}", "bits_per_byte")
            points.append((int(other), list(runs.by_seed(figure_of, choice=name).values())))
        draw(axes[1], [x for x in points if x[1]], f"C{i}", "-", f"trained with {size}")
    axes[1].set(xlabel="tokens a chunk when read")
    axes[1].set_xscale("log", base=2)
    axes[1].legend(fontsize=7)
    for axis in axes:
        axis.grid(alpha=0.3)
    return text, figure


# -- noise --------------------------------------------------------------------------------------


def noise(runs: Runs) -> tuple[str, Figure]:
    """Accuracy by bias and share of wrong values."""
    names = next(iter(runs.of()))["evaluations"]
    shares = [x.removeprefix("noise_") for x in names if "," not in x]
    biases, trained = runs.values("bias"), runs.values("noise")
    text = (
        "Accuracy on 1,024 test rows by the share of values that are written wrong in them; for"
        " comparison that of taking the value that a key had most often.\n\n"
    )
    task = tasks.parse(runs.records[0]["config"]["data"]["source"])
    best = ["most frequent value", *(f"{oracle(task, share):.3f}" for share in shares)]
    figure = Figure(figsize=(5 * len(trained), 4), layout="constrained")
    axes = figure.subplots(1, len(trained), sharey=True, squeeze=False)[0]
    for axis, share in zip(axes, trained, strict=True):
        lines = []
        for i, bias in enumerate(biases):
            figures = [of_evaluation(f"noise_{x}", "accuracy") for x in shares]
            settings = {"bias": bias, "noise": share}
            lines.append([bias, *(runs.cell(each, **settings) for each in figures)])
            points = [
                (float(x), list(runs.by_seed(each, **settings).values()))
                for x, each in zip(shares, figures, strict=True)
            ]
            draw(axis, [x for x in points if x[1]], f"C{i}", "-", bias)
        text += f"## Trained with {share}\n\n" + table(["bias", *shares], [*lines, best]) + "\n\n"
        axis.set(title=f"trained with {share} wrong", xlabel="share of wrong values in tests")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy")
    axes[0].legend(fontsize=7)
    return text.rstrip(), figure


def oracle(task: tasks.Task, share: str) -> float:
    """Accuracy of the most frequent value on the test rows with this share of wrong ones."""
    rows = dataclasses.replace(task, noise=float(share)).batch(0, 0, 1024, "test")
    answers = np.stack([task.oracle(tokens) for tokens in rows["tokens"]])
    return accuracy(answers, rows["targets"], rows["mask"])


PAGES = {
    "mqar": ("mqar", "Recall by width and pairs", mqar, {}),
    "novels": ("novels", "Language modelling by the byte", novels, {}),
    "extrapolation": (
        "novels",
        "Far beyond the length of training",
        extrapolation,
        {"control": "none"},
    ),
    "choices": ("choices", "Exponents, thresholds, retention and chunks", choices, {}),
    "noise": ("noise", "Recall of values that are written wrong", noise, {}),
}  # fmt: skip
"""By page the study, the title, the function that makes text and plot, and the settings of the
runs that it is about."""


def runs_of(name: str, results: Path = RESULTS) -> Runs:
    """The runs that a page is about, from the record in a folder."""
    study, _, _, settings = PAGES[name]
    found = read_study(STUDIES / f"{study}.py")
    records = [r for r in read_records(results / f"{study}.jsonl") if is_of(r, found)]
    return Runs(found, records).only(**settings)


def page(name: str, runs: Runs) -> tuple[str, Figure]:
    """The text of a page and its plot."""
    _, title, make, _ = PAGES[name]
    text, figure = make(runs)
    parts = [f"# {title}", runs.study.about.strip(), about(runs), text, f"![{title}]({name}.png)"]
    return "\n\n".join(parts) + "\n", figure


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    args = parser.parse_args(words)
    for name in PAGES:
        runs = runs_of(name, args.results)
        if not runs.records:
            print(f"{name}: no runs of experiments/studies/{runs.study.name}.py yet")
            continue
        text, figure = page(name, runs)
        (args.results / f"{name}.md").write_text(text)
        figure.savefig(args.results / f"{name}.png", dpi=100)
        print(f"{name}: {len(runs.records)} runs")


if __name__ == "__main__":
    main()
