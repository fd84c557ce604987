"""Plans with the TPU's own compiler; run by `make prove-tpu`, without a TPU."""

import json
import shlex

import pytest

from kernels_pallas import aot
from miras_jax import cli
from tests.kernels import proofs

if reason := aot.available("tpu"):
    pytest.skip(reason, allow_module_level=True)

EXPERIMENT = """
from miras_jax.nn.sizes import SIZES
from miras_jax.training import *

config = TrainConfig(
    model=SIZES["{size}"]("yaad"),
    data=DataConfig(source="not/here", window={window}, batch_size={rows}),
    steps=1000,
)
"""
HALF_A_MILLION = {"170m": (2048, 256), "1300m": (4096, 128)}
"""Window and rows of half a million tokens a step."""


def plan(folder, line: str) -> tuple[int, dict]:
    """The exit code and the figures."""
    code = cli.main(["plan", *shlex.split(f"{line} --json {folder / 'plan.json'}")])
    return code, json.loads((folder / "plan.json").read_text())


def experiment(folder, size: str, window: int, rows: int):
    path = folder / f"{size}.py"
    path.write_text(EXPERIMENT.format(size=size, window=window, rows=rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:16x16", "v6e:16x16"])
@pytest.mark.parametrize("size", HALF_A_MILLION)
def test_paper_sizes_fit(tmp_path, size, topology):
    window, rows = HALF_A_MILLION[size]
    path = experiment(tmp_path, size, window, rows)
    # The mesh is left to the plan: 128 rows do for 256 chips where two share the heads of each.
    code, figures = plan(tmp_path, f"{path} --topology {topology}")
    assert code == 0
    assert figures["mesh"] == {"data": 1, "fsdp": rows, "sequence": 1, "tensor": 256 // rows}
    memory = figures["memory"]
    assert memory["needed"] < memory["available"] < memory["of_chip"]
    named = {"170m": 1.7e8, "1300m": 1.3e9}[size]
    assert figures["parameters"]["count"] == pytest.approx(named, rel=0.03)
    # Heads of 128 channels have kernels: forward, again for the backward pass, backward.
    assert figures["compilation"]["kernels"] == {"170m": 0, "1300m": 3}[size]
    assert figures["compilation"]["unknown_loops"] == 0
    layers = {"170m": 12, "1300m": 24}[size]
    (gathers,) = (
        row
        for row in figures["collectives"]["rows"]
        if (row["kind"], row["group"]) == ("all-gather", rows)
    )
    assert gathers["count"] >= (1 if size == "170m" else 7 * layers)
    assert figures["bounds"]["step"] > 0


@pytest.mark.slow
@pytest.mark.skipif(proofs.EVERY_TIME, reason="compiles for many minutes: MIRAS_PROVE_ALL=1")
def test_what_does_not_fit_is_refused_and_the_proposal_fits(tmp_path):
    path = experiment(tmp_path, "170m", 2048, 256)
    line = f"{path} --topology v5e:2x2 --mesh.fsdp 4"
    code, figures = plan(tmp_path, line)
    assert code == 1
    memory = figures["memory"]
    assert memory["needed"] > memory["available"] == 15.75 * 2**30
    advice = figures["advice"]
    assert advice["options"].startswith("--accumulation ")
    code, tried = plan(tmp_path, f"{line} {advice['options']}")
    assert code == 0
    assert tried["memory"]["needed"] == advice["needed"]


@pytest.mark.parametrize(
    "topology", ["v4:2x2x1", "v5e:1x1", "v5p:2x2x1", "v6e:2x2", "7x:2x2x1", "v5e:2x4"]
)
def test_every_chip(tmp_path, topology):
    """The compiler knows it, by as many devices as the plan counts."""
    path = tmp_path / "tiny.py"
    text = EXPERIMENT.format(size="170m", window=128, rows=8)
    tiny = 'ModelConfig(memory="linear_attention", dim=64, depth=1, heads=1)'
    text = text.replace('SIZES["170m"]("yaad")', tiny).replace("nn.sizes", "nn")
    path.write_text(text.replace("import SIZES", "import ModelConfig"))
    code, figures = plan(tmp_path, f"{path} --topology {topology} --model.heads 2 --model.dim 128")
    assert code == 0
    assert figures["compilation"]["kernels"] > 0
    assert figures["bounds"]["step"] > 0
