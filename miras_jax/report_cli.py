"""The options of `miras report`, and what it says when it is done."""

import argparse
import sys


def add_command(commands, **style) -> None:
    """Adds the command to the subparsers of the command line."""
    command = commands.add_parser("report", help="draw and compare the metrics of runs", **style)
    command.description = (
        "Reads metrics.jsonl of one or several runs, draws their curves and writes a table of them"
        " in Markdown, report.md."
    )
    command.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    command.add_argument(
        "--out", metavar="FOLDER", default="report", help="folder of the table and the pictures"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`miras report`."""
    from miras_jax import report, report_runs

    report.check_plotting()
    runs = report_runs.read_runs(arguments.runs)
    for each in runs:
        for note in each.notes:
            print(f"miras: {each.name}: {note}", file=sys.stderr)
    written = report.write(runs, arguments.out)
    print(report.table(runs))
    print("\nwritten: " + " ".join(map(str, written)))
    return 0
