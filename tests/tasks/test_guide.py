"""docs/tasks.md shows what its code prints, and names every task."""

import re
from pathlib import Path

from miras_jax import tasks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"


def test_comments_are_what_is_printed(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    rows = [code for code in blocks if "LanguageModel" not in code]  # that one is test_docs's
    assert len(rows) >= 5
    for code in rows:
        exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})
        printed = " ".join(capsys.readouterr().out.split())
        comments = " ".join(re.findall(r"^# (.*)$", code, re.MULTILINE))
        for part in comments.split(" ... "):  # what is left out
            assert part in printed
        if " ... " not in comments:
            assert comments == printed


def test_every_task_is_named():
    assert [name for name in tasks.names() if f"`{name}`" not in PAGE.read_text()] == []
