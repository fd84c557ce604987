"""What the processes of a job must agree on: that all can begin, with the same, and when to stop.

Texts go through the coordinator, which needs no device and can say who is missing; numbers that are
needed at every step through the devices, where they cost no waiting.
"""

import contextlib
import hashlib
import itertools
import json
import pathlib
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # the key-value store of the coordinator has no public name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from miras_jax.training.errors import UserError

# Seconds until the slowest process must have come, say from reading its text.
PATIENCE = 1800
# Seconds until a new file must be visible on other hosts; NFS keeps what it knows of a folder for 3
# to 60 by default.
VISIBLE = 60

_rounds = itertools.count()


def index() -> int:
    """This process, from 0; unlike `jax.process_index` it touches no device."""
    return distributed.global_state.process_id


def exchange(text: str) -> list[str]:
    """Returns the texts of all processes by index; all must call it, as often."""
    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        return [text]
    name = f"miras/exchange/{next(_rounds)}"
    state.client.key_value_set(f"{name}/{state.process_id}", json.dumps(text))
    state.client.wait_at_barrier(name, timeout_in_ms=PATIENCE * 1000)
    found = {int(k.rsplit("/", 1)[1]): v for k, v in state.client.key_value_dir_get(f"{name}/")}
    return [json.loads(found[i]) for i in range(state.num_processes)]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Passes when all processes have come through what is inside; else all of them raise.

    Raises:
      UserError: what another process raised; an error of this one passes as it is.
    """
    failure = None
    try:
        yield
    except (UserError, OSError) as error:
        failure = error
    errors = exchange("" if failure is None else " ".join(str(failure).split()) or repr(failure))
    if failure is None and any(errors):
        first = next(i for i, error in enumerate(errors) if error)
        failure = UserError(f"process {first} of {len(errors)}: {errors[first]}")
    if failure is not None:
        failure.agreed = True
        raise failure


def same(what: str, values: Mapping[str, Any], advice: str) -> None:
    """Checks that all processes have the same values, which JSON can hold.

    Raises:
      UserError: in all of them; names the first value that differs.
    """
    text = json.dumps(values, default=str)
    if len(set(exchange(hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    first, *others = map(json.loads, exchange(text))
    for number, other in enumerate(others, start=1):
        for name in [*first, *sorted(other.keys() - first.keys())]:
            if first.get(name) != other.get(name):
                error = UserError(
                    f"the processes differ in {what}: {name} is {other.get(name)!r} in process"
                    f" {number} and {first.get(name)!r} in process 0; {advice}"
                )
                error.agreed = True
                raise error


def check_shared(folder: pathlib.Path) -> None:
    """Checks that the folder is one and the same for all processes.

    Raises:
      UserError: it is another one in some process.
    """
    names = exchange(f".shared-{secrets.token_hex(8)}")
    if len(names) == 1:
        return
    mark, mine = folder / names[0], index() == 0
    with together():
        if mine:
            mark.touch()
    try:
        with together():
            deadline = time.monotonic() + VISIBLE
            while not mark.exists() and not mine:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"directory {str(folder)!r} is not the folder that process 0 has there:"
                        " all processes need one shared folder"
                    )
                time.sleep(0.1)
    finally:
        if mine:
            mark.unlink(missing_ok=True)


class Votes:
    """Finds at every step whether any process was asked to stop; all find it at the same step.

    The votes of a step are one number a device; their maximum is taken on the devices, after the
    step, and read while the next one runs, when the loop waits for that step's metrics anyway. So
    it costs no waiting, and every process gets the same number for the same step by construction.
    (jax's preemption service agrees too, but knows SIGTERM alone and takes over its handling.)
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._size = mesh.size
        self._alone = jax.process_count() == 1
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._before: jax.Array | None = None

    def cast(self, signum: int | None) -> int | None:
        """Votes for this step, and returns the signal that was voted for at the step before; in a
        single process the one of this step."""
        if self._alone:
            return signum
        votes = jax.make_array_from_callback(
            (self._size,), self._sharding, lambda _: np.full(1, signum or 0, np.int32)
        )
        before, self._before = self._before, self._max(votes)
        return None if before is None else int(before) or None
