"""The whole way of a model: text to tokens, pretraining by two processes that are killed and go on
elsewhere, fine-tuning in full and with LoRA, export.

    python experiments/end_to_end.py --work runs/end_to_end
    python experiments/end_to_end.py --work runs/end_to_end --novels NOVELS --web WEB.jsonl
        --tokenizer TOKENIZER.model --steps 300 --out docs/results/end_to_end.md

NOVELS is a folder with `train` and `valid`; without one modules of Python's standard library take
its place, without WEB the texts of its help do, without a tokenizer one is made of the text. This
is run with bytes and with the tokenizer's vocabulary, by the commands that a user would type, and
what they leave behind is checked:

1. two processes train, two devices each; at a third of the steps both are killed (SIGKILL);
2. the same command goes on; at two thirds one of them gets SIGTERM, and both save and end;
3. one process goes on to the end, on a mesh of another shape;
4. every batch that was logged is the one that an uninterrupted run reads at that step;
5. the model is fine-tuned on the new text, all parameters and by LoRA, which is exported merged.
"""

import dataclasses
import datetime
import json
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import time
import zlib
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics

import jax
import tyro

from miras_jax.data import load_text, train_iterator
from miras_jax.export import load_model
from miras_jax.training.metrics import read_records

EXPERIMENT = '''"""Written by end_to_end.py."""

from miras_jax.nn import ModelConfig
from miras_jax.training import *

config = TrainConfig(
    model=ModelConfig(
        memory={memory!r}, vocab_size={vocab_size}, dim={dim}, depth={depth}, heads=4
    ),
    data=DataConfig(
        source={source!r}, validation={validation!r}, window={window}, batch_size={batch_size}
    ),
    optimizer=OptimizerConfig(learning_rate={learning_rate}, warmup_steps={warmup}),
    mesh=MeshConfig(data=2, fsdp=2, devices=2),
    evaluation=EvaluationConfig(every={steps}, batches=8, sample_tokens=0),
    checkpoint=CheckpointConfig(every={every}),
    log=LogConfig(every=1),
    steps={steps},
    directory={directory!r},
)
'''


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is run; the defaults take a minute or two on two cores."""

    work: Path = Path("runs/end_to_end")
    """Folder for everything that is made; it must be empty or missing."""
    novels: Path | None = None
    """Folder with the folders train and valid of text to pretrain on."""
    web: Path | None = None
    """JSON lines with a `text` each to fine-tune on."""
    tokenizer: Path | None = None
    """tokenizer.json or SentencePiece model of the second run."""
    vocabularies: tuple[str, ...] = ("bytes", "tokenizer")
    """Which of the two are run."""
    memory: str = "yaad"
    """Model of the zoo."""
    dim: int = 32
    """Width of the model."""
    depth: int = 1
    """Blocks."""
    window: int = 64
    """Tokens a row."""
    batch_size: int = 8
    """Rows a step."""
    steps: int = 30
    """Steps of pretraining."""
    tune_steps: int = 10
    """Steps of each fine-tuning."""
    learning_rate: float = 2e-3
    """Peak of pretraining."""
    out: Path | None = None
    """Markdown file for the figures; JSON is put beside it."""


def main(settings: Settings) -> list[dict]:
    """Runs everything and returns the figures; ends with an error at what is not as it should."""
    settings.work.mkdir(parents=True, exist_ok=True)
    if any(settings.work.iterdir()):
        raise SystemExit(f"{settings.work} is not empty: choose another --work, or delete it")
    texts = find_texts(settings)
    figures = [whole_way(settings, name, texts) for name in settings.vocabularies]
    if settings.out:
        write(settings, figures)
    return figures


def miras(*arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen:
    """Starts a command of the library."""
    command = [sys.executable, "-m", "miras_jax", *map(str, arguments)]
    print("$", shlex.join(["miras", *command[3:]]), flush=True)
    return subprocess.Popen(
        command,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(process: subprocess.Popen, *codes: int) -> str:
    """Waits for a command that must end with one of the exit codes; returns what it said."""
    said, _ = process.communicate(timeout=7200)
    if process.returncode not in (codes or (0,)):
        raise SystemExit(f"exit code {process.returncode} where {codes or (0,)} was right:\n{said}")
    return said


def find_texts(settings: Settings) -> dict[str, Path]:
    """The texts to train, hold out and fine-tune on, as files or folders."""
    texts = settings.work / "texts"
    texts.mkdir()
    if settings.novels is None or settings.web is None:
        stdlib = Path(os.__file__).parent
        sources = sorted(stdlib.glob("*.py"))[:60]
    if settings.novels is not None:
        found = {"train": settings.novels / "train", "valid": settings.novels / "valid"}
    else:
        for name, part in (("train", sources[:-8]), ("valid", sources[-8:])):
            (texts / name).mkdir()
            for source in part:
                (texts / name / f"{source.stem}.txt").write_bytes(source.read_bytes())
        found = {"train": texts / "train", "valid": texts / "valid"}
    found["web"] = settings.web or texts / "web.jsonl"
    if settings.web is None:
        said = [part for text in topics.values() for part in text.split("\n\n")]
        lines = [json.dumps({"text": part}) for part in said if len(part) > 80]
        found["web"].write_text("\n".join(lines[:2000]) + "\n")
    found["tokenizer"] = settings.tokenizer or texts / "tokenizer.json"
    if settings.tokenizer is None:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train([str(path) for path in sorted(found["train"].glob("*.txt"))], trainer)
        tokenizer.save(str(found["tokenizer"]))
    return found


def whole_way(settings: Settings, vocabulary: str, texts: dict[str, Path]) -> dict:
    """One vocabulary from text to an exported model; returns its figures."""
    began = time.monotonic()
    work = settings.work / vocabulary
    work.mkdir()
    tokenizer = "bytes" if vocabulary == "bytes" else texts["tokenizer"]
    for name in ("train", "valid"):
        done(miras("tokenize", texts[name], "--tokenizer", tokenizer, "--out", work / name))
    manifest = json.loads((work / "train" / "manifest.json").read_text())
    run = work / "pretrain"
    experiment = write_experiment(settings, work, load_text(str(work / "train")).vocabulary)
    happened = pretrain(settings, experiment, run)
    checked = check_batches(settings, work, run)
    figures = {
        "vocabulary": vocabulary,
        "tokens": manifest["tokens"],
        "parameters": parameters(run),
        "happened": happened,
        "checked": checked,
        "bits_per_byte": evaluations(run)[-1]["eval/bits_per_byte"],
        "seconds": round(time.monotonic() - began),
    }
    for way, options in (("full", ()), ("lora", ("--trainable.lora.rank", "4"))):
        figures[way] = finetune(settings, run, texts["web"], work / way, options)
    exported = work / "exported"
    done(miras("export", work / "lora", "--out", exported, "--lora", "merged"))
    figures["sample"] = done(miras("generate", exported, "--prompt", "The ", "--max-tokens", 60))
    return figures


def write_experiment(settings: Settings, work: Path, vocabulary: dict) -> Path:
    """The experiment as a file, as a user would write it."""
    path = work / "experiment.py"
    names = ("memory", "dim", "depth", "window", "batch_size", "steps", "learning_rate")
    values = {name: getattr(settings, name) for name in names}
    values |= {"source": str(work / "train"), "validation": str(work / "valid")}
    values |= {"vocab_size": -(-vocabulary["vocab_size"] // 64) * 64}
    values |= {"warmup": max(1, settings.steps // 20), "every": max(1, settings.steps // 10)}
    path.write_text(EXPERIMENT.format(**values, directory=str(work / "pretrain")))
    return path


def pretrain(settings: Settings, experiment: Path, run: Path) -> list[str]:
    """Trains in three parts, ended by SIGKILL, by SIGTERM to one process, and by itself; returns
    what happened."""
    happened = []
    pair = start_pair(experiment)
    step = wait_for_step(run, settings.steps // 3, pair)
    for process in pair:
        process.kill()
    for process in pair:
        process.communicate()
    happened.append(f"both killed at step {step}")
    pair = start_pair(experiment)
    step = wait_for_step(run, 2 * settings.steps // 3, pair)
    pair[1].send_signal(signal.SIGTERM)
    for process in pair:
        done(process, 128 + signal.SIGTERM)
    saved = max(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))
    happened.append(f"SIGTERM to one at step {step}, both saved step {saved}")
    mesh = ("--mesh.data", 1, "--mesh.fsdp", 2, "--mesh.tensor", 2, "--mesh.devices", 4)
    said = done(miras("train", experiment, *mesh))
    if f"continuing after step {saved}" not in said:
        raise SystemExit(f"the run did not go on after step {saved}:\n{said}")
    happened.append(f"one process on a mesh of fsdp 2 x tensor 2 from step {saved} to the end")
    return happened


def start_pair(experiment: Path) -> list[subprocess.Popen]:
    """Two processes of one run on this machine."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [
        miras(
            "train",
            experiment,
            env={
                "MIRAS_COORDINATOR": f"localhost:{port}",
                "MIRAS_PROCESS_COUNT": "2",
                "MIRAS_PROCESS_INDEX": str(index),
            },
        )
        for index in range(2)
    ]


