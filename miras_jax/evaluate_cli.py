"""The options of `miras evaluate`, and what it says when it is done."""

import argparse
import sys
import time


def add_command(commands, **style) -> None:
    """Adds the command to the subparsers of the command line."""
    command = commands.add_parser("evaluate", help="measure a trained model", **style)
    command.description = (
        "Runs evaluators on a trained model, prints a table and writes a record. A task is"
        " KIND:TARGET,option=value with the kinds perplexity:PATH, zeroshot:PATH, harness:TASK and"
        " task:NAME;"
        " docs/evaluation.md lists their options."
    )
    add = command.add_argument
    add(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder of a run, of one of its checkpoints, or of an exported model",
    )
    add("--tasks", nargs="+", metavar="TASK", required=True, help="what to run")
    add("--out", metavar="FILE.json", help="record to write")
    add("--batch-size", type=_positive, default=16, help="rows that are read together")
    add("--piece", type=_positive, default=512, help="tokens that are read at once")
    add("--control", metavar="NAME", help="break one thing of what the memories do, as frozen")
    add("--chunk-size", type=_positive, metavar="N", help="tokens a chunk of the memories")
    add("--include-path", metavar="FOLDER", help="folder of lm-evaluation-harness tasks")
    add(
        "--experiment",
        metavar="EXPERIMENT.py",
        help="file to run first, where it registers the model",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`miras evaluate`."""
    import jax

    from miras_jax import evals, export
    from miras_jax import evaluation_record as record
    from miras_jax.cli import load_experiment, print_table
    from miras_jax.evals import suite
    from miras_jax.nn import reconfigured
    from miras_jax.training import UserError

    for task in arguments.tasks:  # before a model is loaded
        suite.parse(task)
    if arguments.experiment:
        load_experiment(arguments.experiment)
    model, metadata = export.load_model(arguments.checkpoint)
    changes = {"control": arguments.control, "chunk_size": arguments.chunk_size}
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes:
        try:
            model = reconfigured(model, **changes)
        except ValueError as error:
            raise UserError(str(error)) from error
    vocabulary = export.load_vocabulary_of(arguments.checkpoint, metadata)
    subject = evals.Subject(
        vocabulary,
        packed=bool(metadata.get("packed")),
        batch_size=arguments.batch_size,
        piece=arguments.piece,
        include_path=arguments.include_path,
    )
    evaluators = evals.prepare(arguments.tasks, subject)
    about = {
        "checkpoint": arguments.checkpoint,
        "step": metadata["step"],
        "model": model.config,
        "parameters": sum(x.size for x in jax.tree.leaves(model)),
        "vocabulary": vocabulary.describe(),
        "packed": subject.packed,
        "settings": {"batch_size": subject.batch_size, "piece": subject.piece},
    }
    results = []
    try:
        for each in evaluators:
            began = time.perf_counter()
            results.append((each.run(model), time.perf_counter() - began))
            print(f"{each.name}: {results[-1][1]:.0f} s", file=sys.stderr)
            if arguments.out:
                done = evaluators[: len(results)]
                record.write(record.describe(done, results, **about), arguments.out)
    finally:  # what is done is shown also where the next task fails
        if results:
            print_table(record.table(evaluators[: len(results)], results))
    if arguments.out:
        print(f"record: {arguments.out}")
    return 0


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


_positive.__name__ = "int"
