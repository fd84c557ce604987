"""Token sets: what is in them, and the same bytes however the making of them was stopped."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from miras_jax.data import DataError, TokenSet, tokenize
from miras_jax.data.storage import Folder
from tests.data.corpus import TEXTS, digests, tokens_of, write_json_lines

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_json_lines(tmp_path / "a.jsonl")


def make(source: Path, out: Path, **options) -> dict:
    options = {"shard_bytes": 700, "workers": 1, **options}
    return tokenize([str(source)], str(out), **options)


def test_manifest_says_what_is_there(source: Path, tmp_path: Path) -> None:
    with source.open("a") as file:
        file.write('{"text": ""}\n{"text": 3}\n')
    manifest = make(source, tmp_path / "set")
    assert manifest == json.loads((tmp_path / "set/manifest.json").read_text())
    text = sum(len(text.encode()) for text in TEXTS)
    counts = {name: manifest[name] for name in ("documents", "tokens", "bytes", "empty", "corrupt")}
    assert counts == {
        "documents": len(TEXTS),
        "tokens": text + len(TEXTS),
        "bytes": text,
        "empty": 1,
        "corrupt": 1,
    }
    assert manifest["problems"] == [
        [str(source), "line", len(TEXTS) + 2, "no text in 'text' but 3"]
    ]
    found = digests(tmp_path / "set")
    for shard in manifest["shards"]:
        assert found.pop(f"{shard['name']}.bin") == shard["sha256"]
        assert found.pop(f"{shard['name']}.npy") == shard["index_sha256"]
    assert list(found) == ["manifest.json"]
    assert len(manifest["shards"]) > 5
    [entry] = manifest["sources"]
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    assert entry == {"path": str(source), "size": source.stat().st_size, "sha256": sha256}
    raw = np.concatenate(
        [np.fromfile(path, "<u2") for path in sorted((tmp_path / "set").glob("*.bin"))]
    )
    np.testing.assert_array_equal(raw, tokens_of(TEXTS))


class Killed(BaseException):
    """In place of kill -9: nothing that the code does about it may be needed."""


def test_killed_before_any_write_or_removal_it_ends_the_same(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th rename or removal never happens, for every n; then the same command again."""
    write_json_lines(source, TEXTS[:20])
    make(source, tmp_path / "whole")
    expected = digests(tmp_path / "whole")
    acts = {"create": Folder.create, "remove": Folder.remove}

    def make_until(stop: int) -> bool:
        """Makes the set up to its n-th act, and says whether that ended it."""
        count = itertools.count()

        def dying(act):
            def wrapped(*arguments):
                if next(count) == stop:
                    raise Killed
                return act(*arguments)

            return wrapped

        with monkeypatch.context() as patch:
            for name, act in acts.items():
                patch.setattr(Folder, name, dying(act))
            try:
                make(source, tmp_path / f"set{stop}")
            except Killed:
                return True
        return False

    for stop in itertools.count():
        killed = make_until(stop)
        make(source, tmp_path / f"set{stop}")
        assert digests(tmp_path / f"set{stop}") == expected
        if not killed:
            break
    assert stop > 4 * len([*(tmp_path / "whole").glob("*.bin")]) > 4


PROGRAM = """
import sys
from miras_jax.data import tokenize

if __name__ == "__main__":
    source, out, shard_bytes, workers = sys.argv[1:]
    tokenize([source], out, shard_bytes=int(shard_bytes), workers=int(workers))
"""


