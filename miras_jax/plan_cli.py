"""The options of `miras plan`, and what it prints."""

import argparse
import json
import pathlib


def add_command(commands, **style) -> None:
    """Adds the command to the subparsers of the command line."""
    command = commands.add_parser(
        "plan", help="say whether an experiment fits a machine, and how long it takes", **style
    )
    command.description = (
        "Plans the `config` of a Python file for a machine that need not be here: memory, "
        "communication, time. Exits with 1 where it does not fit."
    )
    command.add_argument(
        "experiment", metavar="EXPERIMENT.py", help="file that binds config = TrainConfig(...)"
    )
    command.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="--topology CHIP:SIZE [--OPTION VALUE]",
        help="see miras plan EXPERIMENT.py --help",
    )
    command.set_defaults(run=run)


def options_parser(experiment: str) -> argparse.ArgumentParser:
    """The options of the plan itself; what it does not know is for the experiment."""
    from miras_jax.cli import Parser

    parser = Parser(
        prog=f"miras plan {experiment}",
        allow_abbrev=False,
        add_help=False,
        epilog="Every other option is one of miras train and changes the experiment:",
    )
    add = parser.add_argument
    add(
        "--topology",
        required=True,
        metavar="CHIP:SIZE",
        help="v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:16x16 or 7x:4x4x4 (needs the extra tpu); cpu:8;"
        " a100-40gb, a100-80gb, h100, h200 or b200, as in h100:8",
    )
    add("--mfu", type=float, default=0.4, help="model FLOPs utilization to assume, 0 to 1; 0.4")
    add(
        "--packed",
        action=argparse.BooleanOptionalAction,
        help="rows hold several documents; if not given, as the data does, and where there is"
        " none, as token sets do",
    )
    add("--json", metavar="FILE", help="write all figures to a file")
    add("--timeout", type=float, default=1800.0, help="seconds that a compilation may take; 1800")
    add(
        "--advice",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="where it does not fit, plan changes too, until one fits; on",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """`miras plan`."""
    import jax

    from miras_jax import cli

    jax.config.update("jax_platforms", "cpu")  # an accelerator that is here is left alone
    experiment, words = arguments.experiment, arguments.overrides
    default = cli.load_experiment(experiment)
    parser = options_parser(experiment)
    if {"-h", "--help"} & set(words):
        print(parser.format_help())
        cli.parse_config(default, ["--help"], f"miras train {experiment}")
    own, overrides = parser.parse_known_args(words)

    from miras_jax.planning.advice import advise
    from miras_jax.planning.mesh import fit_mesh
    from miras_jax.planning.plan import Options, make_plan
    from miras_jax.planning.report import advice_lines, report
    from miras_jax.planning.topology import parse
    from miras_jax.training import UserError

    if not 0 < own.mfu <= 1:
        raise UserError(f"--mfu must be above 0 and at most 1, got {own.mfu}")
    if not own.timeout > 0:
        raise UserError(f"--timeout must be positive, got {own.timeout}")
    topology = parse(own.topology)
    config = cli.parse_config(default, overrides, f"miras plan {experiment}")
    chosen = any(word.startswith("--mesh.") for word in overrides)
    config, note = fit_mesh(config, topology, chosen=chosen)
    options = Options(experiment, own.packed, own.mfu, own.timeout)

    plan = make_plan(config, topology, options)
    _print([note] if note else [])
    _print(report(plan))
    figures = plan.figures() | {"advice": None}
    if not plan.fits and own.advice:
        advice = advise(plan, lambda config, topology: make_plan(config, topology, plan.options))
        _print(advice_lines(advice))
        figures["advice"] = {
            "options": advice.proposal and advice.proposal.options,
            "words": advice.proposal and advice.proposal.words,
            "tried": advice.tried,
            "needed": advice.plan and advice.plan.needed,
        }
    if own.json:
        pathlib.Path(own.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if plan.fits else 1


def _print(what) -> None:
    from miras_jax.cli import print_table

    for each in what:
        print(each) if isinstance(each, str) else print_table(each)