def wait_for_step(run: Path, step: int, processes: list[subprocess.Popen]) -> int:
    """Waits until the run has logged a step; returns the last one it has."""
    while True:
        records = read_records(run / "metrics.jsonl")
        last = records[-1]["step"] if records else 0
        if last >= step:
            return last
        for process in processes:
            if process.poll() is not None:
                raise SystemExit(f"ended at step {last}:\n{process.communicate()[0]}")
        time.sleep(0.05)


def check_batches(settings: Settings, work: Path, run: Path) -> int:
    """Compares the batch of every step with that of an uninterrupted run; returns how many."""
    logged = {}
    for record in read_records(run / "metrics.jsonl"):
        if "data/index_crc32" in record:
            logged[record["step"]] = record["data/index_crc32"]
    parts = load_text(str(work / "train"), str(work / "valid")).parts
    options = {"window": settings.window, "batch_size": settings.batch_size, "seed": 0}
    batches = train_iterator(parts, **options)
    for step in range(1, settings.steps + 1):
        expected = zlib.crc32(next(batches)["index"].tobytes())
        if logged.get(step) != f"{expected:08x}":
            raise SystemExit(f"step {step} read other windows than it should: {logged.get(step)}")
    return settings.steps


def finetune(settings: Settings, run: Path, web: Path, directory: Path, options: tuple) -> dict:
    """Fine-tunes the run; returns the bits per byte of new and old text, before and after."""
    began = time.monotonic()
    steps = ("--steps", settings.tune_steps)
    done(miras("finetune", run, "--data", web, "--directory", directory, *steps, *options))
    records = evaluations(directory)
    names = {"new": "eval/bits_per_byte", "old": "eval/old_data/bits_per_byte"}
    figures = {text: [records[i][name] for i in (0, -1)] for text, name in names.items()}
    return {**figures, "seconds": round(time.monotonic() - began)}


