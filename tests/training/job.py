"""A training run of several processes, as a launcher starts it: what its tests share."""

import contextlib
import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

import jax

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The toy run over two devices. A process that is told to hurts itself when it reads the batch of a
# step, so that tests depend on no clock.
EXPERIMENT = """
import os, pathlib, signal

from miras_jax.training import MeshConfig, ProcessesConfig, loop
from tests.training.toy import toy

config = toy(
    pathlib.Path({folder!r}),
    mesh=MeshConfig(fsdp=2),
    processes=ProcessesConfig(join_timeout=60, lost_after=60),
)
if "HURT" in os.environ:
    step, name = os.environ["HURT"].split()
    original = loop.train_iterator

    class Hurt:
        def __init__(self, *args, **options):
            self.inner, self.end = original(*args, **options), int(step) * options["batch_size"]

        def __next__(self):
            batch = next(self.inner)
            if self.inner.get_state()["global_next_index"] == self.end:
                if name == "OSError":
                    raise OSError("the disk is gone")
                os.kill(os.getpid(), getattr(signal, name))
            return batch

        def __getattr__(self, name):
            return getattr(self.inner, name)

    loop.train_iterator = Hurt
"""


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a process left: its exit code, and all that it said."""

    code: int
    said: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """Starts a command, whose jax has one CPU device."""
    cache = jax.config.jax_compilation_cache_dir
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    return subprocess.Popen(
        command,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": flags,
            # Beside that of the tests, whose 8 emulated devices make other programs than one.
            "JAX_COMPILATION_CACHE_DIR": f"{cache}/job",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextlib.contextmanager
def started(processes: list[subprocess.Popen]) -> Iterator[list[subprocess.Popen]]:
    """Kills what is left of the processes at the end."""
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ended(process: subprocess.Popen, seconds: float = 120) -> Ended:
    """Waits for the end of a process."""
    said, _ = process.communicate(timeout=seconds)
    return Ended(process.returncode, said)


def run_each(
    arguments: Sequence[list[str]], environments: Sequence[dict[str, str]] = ()
) -> list[Ended]:
    """Runs `python ARGUMENTS` for each process of a job to the end; environments come on top."""
    port, processes = free_port(), []
    for i, own in enumerate(arguments):
        environment = {
            "MIRAS_COORDINATOR": f"localhost:{port}",
            "MIRAS_PROCESS_COUNT": str(len(arguments)),
            "MIRAS_PROCESS_INDEX": str(i),
        }
        processes.append(
            start([sys.executable, *own], environment | (environments[i] if environments else {}))
        )
    with started(processes):
        return [ended(process) for process in processes]


def write_experiment(folder: pathlib.Path) -> pathlib.Path:
    """Writes the toy run in `folder` as an experiment."""
    path = folder / "experiment.py"
    path.write_text(EXPERIMENT.format(folder=str(folder)))
    return path


def run(folder: pathlib.Path, *options: str, hurt: dict[int, str] | None = None) -> list[Ended]:
    """Runs the toy run in `folder` with two processes of one device each, to their end.

    Args:
      folder: has the text and the run.
      options: of `miras train`.
      hurt: by process what befalls it as "STEP SIGNAL" or "STEP OSError".
    """
    arguments = ["-m", "miras_jax", "train", str(write_experiment(folder)), *options]
    hurts = [{"HURT": hurt[i]} if hurt and i in hurt else {} for i in range(2)]
    return run_each([arguments] * 2, hurts)
