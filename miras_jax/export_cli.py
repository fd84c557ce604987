"""The options of `miras export`, and what it says when it is done."""

import argparse
import shlex


def add_command(commands, **style) -> None:
    """Adds the command to the subparsers of the command line."""
    command = commands.add_parser("export", help="write a model for other programs", **style)
    command.description = (
        "Writes the weights of a checkpoint as safetensors with config.json and the tokenizer;"
        " miras generate and miras inspect read such a folder too."
    )
    add = command.add_argument
    add(
        "checkpoint",
        metavar="RUN_OR_CHECKPOINT",
        help="folder of a run, of one of its checkpoints, or of an exported model",
    )
    add("--out", metavar="FOLDER", required=True, help="folder to write; new or empty")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="type of the weights; bfloat16 rounds them",
    )
    add(
        "--experiment",
        metavar="EXPERIMENT.py",
        help="file to run first, where it registers the model",
    )
    add(
        "--lora",
        choices=("merged", "separate"),
        help="of a run with LoRA: the whole model with what it learned, or what it learned alone,"
        " to be read with the base; merged if not given",
    )
    add(
        "--base",
        metavar="CHECKPOINT",
        help="base of LoRA that was exported apart; the one it was trained on if not given",
    )
    add("--stablehlo", action="store_true", help="add the decode step, lowered by jax.export")
    add("--batch", type=int, help="rows of the decode step; one if not given")
    add(
        "--platforms",
        nargs="+",
        choices=("cpu", "cuda", "tpu"),
        help="what the decode step is lowered for; cpu if not given",
    )
    add("--capacity", type=int, help="tokens read in all, for transformer, whose state grows")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`miras export`."""
    from miras_jax import adapter, export
    from miras_jax.cli import load_experiment
    from miras_jax.decode_program import Decode
    from miras_jax.nn.lora import merge_lora
    from miras_jax.training.errors import UserError

    asked = {name: getattr(arguments, name) for name in ("batch", "platforms", "capacity")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked and not arguments.stablehlo:
        raise UserError(f"--{next(iter(asked))} is of the decode step: ask for it, --stablehlo")
    decode = Decode(**asked) if arguments.stablehlo else None
    if arguments.experiment:
        load_experiment(arguments.experiment)
    if arguments.base is not None:
        model = adapter.load(arguments.checkpoint, arguments.base)
        metadata = adapter.read(arguments.checkpoint)
    else:
        model, metadata = export.load_model(arguments.checkpoint)
    vocabulary = export.load_vocabulary_of(arguments.checkpoint, metadata)
    if arguments.lora == "separate":
        if arguments.stablehlo or arguments.dtype != "float32":
            raise UserError("--lora separate has neither --stablehlo nor another --dtype")
        config = adapter.save(model, arguments.out, metadata, vocabulary=vocabulary)
        print(
            f"{arguments.out}: {config['parameter_count']:,} parameters of LoRA of rank"
            f" {config['trainable']['lora']['rank']}, on top of {config['base']['path']}"
        )
        print(f"try it: miras generate {shlex.quote(arguments.out)}")
        return 0
    model = merge_lora(model)
    config = export.save(
        model,
        arguments.out,
        dtype=arguments.dtype,
        step=metadata["step"],
        vocabulary=vocabulary,
        packed=bool(metadata.get("packed")),
        decode=decode,
    )
    print(
        f"{arguments.out}: {len(export.tensors(model))} tensors,"
        f" {config['parameter_count']:,} parameters in {config['dtype']}"
        + ("" if config["step"] is None else f", of step {config['step']:,}")
    )
    if decode:
        platforms = config["decode"]["files"]
        print(f"decode step for {', '.join(platforms)}, {decode.batch} row(s)")
    print(f"try it: miras generate {shlex.quote(arguments.out)}")
    return 0
