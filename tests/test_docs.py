"""Every snippet and every command of the README and the guides runs.

Python blocks run as they stand. Of the commands, `miras` runs as it stands in a folder of its own,
in the order of the page; `make` is checked to have the target (running it is CI's work). The
commands take minutes: `make docs` runs them, and CI does after the tests.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from miras_jax import zoo

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[str]:
    lines = "\n".join(blocks(page, "console")).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


SNIPPETS = [
    pytest.param(code, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, code in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_python_snippets_run(code, monkeypatch):
    monkeypatch.setattr(zoo, "ROWS", dict(zoo.ROWS))  # a snippet may register a model
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})


@pytest.mark.docs
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda page: page.stem)
def test_commands_run(page, tmp_path):
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    for command in commands(page):
        program, *arguments = shlex.split(command)
        if program == "make":
            done = run(["make", "-n", "-C", str(ROOT), *arguments], tmp_path)
        elif program == "miras":
            done = run([sys.executable, "-m", "miras_jax", *arguments], tmp_path)
        else:
            done = run(["bash", "-n", "-c", command], tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.docs
@pytest.mark.parametrize(("control", "low", "high"), [("none", 0.95, 1.0), ("frozen", 0.0, 0.25)])
def test_the_new_model_reaches_its_result(control, low, high, tmp_path):
    """docs/new_model.md: with its memory it recalls, without it does not even guess among the four
    values of the row, which would be right in 0.25."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    words = ["train", f"experiments/new_model.py:control={control}"]
    done = run([sys.executable, "-m", "miras_jax", *words], tmp_path, XLA_FLAGS="")  # optimised
    assert done.returncode == 0, done.stderr
    [accuracy] = re.findall(r"test examples after step 300: accuracy (\S+)", done.stdout)
    assert low <= float(accuracy) <= high


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#\"]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_lists_the_zoo():
    """The table of the README is the zoo's, row by row."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    expected = [
        (row.name, " | ".join((row.architecture, row.bias, row.retention, row.algorithm)))
        for row in zoo.table()
    ]
    assert rows == expected


def test_alignment_is_what_the_code_says():
    """Every equation listed has its code and its tests, and the page was written since they
    changed."""
    script = str(ROOT / "docs" / "alignment.py")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
