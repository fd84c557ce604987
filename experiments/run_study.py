"""Runs a study: every run of a grid, several at a time, and keeps what they found.

    python experiments/run_study.py experiments/studies/mqar.py --jobs 2
    python experiments/run_study.py experiments/studies/novels.py --text FOLDER --only seed=0

A study is an experiment file whose `config` is a function, so that `miras train` takes each of its
runs alone, with the settings of all runs in `RUNS`. If trained models are measured further, it has
a function `tasks` from settings to what `miras evaluate --tasks` takes, and if that is done under
other configurations too, a function `served` from settings to their fields, by name. What reads
text has an argument `text`, a folder.

Every process has its share of the processor's cores. What a run found becomes a line of
docs/results/STUDY.jsonl, from which experiments/study_pages.py writes the pages. Runs that stand
there with the configuration that the study gives them are not run again; `--measure` measures them
again where their folders are still there, for tasks that have changed.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import datetime
import hashlib
import inspect
import json
import math
import multiprocessing
import os
import re
import runpy
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from miras_jax import evals, evaluation_record, export
from miras_jax.nn import reconfigured
from miras_jax.report_runs import RATE, read_run
from miras_jax.training import DivergedError, TrainConfig, train
from miras_jax.training.checkpoint import find_checkpoint

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
Settings = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Study:
    """A study's file, read."""

    path: Path
    about: str
    config: Callable
    runs: list[Settings]
    tasks: Callable[..., Sequence[str]]
    served: Callable[..., dict[str, dict[str, Any]]]

    @property
    def name(self) -> str:
        return self.path.stem


def read_study(path: Path) -> Study:
    """Reads the file of a study."""
    found = runpy.run_path(str(path))
    tasks = found.get("tasks", lambda **_: ())
    served = found.get("served", lambda **_: {"": {}})
    return Study(path, found["__doc__"], found["config"], found["RUNS"], tasks, served)


def chosen(runs: list[Settings], only: Sequence[str]) -> list[Settings]:
    """The runs that have one of the values that `only` asks for of every name in it.

    Raises:
      SystemExit: no run has them.
    """
    wanted: dict[str, set[str]] = {}
    for name, value in (word.split("=", 1) for word in only):
        wanted.setdefault(name, set()).add(value)
    kept = [run for run in runs if all(run.get(n) in values for n, values in wanted.items())]
    if not kept:
        raise SystemExit(f"no run has {' '.join(only)}; the first one is {runs[0]}")
    return kept


def call(function: Callable, settings: Settings, text: str | None = None):
    """Calls a function of a study, with the text where it takes one."""
    if text is not None and "text" in inspect.signature(function).parameters:
        settings = {**settings, "text": text}
    return function(**settings)


def described(config) -> dict[str, Any]:
    """A configuration as the record has it: with the memory and the layer that its name stands for,
    without the places of this machine."""
    kept = evaluation_record.plain(dataclasses.replace(config, directory=""))
    kept["memory"] = repr(config.model.build_memory())
    kept["layer"] = re.sub(r" at 0x\w+", "", repr(config.model.layer))  # functions by name
    for name in ("source", "validation"):
        place = kept["data"][name]
        if isinstance(place, str) and not place.startswith("task:"):
            kept["data"][name] = Path(place).name
    return kept


def is_of(record: dict[str, Any], study: Study) -> bool:
    """Whether a record is of a run as the study has it today."""
    if record["settings"] not in study.runs:
        return False
    known = _filled(record["config"], described(TrainConfig()))
    return known == described(call(study.config, record["settings"]))


