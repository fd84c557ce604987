"""The command line: what it prints, its exit codes, and a run that is killed and goes on."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import miras_jax
from miras_jax import cli

EXPERIMENT = """
from miras_jax.nn import ModelConfig
from miras_jax.training import *

config = TrainConfig(
    model=ModelConfig(memory="deltanet", dim=16, depth=1, heads=2, chunk_size=8),
    data=DataConfig(source="text.txt", window=16, batch_size=8),
    evaluation=EvaluationConfig(every=50, batches=1, sample_tokens=8),
    checkpoint=CheckpointConfig(every=10, keep=2),
    log=LogConfig(every=1),
    steps=60,
    directory="run",
)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of a test, with an experiment and its text."""
    (tmp_path / "exp.py").write_text(EXPERIMENT)
    (tmp_path / "text.txt").write_text("what it reads it learns, what it learns it keeps. " * 200)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def miras(*arguments: str) -> int:
    """Runs the command line in this process and returns its exit code."""
    try:
        return cli.main(list(arguments))
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("fly", "invalid choice: 'fly'"),
        ("train", "the following arguments are required: EXPERIMENT.py"),
        ("train nowhere.py", "no experiment at nowhere.py: there is no such file"),
        ("train unbound.py", "unbound.py does not bind `config`"),
        ("train number.py", "number.py binds `config` to a int"),
        ("train fails.py", "fails.py, line 2: ZeroDivisionError"),
        ("train syntax.py", "syntax.py, line 1: SyntaxError"),
        ("train exp.py:size=1", "exp.py binds `config` to a TrainConfig, which takes no size"),
        ("train makes.py:width=1", "makes.py takes rows, not width"),
        ("train makes.py:rows", "after the file come NAME=VALUE,NAME=VALUE, got 'rows'"),
        ("train makes.py:rows=no", "makes.py, line 4: ValueError: invalid literal for int()"),
        ("train makes.py:rows=0", "data.batch_size must be at least 1, got 0"),
        ("train field.py", "field.py, line 2: TypeError: TrainConfig.__init__() got an unexpected"),
        ("train exp.py --stepz 3", "Unrecognized options: --stepz, 3, perhaps you meant --steps;"),
        ("train exp.py --steps many", "Error parsing --steps: invalid literal for int()"),
        ("train exp.py --steps", "Missing value for argument '--steps'"),
        ("train exp.py more", "Unrecognized options: more"),
        ("train exp.py --model.memory none", "There is no model 'none'"),
        ("train exp.py --data.source empty.txt", "empty.txt holds no text"),
        ("train exp.py --data.source nowhere", "nowhere"),
        ("train exp.py --data.window 0", "data.window must be at least 1, got 0"),
        ("train exp.py --data.batch-size 9 --mesh.data 2", "data.batch_size 9 must be a multiple"),
        ("train exp.py --data.batch-size 9 --mesh.data 3", "does not divide the 8 cpu device(s)"),
        ("train exp.py --directory text.txt", "directory 'text.txt' cannot be made"),
        ("train exp.py --model.ff-dim 0", "model.ff_dim must be at least 1, got 0"),
        ("train exp.py --data.validation empty.txt", "data.validation 'empty.txt'"),
        ("generate numbers", "it is neither a run nor a checkpoint"),
        ("generate . --seed -1", "argument --seed: must be at least 0 and below 4294967296"),
        ("generate . --prompt=\udcff", "--prompt is not UTF-8"),
        ("generate nowhere", "there is no such folder"),
        ("generate .", "it is neither a run nor a checkpoint"),
        ("generate . --max-tokens 0", "argument --max-tokens: must be at least 1, got 0"),
        ("generate . --temperature -1", "argument --temperature: must be at least 0"),
        ("generate . --top-p 2", "argument --top-p: must be above 0 and at most 1, got 2"),
        ("generate . --prompt=", "--prompt must hold at least one character"),
        ("generate . --warm", "unrecognized arguments: --warm"),
        ("inspect .", "the following arguments are required: --text"),
        ("inspect . --text text.txt", "it is neither a run nor a checkpoint"),
        ("inspect . --text nowhere.txt", "No such file or directory: 'nowhere.txt'"),
        ("inspect . --text empty.txt", "--text empty.txt holds no text"),
        ("inspect . --text latin.txt", "--text latin.txt is not UTF-8 text"),
        ("inspect . --text text.txt --tokens 0", "argument --tokens: must be at least 1, got 0"),
        ("zoo none", "There is no model 'none'; the zoo has linear_attention"),
    ],
)
def test_a_bad_request_gets_one_line_and_code_2(folder, capsys, arguments, message):
    (folder / "unbound.py").write_text("pass")
    (folder / "number.py").write_text("config = 3")
    (folder / "fails.py").write_text("\n1 / 0")
    (folder / "syntax.py").write_text("config = (")
    (folder / "makes.py").write_text(
        "from miras_jax.training import *\n\ndef config(rows='8'):\n"
        "    return TrainConfig(data=DataConfig(source='text.txt', batch_size=int(rows)))\n"
    )
    (folder / "field.py").write_text(
        "from miras_jax.training import TrainConfig\nconfig = TrainConfig(stepz=3)"
    )
    (folder / "empty.txt").touch()
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "numbers/2024").mkdir(parents=True)
    assert miras(*arguments.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("miras: error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (folder / "run").exists()


def test_a_full_disk_gets_one_line(folder, monkeypatch, capsys):
    def train(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/metrics.jsonl")

    monkeypatch.setattr("miras_jax.training.train", train)
    assert miras("train", "exp.py") == 2
    said = capsys.readouterr().err
    assert said == "miras: error: [Errno 28] No space left on device: 'run/metrics.jsonl'\n"


@pytest.mark.parametrize(
    ("found", "called", "said"),
    [
        ("/bin/miras", "/bin/miras", "miras"),
        (None, ".venv/bin/miras", ".venv/bin/miras"),
        (None, "/lib/miras_jax/__main__.py", f"{sys.executable} -m miras_jax"),
    ],
)
def test_says_how_to_be_called_again(folder, monkeypatch, found, called, said):
    options = {}
    monkeypatch.setattr(
        "miras_jax.training.train", lambda _, *, prepare_tasks, **given: options.update(given)
    )
    monkeypatch.setattr("shutil.which", lambda _: found)
    monkeypatch.setattr(sys, "argv", [called])
    assert miras("train", "exp.py", "--steps", "70", "--seed", "3") == 0
    assert options == {
        "command": f"{said} train exp.py --seed 3",
        "generate_command": f"{said} generate run",
    }


def test_a_bug_keeps_its_traceback(folder, monkeypatch):
    monkeypatch.setattr("miras_jax.training.train", lambda *_, **__: [].pop())
    with pytest.raises(IndexError):
        miras("train", "exp.py")


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ("--version", [f"miras_jax {miras_jax.__version__}"]),
        ("--help", ["train", "generate", "inspect", "zoo"]),
        ("train --help", ["EXPERIMENT.py"]),
        ("train exp.py --help", ["--data.window", "(default: 16)", "Tokens that the model reads"]),
        ("generate --help", ["--top-p", "(default: 256)", "tokens to generate"]),
        ("inspect --help", ["--text FILE", "(default: inspect.png)", "(default: 2048)"]),
        ("zoo", ["yaad", "titans", "deltanet"]),
        ("zoo yaad", ["yaad: Miras Eqs. 16, 26", "recurrent, chunked", "--model.memory yaad"]),
    ],
)
def test_help_and_tables(folder, capsys, arguments, lines):
    assert miras(*arguments.split()) == 0
    said = capsys.readouterr().out
    for line in lines:
        assert line in said


def test_in_a_pipe_the_zoo_has_a_line_for_each_model(folder, capsys):
    assert miras("zoo") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "name"
    assert [line.split()[0] for line in lines] == miras_jax.zoo.names()
    # To the last column, whole.
    sources = [row.source for row in miras_jax.zoo.table()]
    assert all(line.rstrip().endswith(s) for line, s in zip(lines, sources, strict=True))


def start(folder: pathlib.Path, *arguments: str) -> subprocess.Popen:
    """Starts `python -m miras_jax` in another process."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "miras_jax", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {
            "PYTHONPATH": str(pathlib.Path(cli.__file__).parent.parent),
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        },
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Waits for the end; returns the exit code, stdout and stderr."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for_step(folder: pathlib.Path, step: int) -> None:
    """Returns as soon as the metrics of a step are on disk."""
    deadline = time.monotonic() + 120
    metrics = folder / "run/metrics.jsonl"
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def outcome(folder: pathlib.Path) -> tuple[list[dict], list[np.ndarray]]:
    """The metrics that do not depend on the clock, and the final weights."""
    from miras_jax.training.checkpoint import load_model

    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    records = [
        {name: value for name, value in json.loads(line).items() if "throughput" not in name}
        for line in lines
    ]
    return records, [np.asarray(x) for x in jax.tree.leaves(load_model(folder / "run")[0])]


