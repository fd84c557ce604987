"""The shape of the code: imports run one way, files are short, every module says what it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("miras_jax", "kernels_pallas")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted(
    path for folder in ("experiments", "tests") for path in (ROOT / folder).rglob("*.py")
)
MAX_LINES = 500

# What each part may import of the project, itself aside. The first name that matches a module
# wins, so the exception for `memorize` stands before the rule for `memory`.
MAY_IMPORT = {
    "miras_jax.memory.memorize": {"miras_jax.memory", "kernels_pallas"},
    "miras_jax.memory": set(),
    "kernels_pallas": {"miras_jax.memory"},
    "miras_jax.zoo": {"miras_jax.memory"},
    "miras_jax.data": set(),
    "miras_jax.tasks": {"miras_jax.data"},
    "miras_jax.nn": {"miras_jax.zoo", "miras_jax.memory"},
    "miras_jax.devices": set(),
    "miras_jax.training": {
        "miras_jax.devices",
        "miras_jax.nn",
        "miras_jax.data",
        "miras_jax.tasks",
        "miras_jax.zoo",
        "miras_jax.memory",
    },
    "miras_jax.evals": {
        "miras_jax.nn",
        "miras_jax.data",
        "miras_jax.tasks",
        "miras_jax.zoo",
        "miras_jax.memory",
    },
}
WITHOUT_FLAX = ("miras_jax.memory", "miras_jax.zoo", "kernels_pallas")


def inside(module: str, package: str) -> bool:
    """Whether `module` is `package` or lies under it."""
    return module == package or module.startswith(package + ".")


def imports(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Yield the dotted names that `source`, the text of `module`, imports at any depth.

    `from a import b` gives `a.b`, which lies under `a` whether `b` is a module or a value.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            base = base[: len(base) - node.level + is_package] if node.level else []
            base += [node.module] if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports of `module` that the design does not allow, one sentence each."""
    found = []
    rule = next((name for name in MAY_IMPORT if inside(module, name)), None)
    for name in imports(source, module, is_package):
        ours = any(inside(name, package) for package in PACKAGES)
        if rule and ours and not any(inside(name, ok) for ok in {rule, *MAY_IMPORT[rule]}):
            found.append(f"{module} imports {name}")
        if inside(name, "flax") and any(inside(module, package) for package in WITHOUT_FLAX):
            found.append(f"{module} imports {name}")
    return found


def module_name(path: Path) -> str:
    """The dotted name of a file of the project."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_run_one_way(path: Path) -> None:
    is_package = path.name == "__init__.py"
    assert violations(path.read_text("utf-8"), module_name(path), is_package) == []


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=relative)
def test_file_is_short_and_documented(path: Path) -> None:
    source = path.read_text("utf-8")
    assert source.count("\n") <= MAX_LINES
    assert not source.strip() or ast.get_docstring(ast.parse(source)), "has no module docstring"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("miras_jax.memory.bias", "import flax"),
        ("miras_jax.memory.bias", "from flax import nnx"),
        ("miras_jax.memory.chunked", "import kernels_pallas.api"),
        ("miras_jax.memory.bias", "from miras_jax import zoo"),
        ("miras_jax.memory.bias", "from .. import zoo"),
        ("miras_jax.memory.bias", "from ..zoo.yaad import memory"),
        ("miras_jax.memory.memorize", "from miras_jax.nn import layers"),
        ("miras_jax.zoo.yaad", "import flax.nnx as nnx"),
        ("miras_jax.zoo.yaad", "import miras_jax.nn"),
        ("miras_jax.data.sources", "def f():\n    from miras_jax.training import loop"),
        ("miras_jax.data.sources", "from miras_jax.nn import layers"),
        ("miras_jax.nn.layer", "from miras_jax.data import tokenizer"),
        ("miras_jax.nn.layer", "from miras_jax.training import loop"),
        ("miras_jax.training.loop", "import miras_jax.cli"),
        ("miras_jax.training.loop", "from miras_jax import evals"),
        ("kernels_pallas.tpu", "import miras_jax.zoo"),
        ("kernels_pallas.tpu", "from flax import nnx"),
    ],
)
def test_checker_finds_a_bad_import(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("miras_jax.memory.memorize", "from kernels_pallas import api"),
        ("miras_jax.memory.memorize", "from . import chunked"),
        ("miras_jax.memory.chunked", "from .bias import L2\nimport optax"),
        ("kernels_pallas.api", "from miras_jax.memory import chunked"),
        ("miras_jax.nn.layer", "from flax import nnx\nfrom miras_jax import zoo"),
        ("miras_jax.training.loop", "from miras_jax import data, nn"),
        ("miras_jax.cli", "from miras_jax import evals, training"),
        ("miras_jax.nn", "import flaxen"),
    ],
)
def test_checker_allows_the_design(module: str, source: str) -> None:
    assert violations(source, module) == []
