"""The processes of a job find each other and join, before anything touches a device.

Who they are is said by flags, by `MIRAS_COORDINATOR`, `MIRAS_PROCESS_COUNT` and
`MIRAS_PROCESS_INDEX`, or by what started them, which jax knows how to ask: SLURM, Open MPI, Cloud
TPU (on GKE too) and Kubernetes. Where nothing says so there is one process, and nothing happens.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping

import jax
from jax._src.clusters import ClusterEnv  # nothing public asks a cluster without joining it

from miras_jax.training.config import ProcessesConfig
from miras_jax.training.errors import UserError
from miras_jax.training.watch import Watch, end_together

VARIABLES = {
    "coordinator": "MIRAS_COORDINATOR",
    "count": "MIRAS_PROCESS_COUNT",
    "index": "MIRAS_PROCESS_INDEX",
}
# Classes of jax, with the variable that must be set beside what jax looks for. In a pod alone jax
# would warn, or ask the cluster about a job that is none.
CLUSTERS = {
    "OmpiCluster": ("Open MPI", None),
    "SlurmCluster": ("SLURM", None),
    "GkeTpuCluster": ("Cloud TPU on GKE", None),
    "GceTpuCluster": ("Cloud TPU", None),
    "K8sCluster": ("Kubernetes", "JOB_COMPLETION_INDEX"),
}
# Seconds that jax waits longer than we do, who can say why.
LATER = 30


@dataclasses.dataclass(frozen=True)
class Job:
    """The processes that train together.

    Attributes:
      coordinator: HOST:PORT at which process 0 can be reached.
      count: processes in all, 2 or more.
      index: this process, from 0.
      devices: numbers of the machine's accelerators that this process takes; None takes all.
      found: where this was found.
    """

    coordinator: str
    count: int
    index: int
    devices: tuple[int, ...] | None = None
    found: str = "flags"


@contextlib.contextmanager
def join(config: ProcessesConfig) -> Iterator[Job | None]:
    """Joins the processes of the job; what runs inside is one program over all their devices.

    Inside, an error of one process ends all of them, and a process that dies ends the others within
    `config.lost_after` seconds; both end the process at once, with a sentence on stderr. What all
    processes agree on (`StoppedError`, `DivergedError`, what is found before the first step) is
    raised as in a single process.

    Nothing happens where there is one process, or the caller has joined them already.

    Raises:
      UserError: half of what is needed is given, or it cannot be.
    """
    job = None if jax.distributed.is_initialized() else find(config)
    if job is None:
        yield None
        return
    _initialize(job, config)
    with Watch(job.coordinator, job.count, job.index, config.lost_after) as watch:
        try:
            with end_together():
                yield job
        except Exception as error:
            error.quiet = job.index > 0 and not isinstance(error, UserError)
            raise
        finally:
            watch.end()
            jax.distributed.shutdown()  # waits for the others, who come here too


def find(config: ProcessesConfig, environ: Mapping[str, str] = os.environ) -> Job | None:
    """Returns the job that this process belongs to, or None where it is alone.

    Raises:
      UserError: half of what is needed is given, it cannot be, or the cluster does not tell.
    """
    for name in ("join_timeout", "lost_after"):
        if (seconds := getattr(config, name)) < 1:
            raise UserError(f"processes.{name} must be at least 1 second, got {seconds}")
    given = {
        name: value
        for name, variable in VARIABLES.items()
        if (value := getattr(config, name)) is not None or (value := environ.get(variable))
    }
    if not given:
        return _of_cluster(config, environ) if config.detect else None
    if missing := [name for name in VARIABLES if name not in given]:
        raise UserError(
            f"processes.{next(iter(given))} is given without processes.{missing[0]}:"
            f" give all of --processes.coordinator HOST:PORT --processes.count N --processes.index"
            f" I, or of {', '.join(VARIABLES.values())}"
        )
    for name in ("count", "index"):
        try:
            given[name] = int(given[name])
        except ValueError:
            raise UserError(f"{VARIABLES[name]} must be a number, got {given[name]!r}") from None
    coordinator, count, index = (given[name] for name in VARIABLES)
    if not (port := re.fullmatch(r".+:(\d{1,5})", coordinator)) or not 0 < int(port[1]) < 2**16:
        raise UserError(
            f"processes.coordinator must be HOST:PORT of process 0, as node1:8476, got"
            f" {coordinator!r}"
        )
    if count < 1 or not 0 <= index < count:
        raise UserError(
            f"processes.index must be at least 0 and below processes.count {count}, got {index}"
        )
    return Job(coordinator, count, index) if count > 1 else None


def _of_cluster(config: ProcessesConfig, environ: Mapping[str, str]) -> Job | None:
    """Asks what started this process, by jax's own classes."""
    for kind in ClusterEnv._cluster_types:
        name, needed = CLUSTERS.get(kind.__name__, (None, None))
        if name is None or (needed and needed not in environ):
            continue
        if name == "Kubernetes" and importlib.util.find_spec("kubernetes") is None:
            continue
        try:
            if not kind.is_env_present():
                continue
            if (count := kind.get_process_count()) == 1:
                return None
            index = kind.get_process_id()
            coordinator = kind.get_coordinator_address(
                timeout_secs=config.join_timeout,
                override_coordinator_port=environ.get("JAX_COORDINATOR_PORT"),
            )
            return Job(coordinator, count, index, _share(kind, environ), name)
        except Exception as error:  # of an HTTP client, of a missing variable
            raise UserError(
                f"the other processes of this {name} job are not known"
                f" ({type(error).__name__}: {error}); name them with --processes.coordinator,"
                " --processes.count and --processes.index, or train alone with"
                " --no-processes.detect"
            ) from error
    return None


