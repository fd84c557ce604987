"""The options of `miras tokenize`, and what it says when it is done."""

import argparse
import shlex


def add_command(commands, **style) -> None:
    """Adds the command to the subparsers of the command line."""
    command = commands.add_parser("tokenize", help="make token sets out of text", **style)
    command.description = (
        "Turns text, JSON lines, Parquet and ArrayRecord, also compressed, into a token set that"
        " training reads (--data.source FOLDER). Stopped at any moment, the same command goes on."
    )
    add = command.add_argument
    add(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="file, folder, pattern or URL; hf:NAME:SPLIT for Hugging Face datasets",
    )
    add("--out", metavar="FOLDER", required=True, help="folder of the token set")
    add(
        "--tokenizer",
        metavar="FILE",
        default="bytes",
        help="bytes, a tokenizer.json of Hugging Face tokenizers, or a .model of SentencePiece",
    )
    add("--separator", metavar="TOKEN", help="token between documents, if the file marks none")
    add("--field", default="text", help="name of the text in objects, records and columns")
    add(
        "--prompt-completion",
        nargs=2,
        metavar=("PROMPT", "COMPLETION"),
        help="names of a prompt and a completion in JSON lines, to train on completions alone",
    )
    add(
        "--format",
        choices=("auto", "text", "jsonl", "parquet", "array_record"),
        default="auto",
        help="what the files are; auto goes by their names",
    )
    add(
        "--records",
        choices=("example", "json", "text"),
        default="example",
        help="what a record of ArrayRecord holds; example is a tf.train.Example",
    )
    add("--shard-bytes", type=int, default=64 << 20, help="bytes of input in a shard, about")
    add("--workers", type=int, help="processes; one a processor if not given")
    add("--strict", action="store_true", help="end at the first corrupt line or record")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`miras tokenize`."""
    from miras_jax.data import tokenize
    from miras_jax.data.progress import TokenizeProgress

    with TokenizeProgress() as progress:
        manifest = tokenize(
            arguments.sources,
            arguments.out,
            tokenizer=arguments.tokenizer,
            separator=arguments.separator,
            field=tuple(arguments.prompt_completion or ()) or arguments.field,
            format_=arguments.format,
            records=arguments.records,
            shard_bytes=arguments.shard_bytes,
            workers=arguments.workers,
            strict=arguments.strict,
            watcher=progress,
        )
    corrupt = f"; {manifest['corrupt']:,} corrupt, see manifest.json" if manifest["corrupt"] else ""
    print(
        f"{arguments.out}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens,"
        f" {manifest['bytes']:,} bytes in {len(manifest['shards']):,} shard(s){corrupt}"
    )
    size = manifest["tokenizer"]["vocab_size"]
    option = "" if manifest["tokenizer"]["kind"] == "bytes" else f" --model.vocab-size {size}"
    folder = shlex.quote(arguments.out)
    print(f"train on it: miras train EXPERIMENT.py --data.source {folder}{option}")
    return 0
