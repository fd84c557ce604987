"""`miras plan`: figures, exit codes, advice that holds when it is tried, and error sentences."""

import dataclasses
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from miras_jax import cli
from miras_jax.nn import ModelConfig
from miras_jax.nn.sizes import SIZES
from miras_jax.plan_cli import options_parser
from miras_jax.planning import compiling
from miras_jax.planning.advice import advise, proposals
from miras_jax.planning.bounds import bounds_of, step_flops
from miras_jax.planning.collectives import Collective
from miras_jax.planning.mesh import fit_mesh
from miras_jax.planning.plan import Options, make_plan
from miras_jax.planning.topology import parse
from miras_jax.training import DataConfig, MeshConfig, TrainConfig, UserError
from miras_jax.training.config import validate

EXPERIMENT = """
from miras_jax.nn import ModelConfig
from miras_jax.training import *

config = TrainConfig(
    model=ModelConfig(memory="linear_attention", dim={dim}, depth=2, heads=4, remat={remat}),
    data=DataConfig(source="not/here", window={window}, batch_size={rows}),
    steps=100,
)
"""
SMALL = {"dim": 32, "remat": True, "window": 64, "rows": 8}
LARGE = {"dim": 1024, "remat": False, "window": 8192, "rows": 64}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "small.py").write_text(EXPERIMENT.format(**SMALL))
    (tmp_path / "large.py").write_text(EXPERIMENT.format(**LARGE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(line: str) -> int:
    try:
        return cli.main(["plan", *shlex.split(line)])
    except SystemExit as end:
        return end.code


def test_emulated_devices(folder, capsys):
    """Compiled in a child, without the text; the parts of the memory add up."""
    options = "--mesh.fsdp 2 --mesh.tensor 2 --accumulation 2 --json plan.json"
    assert plan(f"small.py --topology cpu:4 {options}") == 0
    said = capsys.readouterr().out
    assert "41,168 parameters" in said
    assert "mesh data 1 x fsdp 2 x tensor 2; 8 rows of 64 tokens a step in 2 microbatch(es)" in said
    assert re.search(r"blocks.memory.value.kernel +2 x 32 x 32 +-, fsdp, tensor +0.00", said)
    assert "Compiled by the compiler for CPUs" in said
    assert "emulated devices have no peaks" in said
    figures = json.loads((folder / "plan.json").read_text())
    memory = figures["memory"]
    assert memory["fits"]
    assert sum(part["bytes"] for part in memory["parts"]) == memory["needed"]
    assert figures["parameters"]["count"] == 41_168
    assert figures["collectives"]["how"] == "compiler"
    # The seven weights of each of two layers are gathered in each of two microbatches, at least.
    (gathers,) = (
        row
        for row in figures["collectives"]["rows"]
        if (row["kind"], row["group"]) == ("all-gather", 2)
    )
    assert gathers["count"] >= 2 * 2 * 7
    assert figures["bounds"] is None
    assert not (folder / "runs").exists(), "a plan leaves nothing behind"


def test_a_run_that_does_not_fit_and_what_makes_it_fit(folder, capsys):
    assert plan("large.py --topology h100:2 --json plan.json") == 1
    said = capsys.readouterr().out
    assert "does not fit: " in said
    assert "Nothing was compiled" in said
    advice = json.loads((folder / "plan.json").read_text())["advice"]
    assert advice["options"].startswith("--model.remat")
    assert f"would fit (estimated: {advice['needed'] / 2**20:,.0f} of" in said
    tried = f"large.py --topology h100:2 {advice['options']}"
    assert plan(tried) == 0
    assert f"fits: {advice['needed'] / 2**20:,.0f} MiB" in capsys.readouterr().out


def test_a_mesh_is_proposed_and_said(folder, capsys):
    assert plan("small.py --topology h100:16") == 0
    changed = "--mesh.data 1 --mesh.fsdp 8 --mesh.tensor 2"
    assert f"given to miras train: {changed}" in capsys.readouterr().out, "16 rows there are not"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("small.py", "the following arguments are required: --topology"),
        ("nowhere.py --topology cpu:2", "no experiment at nowhere.py"),
        ("small.py --topology v5e:4", "v5e has 2 axes"),
        ("small.py --topology h100:8 --mfu 2", "--mfu must be above 0 and at most 1, got 2.0"),
        ("small.py --topology h100:8 --timeout 0", "--timeout must be positive"),
        ("small.py --topology h100:8 --steps many", "see miras plan small.py --help"),
        (
            "small.py --topology h100:8 --mesh.fsdp 2",
            "has 2 device(s), h100:8 has 8; try --mesh.data 1 --mesh.fsdp 8 --mesh.tensor 1",
        ),
        ("small.py --topology h100:3", "no mesh of the 3 devices of h100:3 divides the 8 rows"),
    ],
)
def test_bad_requests(folder, capsys, line, message):
    assert plan(line) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_without_the_tpus_compiler(folder, capsys, monkeypatch):
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    assert plan("small.py --topology v5e:2x2") == 2
    assert "pip install 'miras_jax[tpu]'" in capsys.readouterr().err


