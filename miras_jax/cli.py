"""The command line: `miras train`, `finetune`, `evaluate`, `generate` and the others of `--help`.

What is wrong with a request is said in one line on stderr, with exit code 2; a traceback is a bug
of the library. JAX is imported by the commands that need it, so that `--help` answers at once.
"""

import argparse
import contextlib
import io
import itertools
import math
import os
import runpy
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable
from inspect import signature
from typing import NoReturn

import miras_jax
from miras_jax import evaluate_cli, export_cli, finetune_cli, plan_cli, report_cli, tokenize_cli


class Parser(argparse.ArgumentParser):
    """A parser that keeps its errors to one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the process; argparse calls it."""
        self.exit(2, f"miras: error: {message}; see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0: done; 1: the training diverged; 2: a bad request; 3: a checkpoint or a record could not be
    written; 4: the data did not come or could not be read; 75: another process of the job was lost;
    130 or 143: stopped by a signal, and saved; 141: nobody reads the output any more (training goes
    on all the same). A source that hangs ends the process here, with 4.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may write what the terminal cannot show
    arguments = parser().parse_args(argv)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()  # here a broken pipe can still be caught
        return code
    except BrokenPipeError:  # the reader of our output has gone: miras generate ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:  # while training, the loop has its own way
        print("\nmiras: interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"miras: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (ValueError, RuntimeError) as error:
        code = getattr(error, "exit_code", None)
        if code is None:  # none of miras_jax.training.errors
            raise
        kind = "error: " if code < 128 else ""
        if not getattr(error, "quiet", False):  # process 0 of a job says it
            print(f"miras: {kind}{' '.join(str(error).split())}", file=sys.stderr)
        if getattr(error, "stuck", False):  # a thread reads for ever, and Python would wait for it
            sys.stdout.flush()
            os._exit(code)
        return code


def parser() -> Parser:
    """Describes the commands; tyro adds the options of an experiment, from the experiment."""
    style = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter, "allow_abbrev": False}
    top = Parser(prog="miras", description="Sequence models that learn while they read.", **style)
    top.add_argument("--version", action="version", version=f"miras_jax {miras_jax.__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("train", help="train an experiment, or continue it", **style)
    command.description = (
        "Trains the `config` of a Python file; a run found in its directory is continued."
    )
    command.add_argument(
        "experiment",
        metavar="EXPERIMENT.py",
        help="file that binds config = TrainConfig(...), or to a function that returns one:"
        " FILE.py:NAME=VALUE,NAME=VALUE",
    )
    command.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="--OPTION VALUE",
        help="see miras train EXPERIMENT.py --help",
    )
    command.set_defaults(run=train)

    finetune_cli.add_command(commands, **style)
    plan_cli.add_command(commands, **style)
    tokenize_cli.add_command(commands, **style)

    command = commands.add_parser(
        "generate", help="continue a prompt with a trained model", **style
    )
    command.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="folder of a run or of one of its checkpoints"
    )
    command.add_argument(
        "--experiment",
        metavar="EXPERIMENT.py",
        help="file to run first, where it registers the model",
    )
    command.add_argument("--prompt", default="\n", help="text to continue")
    command.add_argument(
        "--max-tokens", type=_at_least(1, int), default=256, help="tokens to generate"
    )
    command.add_argument(
        "--temperature",
        type=_at_least(0, float),
        default=1.0,
        help="divides the logits; 0 takes the likeliest token",
    )
    command.add_argument(
        "--top-k", type=_at_least(1, int), help="draw from the k likeliest tokens only"
    )
    command.add_argument(
        "--top-p",
        type=_probability,
        help="draw from the likeliest tokens that hold this probability",
    )
    command.add_argument(
        "--seed", type=_at_least(0, int, below=2**32), default=0, help="seed of the draws"
    )
    command.set_defaults(run=generate)

    command = commands.add_parser(
        "inspect", help="show what a trained model's memories do along a text", **style
    )
    command.description = (
        "Reads a text with a trained model and draws what the inner loop of every layer does: loss"
        " of each pair before and after it is learned, size of the step, norm of the memory,"
        " retention and step."
    )
    command.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="folder of a run or of one of its checkpoints"
    )
    command.add_argument("--text", metavar="FILE", required=True, help="UTF-8 text to read")
    command.add_argument("--out", metavar="PNG", default="inspect.png", help="picture to write")
    command.add_argument(
        "--tokens", type=_at_least(1, int), default=2048, help="tokens to read, from the start"
    )
    command.add_argument(
        "--experiment",
        metavar="EXPERIMENT.py",
        help="file to run first, where it registers the model",
    )
    command.set_defaults(run=inspect)

    report_cli.add_command(commands, **style)
    export_cli.add_command(commands, **style)
    evaluate_cli.add_command(commands, **style)

    command = commands.add_parser("zoo", help="list the models, or describe one", **style)
    command.add_argument("name", nargs="?", metavar="NAME", help="the model to describe")
    command.set_defaults(run=zoo)
    return top