def _filled(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the defaults of what there was not yet when it was written."""
    both = {**defaults, **config}
    return {
        name: _filled(value, defaults[name]) if isinstance(defaults.get(name), dict) else value
        for name, value in both.items()
    }


def folder_of(settings: Settings, kept: dict[str, Any], work: Path) -> Path:
    """Another configuration, as `described` has it, is another run, and has a folder of its own."""
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
    return work / "-".join([*settings.values(), digest])


def measure_again(path: Path, record: dict[str, Any], text: str | None, work: Path):
    """The line of a run that was trained before, with what the study's tasks find now."""
    study, settings = read_study(path), record["settings"]
    kept = described(call(study.config, settings, text))
    found = measure(study, settings, text, folder_of(settings, kept, work))
    jax.clear_caches()
    print(f"{','.join(settings.values())}: measured", flush=True)
    return {**record, "evaluations": evaluation_record.plain(found)}


def execute(path: Path, settings: Settings, text: str | None, work: Path) -> dict[str, Any]:
    """Trains one model, measures it, and returns its line of the record."""
    study = read_study(path)
    config = call(study.config, settings, text)
    kept = described(config)
    folder = folder_of(settings, kept, work)
    again = (folder / "metrics.jsonl").exists()
    config = dataclasses.replace(config, directory=str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    words = ",".join(f"{name}={value}" for name, value in settings.items())
    command = f"miras train experiments/studies/{path.name}:{words}"
    texts = f",text={text}" if "text" in inspect.signature(study.config).parameters else ""
    record: dict[str, Any] = {
        "settings": settings,
        "command": command,
        "date": str(datetime.date.today()),
        "versions": evaluation_record.versions(),
        "hardware": {**evaluation_record.hardware(), "cores": len(os.sched_getaffinity(0))},
        "config": kept,
    }
    began, worked = time.perf_counter(), time.process_time()
    with (folder / "log").open("a") as log, contextlib.redirect_stdout(log):
        try:
            train(config, command=f"{command}{texts} --directory {folder}")
        except DivergedError as error:
            return {**record, "diverged": str(error).split(";")[0]}
        share = (time.process_time() - worked) / (time.perf_counter() - began)
        run = read_run(str(folder), path.stem)
        record |= {"parameters": run.parameters, "tokens": run.tokens}
        record["wall_seconds"] = short(run.seconds()[1][-1])
        metadata = ocp.metadata(find_checkpoint(folder)).custom_metadata
        record["corpus"] = {name: metadata["corpus"][name] for name in ("version", "sha256")}
        # Of a run that was interrupted it is not known how much it worked before.
        record |= timed(run, None if again else share)
        record["evaluations"] = measure(study, settings, text, folder)
    jax.clear_caches()  # a long-lived process would run out of memory maps
    print(f"{words}: {time.perf_counter() - began:.0f} s", flush=True)
    return evaluation_record.plain(record)


def timed(run, share: float | None) -> dict[str, Any]:
    """`cpu_seconds` of all steps, without compilation and evaluations, and `curves`: training loss,
    norm of the gradient and every figure of the held-out text or the test examples against tokens
    and those seconds.

    Args:
      run: the run's records.
      share: of the time of the clock that the processor worked for the run, as other runs may have
        taken the rest; None if it is not known, nor are the seconds then.
    """
    steps, rates = run.series(RATE)
    every = np.diff(steps, prepend=0) * run.tokens_per_step / rates
    elapsed = np.cumsum(every) * (math.nan if share is None else share)
    curves = {}
    for name in ["train/loss", "train/grad_norm", *run.names("eval/")]:
        at, values = run.series(name)
        curves[name] = {
            "tokens": [int(step) * run.tokens_per_step for step in at],
            "seconds": [short(x) for x in np.interp(at, [0, *steps], [0.0, *elapsed])],
            "values": [short(x) for x in values],
        }
    return {"cpu_seconds": short(elapsed[-1]), "curves": curves}


def short(x: float) -> float:
    """A number with six digits."""
    return float(f"{x:.6g}")


def measure(study: Study, settings: Settings, text: str | None, folder: Path) -> dict[str, dict]:
    """What the study's tasks find of a trained model, by name."""
    requests, served = call(study.tasks, settings, text), call(study.served, settings)
    if not (requests and served):
        return {}
    model, metadata = export.load_model(str(folder))
    vocabulary = export.load_vocabulary_of(str(folder), metadata)
    subject = evals.Subject(vocabulary, packed=bool(metadata.get("packed")))
    evaluators = evals.prepare(requests, subject)
    found = {}
    for name, changes in served.items():
        for each in evaluators:
            result = each.run(reconfigured(model, **changes))
            found[f"{each.name}, {name}" if name else each.name] = {
                "figures": result.figures,
                "standard_errors": result.errors,
                "counts": result.counts,
                "curves": result.curves,
            }
    return found


def prepare(cores: multiprocessing.Queue, cache: str, parent: int) -> None:
    """Makes a process ready: its cores, one place for what all of them compile, and an end when the
    study's own process ends."""
    os.sched_setaffinity(0, cores.get())
    threading.Thread(target=follow, args=(parent,), daemon=True).start()
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def follow(parent: int) -> None:
    """Ends this process when it is left alone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a record, none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="file of the study")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME=VALUE", help="some runs")
    parser.add_argument(
        "--text", help="folder with the folders train and valid, for studies of text"
    )
    parser.add_argument("--measure", action="store_true", help="measure what is trained again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--work", type=Path, help="folder of the runs, runs/STUDY")
    parser.add_argument("--out", type=Path, help="record, docs/results/STUDY.jsonl")
    args = parser.parse_args(words)
    study = read_study(args.study)
    work, out = args.work or Path("runs", study.name), args.out or RESULTS / f"{study.name}.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)

    done = [record for record in read_records(out) if is_of(record, study)]
    names = [record["settings"] for record in done]
    picked = chosen(study.runs, args.only)
    left = [settings for settings in picked if settings not in names]
    if args.measure:
        left = [r for r in done if r["settings"] in picked and "diverged" not in r]
    print(f"{study.name}: {len(left)} of {len(study.runs)} runs to do", flush=True)
    context = multiprocessing.get_context("spawn")
    mine, cores = sorted(os.sched_getaffinity(0)), context.Queue()
    for i in range(args.jobs):
        cores.put(mine[i % len(mine) :: args.jobs])
    with concurrent.futures.ProcessPoolExecutor(
        args.jobs, context, prepare, (cores, str((work / "compiled").absolute()), os.getpid())
    ) as pool:
        do = measure_again if args.measure else execute
        running = {pool.submit(do, study.path, each, args.text, work): each for each in left}
        failed = []
        try:
            for future in concurrent.futures.as_completed(running):
                if error := future.exception():
                    settings = running[future].get("settings", running[future])
                    failed.append(f"{settings}: {type(error).__name__}: {error}")
                    continue
                add(out, study, future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        raise SystemExit("\n".join(["runs that failed:", *failed]))


def texts(records: list[dict[str, Any]]) -> set[str]:
    """Versions of the text that the runs of a study of text have read."""
    read = [r for r in records if "corpus" in r and r["config"]["data"]["validation"]]
    return {record["corpus"]["version"] for record in read}


def add(out: Path, study: Study, record: dict[str, Any]) -> None:
    """Writes a run into the record, in the order of the study's runs. Runs that the study no longer
    has, or has with another configuration, are dropped."""
    records = [r for r in read_records(out) if is_of(r, study)]
    records = [r for r in records if r["settings"] != record["settings"]] + [record]
    if len(texts(records)) > 1:
        raise SystemExit(f"{out} has runs of another text: keep it elsewhere, or take that text")
    records.sort(key=lambda r: study.runs.index(r["settings"]))
    partial = out.with_suffix(".partial")
    partial.write_text("".join(json.dumps(record) + "\n" for record in records))
    partial.replace(out)


if __name__ == "__main__":
    main()
