"""The whole way of a model in small: two processes that are killed and go on elsewhere, then
fine-tuning and export, by the commands that a user would type."""

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "experiments"))
import end_to_end


@pytest.mark.slow
def test_from_text_to_a_fine_tuned_model(tmp_path, monkeypatch):
    # The commands choose their devices themselves.
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    # Bytes, the other vocabulary, are what most other tests of training read.
    settings = end_to_end.Settings(
        work=tmp_path / "work",
        vocabularies=("tokenizer",),
        dim=16,
        window=32,
        steps=12,
        tune_steps=6,
        out=tmp_path / "figures.md",
    )
    (run,) = end_to_end.main(settings)
    assert run["checked"] == settings.steps  # every batch, each once
    assert "both killed" in run["happened"][0]
    assert "SIGTERM to one" in run["happened"][1]
    for way in ("full", "lora"):
        before, after = run[way]["new"]
        assert after < before
        assert len(run[way]["old"]) == 2
    assert run["sample"].startswith("The ")
    page = settings.out.read_text()
    assert page.count("| tokenizer |") == 2
    with pytest.raises(SystemExit, match="is not empty"):
        end_to_end.main(settings)
