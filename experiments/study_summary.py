"""Writes docs/results/models.md, a line for each model from all studies' records.

    make results
    python experiments/study_summary.py [--results docs/results]

What was not run is a dash.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from kernel_tables import table
from run_study import RESULTS
from study_pages import ACCURACY, of_text, runs_of
from study_runs import MISSING, cpu_seconds, difference, last, signed

TITLE = "One line for each model"


def summary(results: Path = RESULTS) -> str:
    """The page's text."""
    recall, novels = (runs_of(name, results) for name in ("mqar", "novels"))
    rows = []
    for memory in dict.fromkeys(run["memory"] for run in novels.study.runs):
        settings = {"memory": memory, "control": "none"}
        bits = novels.by_seed(of_text, **settings)
        frozen = novels.by_seed(of_text, memory=memory, control="frozen")
        rows.append(
            [
                memory,
                recall.cell(last(ACCURACY), dim="64", pairs="4", **settings),
                recall.cell(last(ACCURACY), dim="64", pairs="8", **settings),
                novels.cell(of_text, **settings),
                signed(difference(frozen, bits)),
                novels.cell(beyond, "+.4f", **settings),
                novels.cell(cpu_seconds, ".0f", **settings),
            ]
        )
    columns = ["model", "recall, 4 pairs", "recall, 8 pairs", "bits per byte"]
    columns += ["lost by freezing", "a long past", "CPU seconds"]
    return (
        f"# {TITLE}\n\n"
        "Means and standard deviations over seeds, of differences the standard error; written by"
        " `python experiments/study_summary.py` from the records of these pages, which say how each"
        f" figure came about. `{MISSING}`: not run.\n\n"
        "Recall is the accuracy of models of width 64 on `mqar`. Bits per byte of held-out"
        " novels, what freezing loses there, and the seconds of one core that the training's steps"
        " took are of `novels`. What a long past does is from `extrapolation`: bits per byte of the"
        " bytes from 8,192 to 16,384, read with one memory, less those with one that begins afresh"
        " after every 512 bytes, as long as the rows of training. Below zero it helps.\n\n"
        + table(columns, rows)
        + "\n"
    )


def beyond(record: dict) -> float:
    """How much worse the last bytes are predicted with one memory than afresh."""
    carried, afresh = (_by_position(record, name)[8192] for name in ("long", "afresh"))
    return carried - afresh


def _by_position(record: dict, name: str) -> dict[int, float]:
    curve = record["evaluations"][name]["curves"]
    return dict(zip(curve["start"], curve["bits_per_byte"], strict=True))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    args = parser.parse_args(words)
    (args.results / "models.md").write_text(summary(args.results))


if __name__ == "__main__":
    main()