def train(arguments: argparse.Namespace) -> int:
    """`miras train`."""
    experiment, overrides = arguments.experiment, arguments.overrides
    config = parse_config(load_experiment(experiment), overrides, f"miras train {experiment}")

    again = [*program(), "train", experiment, *without(overrides, "--steps")]
    sample = [*program(), "generate", config.directory]
    if config.model.memory not in miras_jax.zoo.PUBLISHED:
        sample += ["--experiment", experiment]

    from miras_jax import training
    from miras_jax.training.processes import join

    with join(config.processes):
        training.train(
            config,
            command=shlex.join(again),
            generate_command=shlex.join(sample),
            prepare_tasks=prepare_tasks,
        )
    return 0


def prepare_tasks(tasks, **subject):
    """Evaluators for `training.train`, which knows none."""
    from miras_jax import evals

    return evals.prepare_for_training(tasks, evals.Subject(**subject))


def generate(arguments: argparse.Namespace) -> int:
    """`miras generate`."""
    import jax
    import numpy as np

    from miras_jax import nn
    from miras_jax.export import load_model, load_tokenizer
    from miras_jax.training.errors import UserError

    if not arguments.prompt:
        raise UserError("--prompt must hold at least one character")
    try:
        arguments.prompt.encode()
    except UnicodeEncodeError:  # the shell gave bytes that are not
        raise UserError("--prompt is not UTF-8") from None
    if arguments.experiment:
        load_experiment(arguments.experiment)
    model, metadata = load_model(arguments.checkpoint)
    tokenizer = load_tokenizer(arguments.checkpoint, metadata)
    # The documents of token sets begin with a separator.
    before = [tokenizer.separator] if metadata.get("packed") else []
    ids = nn.generate(
        model,
        np.asarray([*before, *tokenizer.encode(arguments.prompt)], np.int32),
        steps=arguments.max_tokens,
        key=jax.random.key(arguments.seed),
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        vocab_size=tokenizer.vocab_size,
    )
    print(arguments.prompt, end="", flush=True)
    for piece in tokenizer.decode_stream(ids):
        print(piece, end="", flush=True)
    print()
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """`miras inspect`."""
    import numpy as np

    from miras_jax import inspection
    from miras_jax.export import load_model, load_tokenizer
    from miras_jax.training.errors import UserError

    inspection.check_plotting()
    with open(arguments.text, encoding="utf-8", newline="") as file:
        try:
            text = file.read(32 * arguments.tokens)  # a token is hardly ever longer
        except UnicodeDecodeError:
            raise UserError(f"--text {arguments.text} is not UTF-8 text") from None
    if not text:
        raise UserError(f"--text {arguments.text} holds no text")
    if arguments.experiment:
        load_experiment(arguments.experiment)
    model, metadata = load_model(arguments.checkpoint)
    tokenizer = load_tokenizer(arguments.checkpoint, metadata)
    before = [tokenizer.separator] if metadata.get("packed") else []
    tokens = np.asarray([*before, *tokenizer.encode(text)][: arguments.tokens], np.int32)
    diagnostics = inspection.read(model, tokens)
    title = (
        f"{model.config.memory} reads {len(tokens):,} tokens of {os.path.basename(arguments.text)}"
    )
    inspection.draw(diagnostics, title, arguments.out)
    print_table(inspection.table(diagnostics))
    print(f"picture: {arguments.out}")
    return 0


def zoo(arguments: argparse.Namespace) -> int:
    """`miras zoo`."""
    from rich.table import Table

    from miras_jax import zoo as models

    if arguments.name is not None:
        return describe(arguments.name)
    columns = "name architecture bias retention algorithm gates forms source".split()
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column == "name")
    for row in models.table():
        table.add_row(*(getattr(row, column) for column in columns))
    print_table(table)
    return 0


def describe(name: str) -> int:
    """`miras zoo NAME`."""
    from miras_jax import describe as words

    try:
        text = words.describe(name)
    except ValueError as error:
        from miras_jax.training.errors import UserError

        raise UserError(str(error)) from error
    print(text)
    return 0


def parse_config(default, words: list[str], name: str):
    """Returns the configuration `default` with what `words` change, parsed by tyro.

    Raises:
      UserError: the words make no configuration; names the command `name`.
    """
    import tyro

    from miras_jax.training import UserError

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                tyro.conf.AvoidSubcommands[type(default)], default=default, args=words, prog=name
            )
    except SystemExit as end:
        if not end.code:
            raise  # --help
        raise UserError(f"{_one_line(said.getvalue()).rstrip('.')}; see {name} --help") from None


