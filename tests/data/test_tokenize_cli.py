"""`miras tokenize`: what it prints, its exit codes, and bars and lines."""

import io
from pathlib import Path

import pytest

from miras_jax import cli
from miras_jax.data import progress
from tests.data.corpus import TEXTS, write_json_lines


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_json_lines(tmp_path / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def miras(*arguments: str) -> int:
    try:
        return cli.main(list(arguments))
    except SystemExit as end:
        return end.code


def test_says_what_it_made_and_how_to_train_on_it(folder: Path, capsys) -> None:
    with (folder / "a.jsonl").open("a") as file:
        file.write("{\n" * 25)
    for _ in range(2):
        assert miras("tokenize", "a.jsonl", "--out", "my set", "--workers", "1") == 0
        said = capsys.readouterr()
        size = sum(len(text.encode()) for text in TEXTS)
        assert (
            f"my set: 60 documents, {size + 60:,} tokens, {size:,} bytes in 1 shard(s);"
            " 25 corrupt, see manifest.json"
        ) in said.out
        assert "train on it: miras train EXPERIMENT.py --data.source 'my set'" in said.out
        if not _:
            assert said.err.count("corrupt, left out: a.jsonl, line ") == 20
            assert "line 61: no JSON: " in said.err
            assert "more of them" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("tokenize a.jsonl", "the following arguments are required: --out"),
        ("tokenize --out s", "the following arguments are required: SOURCE"),
        ("tokenize a.jsonl --out s --format csv", "argument --format: invalid choice: 'csv'"),
        ("tokenize nowhere --out s", "nowhere is no file or folder"),
        ("tokenize a.jsonl --out s --workers 0", "workers must be at least 1, got 0"),
        ("tokenize a.jsonl --out .", "holds a.jsonl and is no token set"),
        ("tokenize a.jsonl --out s --field body --strict", "line 1: no text in 'body' (--strict)"),
        ("tokenize a.jsonl --out a.jsonl", "File exists: 'a.jsonl'"),
        ("tokenize a.parquet --out s", "a.parquet is no Parquet file"),
    ],
)
def test_a_bad_request_gets_one_line_and_code_2(folder, capsys, arguments, message) -> None:
    (folder / "a.parquet").write_text("no")
    assert miras(*arguments.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("miras: error: ")
    assert message in said
    assert said.count("\n") == 1


def test_a_missing_library_is_one_line(folder, capsys, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    (folder / "t.json").write_text("{}")
    assert miras("tokenize", "a.jsonl", "--out", "s", "--tokenizer", "t.json") == 2
    assert "library tokenizers: pip install 'miras_jax[data]'" in capsys.readouterr().err


def test_lines_now_and_then(monkeypatch, capsys) -> None:
    clock = iter([0.0, 0.0, 4.0, 14.0, 15.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    watcher = progress.TokenizeProgress()
    watcher.begin(total=1000, done=100)
    for size in (200, 300, 400):
        watcher.advance(size, {"tokens": 70, "problems": []})
    assert capsys.readouterr().out.splitlines() == [
        "going on after 100 of 1,000 bytes",
        "600 of 1,000 bytes, 10 tokens/s",
    ]


def test_a_bar_on_a_terminal(monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", terminal)
    with progress.TokenizeProgress() as watcher:
        watcher.begin(total=1000, done=0)
        problem = ["a.jsonl", "line", 7, "no JSON"]
        watcher.advance(1000, {"tokens": 70, "problems": [problem]})
    assert "tokens/s" in terminal.getvalue()
    assert "corrupt, left out: a.jsonl, line 7: no JSON" in terminal.getvalue()
