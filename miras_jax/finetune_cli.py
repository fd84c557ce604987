"""The options of `miras finetune`, and their order: what was asked for decides what was not."""

import argparse
import dataclasses
import shlex

ALIAS, OPTION = "--data", "--data.source"


def add_command(commands, **style) -> None:
    """Adds the command to the subparsers of the command line."""
    command = commands.add_parser(
        "finetune", help="train on from a checkpoint, on other data", **style
    )
    command.description = (
        "Trains the model of a checkpoint on other data: all parameters, some, or LoRA. A run found"
        " in its directory is continued."
    )
    command.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder of a run, of one of its checkpoints, or of an exported model",
    )
    command.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="--data PATH ... --OPTION VALUE",
        help="text, JSON lines or token sets; any option of miras train: see miras finetune"
        " CHECKPOINT --help; --experiment EXPERIMENT.py where a file registers the model",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`miras finetune`."""
    from miras_jax import cli, finetune, zoo
    from miras_jax.training import UserError, train
    from miras_jax.training.processes import join
    from miras_jax.training.source import open_source

    words, experiment = _without_experiment(arguments.overrides)
    if experiment:
        cli.load_experiment(experiment)
    checkpoint = arguments.checkpoint
    source = open_source(checkpoint)

    def parse(default: finetune.FinetuneConfig) -> finetune.FinetuneConfig:
        return cli.parse_config(default, words, f"miras finetune {shlex.quote(checkpoint)}")

    config = parse(finetune.defaults(checkpoint, source))
    if not any(word.partition("=")[0] == OPTION for word in words):
        raise UserError("--data must name what to train on: text, JSON lines or token sets")
    if config.trainable.lora.rank:
        config = parse(finetune.for_lora(finetune.defaults(checkpoint, source)))
    data = finetune.tokenized(config, source)
    config = parse(finetune.for_data(dataclasses.replace(config, data=data)))
    config = parse(finetune.for_steps(config))
    config = dataclasses.replace(config, data=data)

    options = ["--experiment", experiment] if experiment else []
    again = [*cli.program(), "finetune", checkpoint, *options, *arguments.overrides]
    again = cli.without(again, "--steps")
    sample = [*cli.program(), "generate", config.directory]
    if config.model.memory not in zoo.PUBLISHED:
        sample += options
    with join(config.processes):
        train(
            config.run(),
            command=shlex.join(again),
            generate_command=shlex.join(sample),
            prepare_tasks=cli.prepare_tasks,
        )
    return 0


def _without_experiment(overrides: list[str]) -> tuple[list[str], str | None]:
    """The words for the configuration, with --data spelled out, and the file of --experiment."""
    words, experiment, takes = [], None, False
    for word in overrides:
        name, equals, value = word.partition("=")
        if takes:
            experiment, takes = word, False
        elif name == "--experiment":
            experiment, takes = value or None, not equals
        elif name == ALIAS:
            words.append(OPTION + equals + value)
        else:
            words.append(word)
    return words, experiment