def _share(kind: type[ClusterEnv], environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Which of the machine's GPUs this process takes, where several processes share the machine.

    Left alone, jax gives every process one GPU, also the only process of a machine with eight.
    """
    local = kind.get_local_process_id()
    if local is None:
        return None
    if kind.__name__ == "SlurmCluster":
        neighbours = len(environ.get("SLURM_GTIDS", "").split(","))
    else:
        neighbours = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    if neighbours == 1:
        return None
    if (visible := environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return (local,)
    share = len([device for device in visible.split(",") if device.strip()]) // neighbours
    # Where each process sees fewer devices than there are processes, it sees its own alone.
    return tuple(range(local * share, (local + 1) * share)) or None


def _initialize(job: Job, config: ProcessesConfig) -> None:
    """Joins through jax; ends the process where the others do not come in time."""

    def give_up():
        missing = (
            "not all of the others have come: see that each was started, with the same coordinator"
            " and a number of its own"
            if job.index == 0
            else f"nobody answers at {job.coordinator}: see that process 0 runs there, that the"
            " name resolves and the port is open from here (no firewall, no http_proxy)"
        )
        sys.stdout.flush()
        message = f"miras: error: process {job.index} of {job.count}, {job.found}:"
        message += f" after processes.join_timeout {config.join_timeout} s {missing}\n"
        os.write(2, message.encode())
        os._exit(UserError.exit_code)

    # jax itself ends the process without a word of ours when its own time is over.
    timer = threading.Timer(config.join_timeout, give_up)
    timer.daemon = True
    timer.start()
    # Its handler of SIGTERM would take the signal from the loop, see `agreement.Votes`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            job.coordinator,
            job.count,
            job.index,
            local_device_ids=job.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=config.join_timeout + LATER,
            heartbeat_timeout_seconds=config.lost_after + LATER,
        )
    except (RuntimeError, ValueError) as error:  # the port is taken; jax runs already
        raise UserError(
            f"process {job.index} of {job.count} cannot join at {job.coordinator}: {error}"
        ) from error
    finally:
        timer.cancel()