def evaluations(run: Path) -> list[dict]:
    """The records of held-out text of a run."""
    return [r for r in read_records(run / "metrics.jsonl") if "eval/bits_per_byte" in r]


def parameters(run: Path) -> int:
    """Parameters of a run's model."""
    model, _ = load_model(run)
    return sum(x.size for x in jax.tree.leaves(model))


def write(settings: Settings, figures: list[dict]) -> None:
    """Writes the figures as JSON and as a page."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain")
    about = {
        "command": shlex.join(["python", *sys.argv]),
        "date": str(datetime.date.today()),
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()}), no accelerator",
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }
    out = settings.out
    out.with_suffix(".json").write_text(json.dumps({**about, "runs": figures}, indent=1) + "\n")
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        "# From text to a fine-tuned model",
        "",
        f"`{about['command']}`, {about['date']}, {about['machine']}, {versions}.",
        "",
        f"{settings.memory}, width {settings.dim}, {settings.depth} blocks, windows of"
        f" {settings.window} tokens, {settings.batch_size} rows a step, {settings.steps} steps of"
        f" pretraining and {settings.tune_steps} of fine-tuning. One seed. The files are named in"
        " the command; held-out bits per byte of the same texts before and after.",
        "",
        "| vocabulary | parameters | tokens of text | pretrained | fine-tuned | new text |"
        " old text | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in figures:
        for way in ("full", "lora"):
            new, old = (" -> ".join(f"{x:.3f}" for x in run[way][text]) for text in ("new", "old"))
            lines.append(
                f"| {run['vocabulary']} | {run['parameters']:,} | {run['tokens']:,} |"
                f" {run['bits_per_byte']:.3f} in {run['seconds']} s | {way} | {new} | {old} |"
                f" {run[way]['seconds']} |"
            )
    for run in figures:
        happened = "; ".join(run["happened"])
        lines += [
            "",
            f"{run['vocabulary']}: {happened}. The windows of all {run['checked']} batches are"
            " those of an uninterrupted run.",
        ]
    out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
