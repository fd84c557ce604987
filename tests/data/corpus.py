"""Documents to write into files, and sets made of them: what the tests of this folder share."""

import hashlib
import json
from pathlib import Path

import numpy as np

TEXTS = [f"document {i}: " + "é word 語 " * (i % 7) + "." * (i * 13 % 29) for i in range(60)]


def write_json_lines(path: Path, texts: list[str] = TEXTS) -> Path:
    """One object a line, some with a field more."""
    lines = [json.dumps({"text": text, "id": i}) for i, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def digests(folder: Path) -> dict[str, str]:
    """Name and sha256 of every file in a folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def tokens_of(texts: list[str]) -> np.ndarray:
    """The bytes of the texts, a separator before each."""
    return np.array([id_ for text in texts for id_ in (256, *text.encode())], np.uint16)