def test_kill_9_of_parallel_processes(tmp_path: Path) -> None:
    """The processes that write end with the one that is killed, and what is begun is finished."""
    source = write_json_lines(tmp_path / "a.jsonl", TEXTS * 40)
    make(source, tmp_path / "whole", shard_bytes=2000)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    out = tmp_path / "set"
    command = [sys.executable, str(program), str(source), str(out), "2000", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (done := len([*out.glob("[0-9]*.json")])) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert not (out / "manifest.json").exists(), "it was over before it could be killed"
        while alive(process.pid):  # of its session: the processes that write
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert done > 0
    with pytest.raises(DataError, match="is not finished: the same miras tokenize goes on with it"):
        TokenSet.open(str(out))
    make(source, out, shard_bytes=2000)
    assert digests(out) == digests(tmp_path / "whole")


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_processes_give_what_one_gives(source: Path, tmp_path: Path) -> None:
    make(source, tmp_path / "one")
    make(source, tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_strict_ends_at_the_first_corrupt_line(source: Path, tmp_path: Path) -> None:
    lines = source.read_text().splitlines()
    lines[40] = "{"
    source.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"a.jsonl, line 41: no JSON: .*\(--strict\)"):
        make(source, tmp_path / "set", strict=True)
    assert make(source, tmp_path / "set")["corrupt"] == 1
    with pytest.raises(DataError, match="line 41: no JSON"):
        make(source, tmp_path / "set", strict=True)


def test_a_finished_set_is_checked_and_left_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    made = make(source, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    os.utime(source)  # written again with the same content
    assert make(source, out) == made
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    text = source.read_text()
    source.write_text(text.replace("word", "w0rd"))
    with pytest.raises(DataError, match=r"a.jsonl was added, removed or changed since"):
        make(source, out)
    source.write_text(text)
    for options, message in (
        ({"field": "body"}, "was made with options field 'text', asked is 'body'"),
        ({"shard_bytes": 5}, "options shard_bytes 700, asked is 5"),
    ):
        with pytest.raises(DataError, match=message):
            make(source, out, **options)
    data = bytearray((out / "00001.bin").read_bytes())
    data[0] ^= 1
    (out / "00001.bin").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"damaged: 00001.bin is not what the manifest says"):
        make(source, out)
    (out / "00001.bin").write_bytes(bytes(data[:-2]))
    with pytest.raises(DataError, match=r"00001.bin is \d+ bytes long, not \d+"):
        TokenSet.open(str(out))
    (out / "00001.bin").unlink()
    with pytest.raises(DataError, match=r"00001.bin is missing"):
        TokenSet.open(str(out))


def test_a_source_that_changes_half_way_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    lines = source.read_text()
    source.write_text(lines + "{\n")
    with pytest.raises(DataError, match="strict"):
        make(source, out, strict=True)
    source.write_text(lines)
    with pytest.raises(DataError, match=r"a.jsonl was added, removed or changed since .* was made"):
        make(source, out)


def test_other_files_are_not_touched(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds a.jsonl and is no token set: give an empty folder"):
        make(source, tmp_path)
    with Folder(str(tmp_path)).locked(), pytest.raises(DataError, match="another process"):
        make(source, tmp_path)
    make(source, tmp_path / "set")
    (tmp_path / "set/notes.md").write_text("mine")
    make(source, tmp_path / "set")
    assert (tmp_path / "set/notes.md").exists()


def test_sources_by_folder_pattern_and_twice(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / ".git").mkdir(parents=True)
    for name in ("b.txt", "a.md", "c.log", ".git/x.txt"):
        (folder / name).write_text(name)
    out = str(tmp_path / "set")
    found = tokenize([str(folder), str(folder / "*.log"), str(folder / "a.md")], out, workers=1)
    assert [os.path.basename(entry["path"]) for entry in found["sources"]] == [
        "a.md",
        "b.txt",
        "c.log",
    ]
    inside = str(folder / "set")  # its own files are no sources
    for _ in range(2):
        assert tokenize([str(folder)], inside, workers=1)["documents"] == 2
    whole = TokenSet.open(out)
    assert whole.vocabulary().tokenizer.decode(whole[:]) == "a.mdb.txtc.log"


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (["nowhere"], {}, "nowhere is no file or folder with files"),
        (["logs"], {}, "logs holds no file with a name of text.*such as logs/"),
        (["empty.txt"], {}, "there is no text in empty.txt"),
        (["a.txt"], {"workers": 0}, "workers must be at least 1, got 0"),
        (["a.txt"], {"format_": "csv"}, "format 'csv' is not one of auto, text"),
        (["a.txt"], {"records": "csv"}, "records 'csv' is not one of example"),
        (["a.txt"], {"tokenizer": "b.json"}, "no tokenizer at b.json"),
        (["hf:name"], {}, "hf:name must be hf:NAME:SPLIT"),
        (["nope://a"], {}, "nope://a: "),
    ],
)
def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources, options, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/a.log").write_text("x")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=message) as caught:
        tokenize(sources, "set", **{"workers": 1, **options})
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_sources_and_sets_behind_urls(source: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.pipe("/texts/a.jsonl", source.read_bytes())
    local = make(source, tmp_path / "set")
    for name in ("memory://texts/a.jsonl", "memory://texts", "memory://texts/*.jsonl"):
        out = "memory://set" + name.rpartition("/")[2].replace("*", "x")
        made = tokenize([name], out, shard_bytes=700, workers=1)
        assert made["shards"] == local["shards"]
        assert made["sources"][0]["sha256"] == local["sources"][0]["sha256"]
        assert tokenize([name], out, shard_bytes=700, workers=1) == made  # and is found again
        remote, here = TokenSet.open(out), TokenSet.open(str(tmp_path / "set"))
        remote.verify()
        np.testing.assert_array_equal(remote[100:3000], here[100:3000])
        np.testing.assert_array_equal(remote.segment_ids(9, 999), here.segment_ids(9, 999))
    with pytest.raises(DataError, match="is in the memory of this process alone"):
        tokenize(["memory://texts"], "memory://other", shard_bytes=700, workers=2)
    system.rm("/", recursive=True)