def load_experiment(name: str):
    """Runs a Python file and returns the TrainConfig that it binds to `config`.

    Args:
      name: the file, as FILE.py; where `config` is a function, its arguments, all text, may follow
        as FILE.py:NAME=VALUE,NAME=VALUE.

    Raises:
      UserError: if there is no such file, it fails, or it binds none.
    """
    from miras_jax.training import TrainConfig, UserError

    path, arguments = split_experiment(name)
    if not os.path.isfile(path):
        raise UserError(f"no experiment at {path}: there is no such file")
    config = None
    try:
        config = runpy.run_path(path).get("config")
        if callable(config):
            known = signature(config).parameters
            if unknown := sorted(set(arguments) - set(known)):
                raise UserError(
                    f"{path} takes {', '.join(known) or 'no arguments'}, not {', '.join(unknown)}"
                )
            config, arguments = config(**arguments), {}
    except UserError:
        raise
    except Exception as error:
        line = _line_of(error, path)
        raise UserError(f"{path}{line}: {type(error).__name__}: {error}") from error
    if not isinstance(config, TrainConfig):
        found = (
            "does not bind `config`"
            if config is None
            else f"binds `config` to a {type(config).__name__}"
        )
        raise UserError(f"{path} {found}; it must say config = TrainConfig(...)")
    if arguments:
        raise UserError(
            f"{path} binds `config` to a TrainConfig, which takes no {', '.join(arguments)}:"
            " override its fields by options"
        )
    return config


def split_experiment(name: str) -> tuple[str, dict[str, str]]:
    """Returns the file and the arguments of FILE.py:NAME=VALUE,NAME=VALUE.

    Raises:
      UserError: an argument has no value.
    """
    from miras_jax.training import UserError

    path, colon, rest = name.partition(".py:")
    if not colon or os.path.isfile(name):
        return name, {}
    pairs = [word.partition("=") for word in rest.split(",")]
    for key, equals, _ in pairs:
        if not (key and equals):
            raise UserError(f"{name}: after the file come NAME=VALUE,NAME=VALUE, got {rest!r}")
    return f"{path}.py", {key: value for key, _, value in pairs}


def print_table(table) -> None:
    """Prints a rich table; in a pipe every row keeps to one line, however long."""
    from rich.console import Console

    console = Console()
    if not sys.stdout.isatty():
        unbounded = console.options.update(max_width=sys.maxsize)
        console = Console(width=console.measure(table, options=unbounded).maximum)
    with console.capture() as text:
        console.print(table)
    print(text.get(), end="")  # rich would end the process with 1 where nobody reads


def program() -> list[str]:
    """Returns how this program can be called again from here."""
    if shutil.which("miras"):
        return ["miras"]
    if os.path.basename(sys.argv[0]) == "miras":  # by its path: .venv/bin/miras
        return [sys.argv[0]]
    return [sys.executable, "-m", "miras_jax"]


def without(overrides: list[str], option: str) -> list[str]:
    """Drops `option VALUE` and `option=VALUE`."""
    kept, skip = [], False
    for word in overrides:
        if not skip and word != option and not word.startswith(f"{option}="):
            kept.append(word)
        skip = word == option
    return kept


def _one_line(box: str) -> str:
    """Takes the message, and what was perhaps meant, out of the box that tyro draws.

    The box is a title, the message, and further blocks, with rules between them.
    """
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    _title, *lines = itertools.dropwhile(_is_rule, lines)
    message = " ".join(itertools.takewhile(_is_text, itertools.dropwhile(_is_rule, lines)))
    likely = [line.split()[0] for line in lines if line.startswith("--") and _is_text(line)]
    if "Perhaps you meant:" in lines and likely:
        message += f", perhaps you meant {likely[0]}"
    return message


def _is_text(line: str) -> bool:
    return any(map(str.isalnum, line))


def _is_rule(line: str) -> bool:
    return not _is_text(line)


def _line_of(error: Exception, path: str) -> str:
    """Returns ", line N", the deepest line of `path` that `error` passed through, or nothing."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    return f", line {lines[-1]}" if lines else ""


def _at_least(least: float, kind: type, below: float = math.inf) -> Callable[[str], float]:
    """Makes the type of an option that must be a finite `kind` of at least `least`."""
    limits = f"at least {least}" + (f" and below {below}" if below < math.inf else "")

    def convert(text: str):
        if not least <= (value := kind(text)) < below:
            raise argparse.ArgumentTypeError(f"must be {limits}, got {text}")
        return value

    convert.__name__ = kind.__name__
    return convert


def _probability(text: str) -> float:
    if not 0 < (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return value
