"""Two processes train as one does, stop together, and end together when one of them is gone."""

import dataclasses
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest

from miras_jax.training import MeshConfig, train
from tests.training.job import (
    ROOT,
    ended,
    free_port,
    run,
    run_each,
    start,
    started,
    write_experiment,
)
from tests.training.toy import records, toy, write_text

SCRIPT = ROOT / "experiments" / "launch" / "workstation.sh"


def steps_on_disk(config) -> list[int]:
    names = [path.name for path in pathlib.Path(config.directory, "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def assert_same_run(found, expected) -> None:
    """The same records, of the same batches; figures to float32 rounding of other sums: another
    mesh reduces in another order, 6 steps on."""
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert one.get("data/index_crc32") == other.get("data/index_crc32")
        for name, value in one.items():
            if isinstance(value, float):
                np.testing.assert_allclose(value, other[name], rtol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """What one process writes, on one device."""
    config = toy(tmp_path_factory.mktemp("single"))
    train(config)
    return records(config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two processes that the launch script has started, and what they said."""
    config = toy(tmp_path_factory.mktemp("two"))
    experiment = write_experiment(pathlib.Path(config.directory).parent)
    variables = {"PROCESSES": "2", "PORT": str(free_port())}
    variables["MIRAS"] = f"{sys.executable} -m miras_jax"
    with started([start(["bash", str(SCRIPT), str(experiment)], variables)]) as (script,):
        return config, ended(script)


def test_two_processes_are_as_one(finished, single):
    config, end = finished
    assert end.code == 0, end
    assert_same_run(records(config), single)
    assert "2 of 2 cpu device(s)" in end.said
    assert end.said.count("step 6/6  loss") == 1  # process 0 speaks for both
    assert steps_on_disk(config) == [2, 4, 6]


def test_one_process_goes_on_with_the_run_of_two(finished, single, tmp_path):
    """Also on another mesh; its figures are those of the uninterrupted run."""
    config = dataclasses.replace(finished[0], directory=str(tmp_path / "run"))
    shutil.copytree(finished[0].directory, config.directory)
    for step in (4, 6):
        shutil.rmtree(pathlib.Path(config.directory, f"checkpoints/{step}"))
    train(dataclasses.replace(config, mesh=MeshConfig(data=2, tensor=2)))
    assert_same_run(records(config), single)


def test_sigterm_to_one_stops_both_at_the_same_step(tmp_path, single):
    config = toy(tmp_path)
    ends = run(tmp_path, hurt={1: "4 SIGTERM"})
    assert [end.code for end in ends] == [143, 143], ends
    assert "stopped and saved at step 5 of 6" in ends[0].said
    assert "stopped and saved" not in ends[1].said
    assert steps_on_disk(config) == [2, 4, 5]
    # On a mesh on which both processes hold every row of the batch.
    ends = run(tmp_path, "--mesh.fsdp", "1", "--mesh.tensor", "2")
    assert [end.code for end in ends] == [0, 0], ends
    assert "continuing after step 5" in ends[0].said
    assert_same_run(records(config), single)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_goes_on(tmp_path, single, victim):
    config = toy(tmp_path)
    ends = run(tmp_path, "--processes.lost-after", "5", hurt={victim: "6 SIGKILL"})
    other = ends[1 - victim]
    assert ends[victim].code == -9
    if victim:  # the coordinator lives, and says it
        assert other.code == 75, other
        assert (
            "miras: error: process 0 of 2: process 1 has given no sign of life for 5 s"
            in other.said
        )
    else:  # jax's runtime ends the process, unless the thread is faster
        assert other.code in (-6, 75), other
        assert "coordinator (process 0, localhost" in other.said
    assert "What was saved is whole; start all processes again" in other.said
    last = steps_on_disk(config)[-1]
    assert last in (2, 4)  # the one of step 4 may still have been being written
    if victim:
        ends = run(tmp_path)
        assert [end.code for end in ends] == [0, 0], ends
        assert f"continuing after step {last}" in ends[0].said
        assert_same_run(records(config), single)


@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_of_one_process_ends_both_with_its_words(tmp_path, victim):
    toy(tmp_path)
    ends = run(tmp_path, hurt={victim: "3 OSError"})
    assert [end.code for end in ends] == [4, 4], ends  # it came up in reading
    words = "step 3: the batch cannot be read from data.source"
    assert f"miras: error: process {victim} of 2: {words}" in ends[victim].said
    assert f"process {victim} failed: {words}" in ends[1 - victim].said
    assert all("OSError: the disk is gone" in end.said for end in ends)


REFUSED = """
import dataclasses, os, pathlib, sys
from miras_jax.training import MeshConfig, ProcessesConfig, UserError, agreement, train
from miras_jax.training.processes import join
from tests.training.toy import toy

shared, own = map(pathlib.Path, sys.argv[1:])
config = toy(shared, mesh=MeshConfig(fsdp=2))
source = dataclasses.replace(config.data, source="text.txt")
os.chdir(own)
agreement.VISIBLE = 1  # second: what is not shared does not become it
with join(ProcessesConfig()) as job:
    for changes in (
        {"data": dataclasses.replace(config.data, seed=job.index)},
        {"data": source},
        {"data": dataclasses.replace(config.data, source="other.txt")},
        {"mesh": MeshConfig()},
        {"directory": "run"},
    ):
        try:
            train(dataclasses.replace(config, **changes))
        except UserError as error:
            print("refused:", error, flush=True)
"""


def test_what_differs_is_refused_by_both(tmp_path):
    """One after another in one job: an agreed refusal leaves the processes able to go on."""
    config = toy(tmp_path)
    folders = [tmp_path / str(i) for i in range(2)]
    for folder in folders:
        folder.mkdir()
        write_text(folder / "text.txt")
    with (folders[1] / "text.txt").open("a") as file:
        file.write("!")
    write_text(folders[0] / "other.txt")
    ends = run_each([["-c", REFUSED, str(tmp_path), str(folder)] for folder in folders])
    expected = [
        r"the processes differ in their configuration: data.seed is 1 in process 1 and 0 in",
        r"differ in the text of 'text.txt': sha256 is '\w+' in process 1 and '\w+' in process 0",
        r"data.source 'other.txt': .*no",
        r"= 1 must be all 2 devices of the 2 processes",
        r"directory '.*/1/run' is not the folder that process 0 has there",
    ]
    for i, end in enumerate(ends):
        assert end.code == 0, end
        refused = [line for line in end.said.splitlines() if line.startswith("refused:")]
        assert len(refused) == len(expected), end
        for line, pattern in zip(refused, expected, strict=True):
            assert re.search(pattern, line), line
        assert ("process 1 of 2: data.source" in end.said) == (i == 0)
    assert not pathlib.Path(config.directory).exists()


def test_nobody_answers():
    port = free_port()
    code = (
        "from miras_jax.training import ProcessesConfig as C; from miras_jax.training.processes"
        f" import join; join(C('localhost:{port}', 2, 1, join_timeout=2)).__enter__()"
    )
    with started([start([sys.executable, "-c", code], {})]) as (process,):
        end = ended(process)
    assert end.code == 2
    assert f"nobody answers at localhost:{port}: see that process 0 runs there" in end.said
