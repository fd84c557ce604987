"""Compiles every case of `kernels_pallas/cases.py` and writes the compilers' figures down.

    make kernels
    python experiments/prove_kernels.py --backend tpu [--rows gla yaad] [--every-time] \
        [--cases backward.width=64] [--out docs/results/kernels_compiled.md]

The JSON beside the tables has every figure. A run of all rows and cases replaces the figures of its
back end, another one only what it compiles. No kernel is run: a schedule's length and a count of
registers rank variants, they are not times.
"""

import argparse
import datetime
import json
import platform
import re
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compiled_tables import document
from kernel_cases import ideal_bytes

from kernels_pallas import aot
from kernels_pallas.cases import DEEP, LINEAR, Case, find, select

BUILDER = f"{Path(__file__).with_name('kernel_cases.py')}:build"
PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "nvidia-cuda-nvcc")


def versions() -> dict[str, str]:
    """What the figures depend on, as far as it is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def compile_cases(backend: str, cases: list[Case], timeout: float) -> list[dict]:
    """The results of the cases, each with its bytes that cannot be done without."""
    jobs = [job for case in cases for job in case.jobs]
    results = aot.prove(jobs, builder=BUILDER, backend=backend, timeout=timeout)
    entries = []
    for job, result in results.items():
        name, _, chip = job.rpartition("@")
        case = find(name)
        what = {"chip": chip, "figures": result.figures, "error": result.error}
        what |= {"ideal_bytes": ideal_bytes(case), "seconds": round(result.seconds, 1)}
        entries.append({**case._replace(chips=())._asdict(), **what})
    return entries


def as_text(record: dict) -> str:
    """The record as JSON, a line for each result."""
    parts = []
    for backend, part in record.items():
        results = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in part["results"].items()]
        about = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in part.items() if k != "results"]
        body = ",\n".join([*about, ' "results": {\n' + ",\n".join(results) + "\n }"])
        parts.append(f"{json.dumps(backend)}: {{\n{body}\n}}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=["tpu", "gpu"], required=True)
    parser.add_argument("--rows", nargs="+", default=[*LINEAR, *DEEP], help="of the zoo")
    parser.add_argument("--every-time", action="store_true", help="the cases of the tests alone")
    parser.add_argument(
        "--cases", metavar="PATTERN", default="", help="those alone whose name has it"
    )
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one case")
    parser.add_argument("--workers", type=int, default=2, help="processes that compile at once")
    parser.add_argument("--out", type=Path, help="markdown file; the JSON is put beside it")
    args = parser.parse_args()

    record = {}
    if args.out and args.out.with_suffix(".json").exists():
        record = json.loads(args.out.with_suffix(".json").read_text())
    mine = record.setdefault(args.backend, {"results": {}})
    command = shlex.join(["python", *sys.argv])
    if set(args.rows) == {*LINEAR, *DEEP} and not args.cases:
        mine |= {"results": {}, "command": command}
    else:
        mine["command"] = "; then ".join(filter(None, [mine.get("command"), command]))
    mine |= {"versions": versions(), "date": str(datetime.date.today())}

    def run(row):
        chosen = select(args.backend, args.every_time, (row,))
        chosen = [case for case in chosen if re.search(args.cases, case.name)]
        return row, compile_cases(args.backend, chosen, args.timeout)

    failures = 0
    with ThreadPoolExecutor(args.workers) as pool:
        for row, entries in pool.map(run, args.rows):
            for entry in entries:
                name = " ".join(
                    str(entry[k])
                    for k in ("row", "what", "width", "chunk_size", "dtype", "packed", "chip")
                )
                mine["results"][name] = entry
            failed = [entry for entry in entries if entry["error"]]
            failures += len(failed)
            seconds = sum(entry["seconds"] for entry in entries)
            print(
                f"{row:20} {len(entries)} compiled, {len(failed)} failed, {seconds:.0f} s",
                flush=True,
            )
            for entry in failed:
                line = entry["error"].strip().splitlines()[0][:300]
                print(
                    f"  {entry['what']} {entry['width']} {entry['dtype']} {entry['chip']}: {line}"
                )
            if args.out:
                args.out.with_suffix(".json").write_text(as_text(record))
                args.out.write_text(document(record))
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