def test_a_compiler_that_crashes(monkeypatch):
    class Crash(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__(["sh", "-c", "echo bad layout >&2; kill -SEGV $$"], **options)

    monkeypatch.setattr(compiling.subprocess, "Popen", Crash)
    with pytest.raises(UserError, match="for cpu:1 ended with SIGSEGV: bad layout"):
        make_plan(small(), parse("cpu:1"), Options())


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (
            "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded",
            (20.5, 15.75),
        ),
        (
            "memory required for HLO temporaries (1.50T) exceeds available HBM (94.75G).",
            (1536, 94.75),
        ),
    ],
)
def test_a_program_that_is_too_large(error, size):
    assert compiling._too_large(error) == tuple(x * 2**30 for x in size)
    assert compiling._too_large("Mosaic failed to compile") is None


def small(**changes) -> TrainConfig:
    model = ModelConfig(memory="linear_attention", dim=32, depth=2, heads=4, remat=False)
    data = DataConfig(window=64, batch_size=8)
    return dataclasses.replace(TrainConfig(model=model, data=data), **changes)


def test_order_of_the_advice():
    config = small(mesh=MeshConfig(data=2, fsdp=2), accumulation=1)
    found = [proposal.options for proposal in proposals(config, parse("h100:4"))]
    spread = "--model.remat --mesh.data 1 --mesh.fsdp 4 --mesh.tensor 1"
    assert found[:4] == [
        "--model.remat",
        "--model.remat --accumulation 2",
        spread,
        f"{spread} --accumulation 2",
    ]
    larger = "--model.remat --mesh.data 2 --mesh.fsdp 4 --mesh.tensor 1"
    assert found[4] == f"--topology h100:8 {larger}"


@pytest.mark.parametrize("helps", ["accumulation", "nothing"])
def test_only_what_was_planned_is_advised(helps):
    config = small(mesh=MeshConfig(fsdp=2))
    options = Options(packed=False)
    plan = make_plan(config, parse("h100:2"), options)
    plan = dataclasses.replace(plan, estimate=1e12)
    asked = []

    def check(config, topology):
        asked.append((config, topology))
        fits = helps == "accumulation" and config.accumulation == 4
        return dataclasses.replace(
            plan, config=config, topology=topology, estimate=0.0 if fits else 1e12
        )

    advice = advise(plan, check)
    if helps == "nothing":
        assert advice.proposal is None
        assert len(advice.tried) == len(asked) == 8
    else:
        assert advice.proposal.options == "--model.remat --accumulation 4"
        assert (advice.proposal.config, advice.proposal.topology) == asked[-1]


def test_bounds():
    """Each resource binds where it is scarce."""
    config = small(mesh=MeshConfig(fsdp=8))
    plan = make_plan(config, parse("h100:8"), Options(packed=False))
    flops = step_flops(config)
    assert flops == 3 * 8 * 64 * config.model.flops_per_token(64)
    assert plan.bounds.compute == pytest.approx(flops / (8 * 989e12))
    remat = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=True))
    again = bounds_of(remat, plan.topology, plan.arrays, ())
    assert again.compute == pytest.approx(4 / 3 * plan.bounds.compute)
    assert again.network == 0
    sent = sum(row.sent for row in plan.collectives)
    assert plan.bounds.network == pytest.approx(sent / 450e9)
    assert plan.bounds.step == max(plan.bounds.compute, plan.bounds.memory, plan.bounds.network)
    # Beyond a host its eight network cards share what leaves it.
    row = Collective("all-gather", 16, 1, 16e9, 15e9)
    assert bounds_of(config, parse("h100:16"), plan.arrays, [row]).network == 15e9 / 8 / 50e9
    assert bounds_of(config, parse("7x:2x2x2"), plan.arrays, [row]).network == 15e9 / 300e9
    assert bounds_of(config, parse("cpu:8"), plan.arrays, [row]) is None


GUIDE = Path(__file__).resolve().parents[2] / "docs" / "plan.md"


@pytest.mark.parametrize("line", re.findall(r"^miras plan (.*)$", GUIDE.read_text(), re.MULTILINE))
def test_commands_of_the_guide(line):
    """Those that need a TPU's compiler: their options are right up to the compilation."""
    _, *words = shlex.split(line)
    own, overrides = options_parser("pretrain.py").parse_known_args(words)
    default = TrainConfig(model=SIZES["1300m"]("yaad"))
    config = cli.parse_config(default, overrides, "miras plan")
    config, note = fit_mesh(config, parse(own.topology), chosen=True)
    validate(config)
    assert not note
    assert GUIDE.read_text().count(f"{parse(own.topology).name}: ") == 1, "its table stands there"
