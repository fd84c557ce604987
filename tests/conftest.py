"""Test set-up: eight emulated CPU devices, cheap compilation, and shared fixtures."""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

# Read once, when jax is first imported. Tests compile far more than they run: leaving out LLVM's
# optimisation cut compilation by a third, at four times the run time of a few milliseconds, and
# leaving out the fusion emitters from 3.0 s to 1.2 s on a deep memory's gradients (two cores).
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # The flag went away in 0.11; an unknown flag ends the process.
        "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else "",
    ]
).strip()

ROOT = Path(__file__).resolve().parent.parent

# Every compiled program holds some memory maps; Linux allows a process 65,530, and XLA ends it
# with a segmentation fault where it gets no more.
MAPS = Path("/proc/self/maps")
ENOUGH_MAPS = 25_000
_finished = 0


def pytest_collection_modifyitems(config, items):
    """Leaves out what has a target of its own, unless it is asked for: also beside another -m."""
    for marker in ("nightly", "docs"):
        if marker not in (config.option.markexpr or ""):
            left = [item for item in items if item.get_closest_marker(marker)]
            items[:] = [item for item in items if not item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=left)


def pytest_runtest_teardown():
    """Forgets the compiled programs when they have become many, looking at every tenth test."""
    global _finished
    _finished += 1
    if _finished % 10 == 0 and MAPS.exists():
        with MAPS.open("rb") as lines:
            many = sum(1 for _ in lines) > ENOUGH_MAPS
        if many:
            import jax

            jax.clear_caches()
            gc.collect()


@pytest.fixture
def x64() -> Iterator[None]:
    """Run the test with 64-bit floats and integers."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `../shared` of reference data beside the project; skips where it is missing."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the reference data in {folder}")
    return folder
