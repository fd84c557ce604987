"""Who the processes of a job are: from flags, from variables, and from what started them."""

import pytest
from jax._src.clusters import ClusterEnv, cloud_tpu_cluster

from miras_jax.training import ProcessesConfig, UserError
from miras_jax.training.processes import CLUSTERS, find

SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_GTIDS": "2,3",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}
GIVEN = {"MIRAS_COORDINATOR": "node1:8476", "MIRAS_PROCESS_COUNT": "2", "MIRAS_PROCESS_INDEX": "1"}


@pytest.fixture
def environ(monkeypatch):
    """Sets the environment, which jax reads itself; without a trace of this machine's cluster."""
    for name in (*SLURM, *OPEN_MPI, *GIVEN, "CUDA_VISIBLE_DEVICES", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)

    def set_all(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


def test_the_clusters_are_those_of_jax():
    known = {kind.__name__ for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method}
    assert known - set(CLUSTERS) == {"BaseTpuCluster"}  # the base of two
    assert set(CLUSTERS) <= known


@pytest.mark.parametrize("variables", [{}, SLURM | {"SLURM_NTASKS": "1"}, {"SLURM_JOB_ID": "1"}])
def test_one_process_is_alone(environ, variables):
    environ(**variables)
    assert find(ProcessesConfig()) is None


def test_a_pod_that_is_no_part_of_an_indexed_job_is_alone(environ):
    environ(KUBERNETES_SERVICE_HOST="10.0.0.1")
    assert find(ProcessesConfig()) is None


def test_variables_and_flags(environ):
    environ(**SLURM, **GIVEN)
    job = find(ProcessesConfig())
    assert (job.coordinator, job.count, job.index, job.devices) == ("node1:8476", 2, 1, None)
    job = find(ProcessesConfig(coordinator="[::1]:9", index=0))
    assert (job.coordinator, job.count, job.index) == ("[::1]:9", 2, 0)
    assert find(ProcessesConfig(count=1, index=0)) is None


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        (None, (1,)),  # not on a cluster that says it: one each, as jax does
        ("0,1", (1,)),
        ("0,1,2,3", (2, 3)),
        ("1", None),  # bound to its own by SLURM
    ],
)
def test_slurm(environ, visible, devices):
    environ(**SLURM)
    if visible is not None:
        environ(CUDA_VISIBLE_DEVICES=visible)
    job = find(ProcessesConfig())
    assert job.coordinator.startswith("gpu07:")
    assert (job.count, job.index, job.devices, job.found) == (4, 3, devices, "SLURM")
    assert find(ProcessesConfig(detect=False)) is None


def test_one_process_a_node_takes_all_its_devices(environ):
    environ(**SLURM | {"SLURM_GTIDS": "1", "SLURM_LOCALID": "0"}, CUDA_VISIBLE_DEVICES="0,1,2,3")
    assert find(ProcessesConfig()).devices is None
    environ(SLURM_NTASKS="1")
    assert find(ProcessesConfig()) is None


def test_open_mpi(environ):
    environ(**OPEN_MPI)
    job = find(ProcessesConfig())
    assert job.coordinator.startswith("10.96.0.1:")
    assert (job.count, job.index, job.devices, job.found) == (2, 1, None, "Open MPI")


def test_a_tpu_slice_on_gke(environ, monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    environ(TPU_WORKER_HOSTNAMES="localhost,slice-1", TPU_WORKER_ID="1")
    # Else they are asked of the metadata server of the machine.
    environ(MEGASCALE_COORDINATOR_ADDRESS="localhost", MEGASCALE_NUM_SLICES="1")
    environ(MEGASCALE_SLICE_ID="0")
    job = find(ProcessesConfig())
    assert job.coordinator.startswith("localhost:")
    assert (job.count, job.index, job.devices, job.found) == (2, 1, None, "Cloud TPU on GKE")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 2}, "processes.count is given without processes.coordinator: give all of"),
        ({"coordinator": "a:1", "index": 0}, "without processes.count"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, "below processes.count 2, got 2"),
        ({"coordinator": "a:1", "count": 2, "index": -1}, "below processes.count 2, got -1"),
        ({"coordinator": "a", "count": 2, "index": 0}, "must be HOST:PORT of process 0"),
        ({"coordinator": "a:70000", "count": 2, "index": 0}, "got 'a:70000'"),
        ({"lost_after": 0}, "processes.lost_after must be at least 1 second, got 0"),
    ],
)
def test_what_cannot_be(environ, changes, message):
    with pytest.raises(UserError, match=message):
        find(ProcessesConfig(**changes))


def test_variables_that_cannot_be(environ):
    environ(**GIVEN | {"MIRAS_PROCESS_INDEX": "one"})
    with pytest.raises(UserError, match="MIRAS_PROCESS_INDEX must be a number, got 'one'"):
        find(ProcessesConfig())
    environ(**dict.fromkeys(GIVEN, ""), **SLURM | {"SLURM_NTASKS": "many"})
    with pytest.raises(UserError, match=r"processes of this SLURM job .*; name them with --proc"):
        find(ProcessesConfig())