def test_nobody_reads(folder):
    process = start(folder, "zoo")
    process.stdout.close()
    process.stdout = None  # for communicate()
    assert finish(process) == (141, None, "")


@pytest.mark.nightly
def test_killed_and_interrupted_equals_uninterrupted(folder, tmp_path_factory, capsys):
    process = start(folder, "train", "exp.py")
    wait_for_step(folder, 21)  # the checkpoint of step 20 is being written
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    process = start(folder, "train", "exp.py")
    wait_for_step(folder, 41)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130
    assert "continuing after step" in out
    assert "to go on: " in err
    assert "train exp.py" in err
    assert "Traceback" not in err
    code, out, err = finish(start(folder, "train", "exp.py"))
    assert (code, err) == (0, "")
    assert "continuing after step" in out

    whole = tmp_path_factory.mktemp("whole")
    for name in ("exp.py", "text.txt"):
        (whole / name).write_text((folder / name).read_text())
    code, out, err = finish(start(whole, "train", "exp.py"))
    assert (code, err) == (0, "")
    assert "bits per byte (order-1 entropy" in out
    assert "train exp.py --steps 120" in out
    assert out.index("generate run --prompt") < out.index("sample:")

    records, weights = outcome(folder)
    expected_records, expected_weights = outcome(whole)
    assert records == expected_records
    for x, y in zip(weights, expected_weights, strict=True):
        np.testing.assert_array_equal(x, y)

    assert miras("generate", "run", "--prompt", "what", "--max-tokens", "9") == 0
    assert capsys.readouterr().out.startswith("what")
