"""Hugging Face's `datasets` from this machine: saved data sets and files of JSON lines."""

from pathlib import Path

import pytest

from miras_jax.data import DataError, TokenSet, tokenize
from tests.data.corpus import TEXTS, tokens_of, write_json_lines

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def datasets(tmp_path_factory: pytest.TempPathFactory):
    """The library, offline, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        yield pytest.importorskip("datasets")


def test_saved_and_from_files(datasets, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": TEXTS, "id": [*range(len(TEXTS))]})
    rows.save_to_disk(str(tmp_path / "rows"))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "split"))
    write_json_lines(tmp_path / "a.jsonl")
    hashes = set()
    for i, source in enumerate(
        (
            f"hf:{tmp_path}/rows:train",
            f"hf:{tmp_path}/split:train",
            f"hf:json={tmp_path}/a.jsonl:train",
        )
    ):
        out = str(tmp_path / f"set{i}")
        manifest = tokenize([source], out, shard_bytes=900, workers=1)
        assert manifest["sources"][0]["path"] == source
        hashes.add(manifest["sources"][0]["sha256"])
        assert len(manifest["shards"]) > 3
        assert TokenSet.open(out)[:].tolist() == tokens_of(TEXTS).tolist()
        assert tokenize([source], out, shard_bytes=900, workers=1) == manifest
    assert len(hashes) == 1


def test_errors(datasets, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"body": TEXTS}).save_to_disk(str(tmp_path / "rows"))
    out = str(tmp_path / "set")
    with pytest.raises(DataError, match="has no column 'text' but body"):
        tokenize([f"hf:{tmp_path}/rows:train"], out, workers=1)
    with pytest.raises(DataError, match=r"hf:no/where:train cannot be loaded"):
        tokenize(["hf:no/where:train"], out, workers=1)
