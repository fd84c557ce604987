"""Measures what the training loop costs beside the compiled step, and writes the figures down.

    python experiments/bench_loop.py [--steps 12] [--rounds 8] [--out docs/results/loop.md]

It trains the quick start, without evaluations, diagnostics and checkpoints, which are meant to take
time. The loop reads the data, moves it to the devices, runs the step and writes a record every 10
steps. Every `steps` steps it is held up, and the bare compiled step runs as often on a batch that
lies on the devices. So both are timed in turn, in one process, in whatever state the machine is.

The loop is timed between two calls of the reader with the same number of steps in flight. Compared
are the seconds of a step in each round, by the median over the rounds of their ratio: by the clock
on the wall, which other work on the machine disturbs, by the processor time of the whole process,
which it disturbs far less, and by that of the main thread, which is what the host itself does.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import io
import os
import runpy
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from miras_jax.nn.partition import BATCH
from miras_jax.training import CheckpointConfig, EvaluationConfig, LogConfig, TrainConfig, loop
from miras_jax.training.optimizer import learning_rate, make_optimizer
from miras_jax.training.state import abstract_state, init_state, make_mesh, shardings_of
from miras_jax.training.step import train_step

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 3  # steps of each kind before the clock runs: those in flight end meanwhile


CLOCKS = {
    "wall": time.perf_counter,
    "process": time.process_time,
    "main thread": time.thread_time,
}


def now() -> np.ndarray:
    return np.array([clock() for clock in CLOCKS.values()])


class BareStep:
    """The compiled step of a run, on one batch that stays on the devices."""

    def __init__(self, config: TrainConfig):
        mesh = make_mesh(config.mesh)
        abstract = abstract_state(config, mesh)
        shardings = shardings_of(abstract)
        with jax.set_mesh(mesh):
            self._state = init_state(config, abstract)
        self._advance = jax.jit(
            functools.partial(
                train_step,
                optimizer=make_optimizer(config),
                schedule=learning_rate(config),
                accumulation=config.accumulation,
                shardings=shardings.params,
            ),
            donate_argnums=0,
            out_shardings=(shardings, None),
        )
        shape = (config.data.batch_size, config.data.window + 1)
        tokens = np.random.default_rng(0).integers(256, size=shape, dtype=np.int32)
        self._batch = {"tokens": jax.device_put(tokens, NamedSharding(mesh, PartitionSpec(BATCH)))}

    def seconds(self, steps: int) -> np.ndarray:
        """Seconds of a step by the `CLOCKS`, over `steps` of them, after some that do not count."""
        self._run(WARM_UP)
        began = now()
        self._run(steps)
        return (now() - began) / steps

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            self._state, _ = self._advance(self._state, self._batch)
        jax.block_until_ready(self._state)


def measure(config: TrainConfig, steps: int, rounds: int) -> np.ndarray:
    """Seconds of a step, [rounds, 2, clocks]: of the bare one and in the loop."""
    bare, found, clock = BareStep(config), [], {}
    length = WARM_UP + steps

    class HeldUp(loop.Reader):
        def read(self, step: int):
            done = (step - 1) % length
            if done == 0 and clock:
                found.append((clock["bare"], (now() - clock["began"]) / steps))
            if done == 0 and len(found) < rounds:
                clock["bare"] = bare.seconds(steps)
            if done == WARM_UP:
                clock["began"] = now()
            return super().read(step)

    original, loop.Reader = loop.Reader, HeldUp
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            loop.train(dataclasses.replace(config, steps=rounds * length + 1))
    finally:
        loop.Reader = original
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help="steps of each kind in a round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    config = runpy.run_path(str(ROOT / "experiments" / "quickstart.py"))["config"]
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(
            config,
            evaluation=EvaluationConfig(every=10**9, batches=1, sample_tokens=0),
            checkpoint=CheckpointConfig(every=10**9),
            log=LogConfig(),
            directory=folder,
        )
        found = measure(config, arguments.steps, arguments.rounds)
    text = report(found, arguments)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def report(found: np.ndarray, arguments) -> str:
    """The figures as a page."""
    rows = ""
    for clock, (bare, looped) in zip(CLOCKS, 1000 * found.transpose(2, 1, 0), strict=True):
        # Of the main thread, too, what it does more is compared with the whole step.
        more = 100 * (looped - bare) / (bare if clock != "main thread" else 1000 * found[:, 0, 1])
        low, middle, high = np.percentile(more, (25, 50, 75))
        rows += (
            f"| {clock} | {np.median(bare):.1f} | {np.median(looped):.1f}"
            f" | {middle:+.1f} % | {low:+.1f} to {high:+.1f} % |\n"
        )
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return (
        "# What the loop costs\n\n"
        f"`python experiments/bench_loop.py --steps {arguments.steps}"
        f" --rounds {arguments.rounds} --out docs/results/loop.md`,"
        f" {datetime.date.today()}: the quick start on {os.cpu_count()} cores"
        f" ({jax.default_backend()}, jax {jax.__version__}; load average of the machine at the"
        f" end {load}). The command's docstring says how it is measured. The wall is told in"
        " milliseconds that passed, the others in milliseconds of processor time; the main thread's"
        " surplus in percent of the whole process's bare step. The wall also tells what else the"
        " machine does: trust it as far as its quartiles agree.\n\n"
        "| clock | bare step, ms | step in the loop, ms | more | quartiles over the rounds |\n"
        "|---|---|---|---|---|\n" + rows
    )


if __name__ == "__main__":
    main()
