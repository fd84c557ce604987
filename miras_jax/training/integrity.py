"""Whether a checkpoint still is what was written: sizes and checksums, kept beside the arrays.

The library that writes the arrays notices a file that is missing or short, but not every changed
byte: of single bits flipped in the arrays of a small model, it read a third as other weights. So
every checkpoint gets a manifest before it gets its name, and is held against it before it is used.

The checksum is CRC-32: it finds every change of up to 32 bits in a row and all but one in four
billion of the others, at a gigabyte a second and core, on a few threads.
"""

import concurrent.futures
import json
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from miras_jax.training.errors import UserError

MANIFEST = "manifest.json"
METADATA = "_CHECKPOINT_METADATA"  # of the library: our configuration and place are in it
BAD = "bad_checkpoints"
BLOCK = 1 << 22  # bytes that are read at once
THREADS = 8


def seal(checkpoint: pathlib.Path) -> None:
    """Writes the manifest of a checkpoint whose files are all there; not again if there is one."""
    path = checkpoint / MANIFEST
    if path.exists():
        return
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file())
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        checksums = list(pool.map(_settled, files))
    found = {
        str(file.relative_to(checkpoint)): {"bytes": _size(file), "crc32": crc}
        for file, crc in zip(files, checksums, strict=True)
    }
    fresh = path.with_suffix(".tmp")  # a crash leaves no half manifest
    fresh.write_text(json.dumps(found, indent=1))
    os.replace(fresh, path)


def fault(checkpoint: pathlib.Path) -> str | None:
    """Returns what is wrong with a checkpoint, or None.

    One without a manifest, of an earlier version, is held to be sound if it has its metadata.
    """
    path = checkpoint / MANIFEST
    if not path.exists():
        return None if is_checkpoint(checkpoint) else f"{METADATA} is missing"
    try:
        expected = json.loads(path.read_bytes())
        sizes = {
            checkpoint / name: (each["bytes"], each["crc32"]) for name, each in expected.items()
        }
    except (ValueError, TypeError, AttributeError, KeyError):
        return f"{MANIFEST} is damaged"
    for file, (size, _) in sizes.items():  # at once, before gigabytes are read
        name = file.relative_to(checkpoint)
        if not file.is_file():
            return f"{name} is missing"
        if _size(file) != size:
            return f"{name} has {_size(file)} bytes instead of {size}"
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for file, found in zip(sizes, pool.map(checksum, sizes), strict=True):
            if found != sizes[file][1]:
                return f"{file.relative_to(checkpoint)} is not what was written"
    return None


def checksum(file: pathlib.Path) -> str:
    """CRC-32 of a file, as eight hexadecimal digits, or why it cannot be read.

    The metadata carry their own, see `signed`: the library rewrites that file, with times and
    statistics, while the manifest is written and after.
    """
    found = 0
    try:
        if file.name == METADATA:
            written = json.loads(file.read_bytes())
            content = dict(written["custom_metadata"] or {})
            own = content.pop("crc32", None)
            return "of its own" if own in (None, signed(content)["crc32"]) else "another"
        with file.open("rb", buffering=0) as stream:
            while block := stream.read(BLOCK):
                found = zlib.crc32(block, found)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"unreadable: {error}"
    return f"{found:08x}"


def signed(metadata: dict[str, Any]) -> dict[str, Any]:
    """Adds to plain JSON values the checksum of all of them, as `crc32`."""
    content = json.dumps(metadata, sort_keys=True)
    return {**json.loads(content), "crc32": f"{zlib.crc32(content.encode()):08x}"}


def _settled(file: pathlib.Path) -> str:
    """The checksum; of metadata that are just being written again, when they can be read."""
    for _ in range(50):
        if not (found := checksum(file)).startswith("unreadable"):
            return found
        time.sleep(0.1)
    raise OSError(f"{file} is {found}")


def _size(file: pathlib.Path) -> int | None:
    return None if file.name == METADATA else file.stat().st_size


def is_checkpoint(path: pathlib.Path) -> bool:
    """Whether a folder is a complete checkpoint, as far as its names tell."""
    return (path / METADATA).is_file()


def steps_in(root: pathlib.Path) -> list[pathlib.Path]:
    """The folders of checkpoints in `root`, sound or not, the newest first."""
    steps = [path for path in root.glob("*") if path.name.isdecimal() and path.is_dir()]
    return sorted(steps, key=lambda path: int(path.name), reverse=True)


def newest_sound(
    steps: Iterable[pathlib.Path],
) -> tuple[pathlib.Path | None, dict[pathlib.Path, str]]:
    """Returns the first sound one of `steps`, or None, and what is wrong with those before it."""
    faults: dict[pathlib.Path, str] = {}
    for step in steps:
        if (wrong := fault(step)) is None:
            return step, faults
        faults[step] = wrong
    return None, faults


def set_aside(root: pathlib.Path, say: Callable[[str], None] = print) -> None:
    """Moves the checkpoints in `root` that are newer than the newest sound one, and damaged, to
    `bad_checkpoints` beside `root`, saying so in a line for each. Nothing is deleted.

    Raises:
      UserError: all are damaged. Then nothing is moved, so that a run does not begin afresh.
    """
    good, faults = newest_sound(steps_in(root))
    if faults and good is None:
        raise UserError(
            f"every checkpoint in {root} is damaged: {listed(faults)}; put one back from a copy,"
            " or choose another --directory to begin afresh"
        )
    for step, wrong in faults.items():
        to = _free(root.parent / BAD / step.name)
        to.parent.mkdir(exist_ok=True)
        step.rename(to)
        say(f"checkpoint {step.name} is damaged ({wrong}): moved to {to}; using {good}")


def find_sound(path: pathlib.Path, steps: list[pathlib.Path]) -> pathlib.Path:
    """Returns the newest sound one of `steps`, the checkpoints of the run in `path` from the newest
    on; says on stderr which were passed over. Nothing is moved: the run may be training.

    Raises:
      UserError: all are damaged.
    """
    good, faults = newest_sound(steps)
    if good is None:
        raise UserError(f"no checkpoint of {path} can be used: {listed(faults)}")
    for step, wrong in faults.items():
        print(f"checkpoint {step.name} is damaged ({wrong}); using {good}", file=sys.stderr)
    return good


def listed(faults: dict[pathlib.Path, str]) -> str:
    """The faults in one line."""
    return ", ".join(f"{step.name} ({wrong})" for step, wrong in faults.items())


def _free(path: pathlib.Path) -> pathlib.Path:
    """`path`, with a number behind it if there is such a file already."""
    taken, number = path, 1
    while path.exists():
        number += 1
        path = taken.with_name(f"{taken.name}-{number}")
    return path


def last_good(directory: pathlib.Path) -> str:
    """Names the newest complete checkpoint of a run, for the message of one that fails."""
    steps = steps_in(directory.absolute() / "checkpoints")
    return str(next(filter(is_checkpoint, steps), "none yet"))
