"""The launch scripts: dry runs whose every flag is one that its program has."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

import miras_jax.training
from miras_jax import cli

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "experiments" / "launch"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
DEFAULT = "experiments/pretrain.py:memory=yaad,size=1300m"
ASKED = ["experiments/quickstart.py", "--mesh.fsdp", "16", "--directory", "runs/a b"]

# The flags that the scripts may use, with where they are documented.
FLAGS = {
    # https://slurm.schedmd.com/sbatch.html
    "sbatch": "job-name nodes ntasks-per-node gpus-per-node exclusive time signal requeue open-mode"
    " output",
    # https://slurm.schedmd.com/srun.html
    "srun": "kill-on-bad-exit wait unbuffered cpu-bind",
    # https://slurm.schedmd.com/scontrol.html
    "scontrol": "",
    # https://cloud.google.com/sdk/gcloud/reference/compute/tpus/tpu-vm/ssh
    "gcloud": "zone worker command",
}


def dry_run(script: str, *arguments: str, **variables: str) -> list[list[str]]:
    """The commands that a script would run, in words."""
    done = subprocess.run(
        ["bash", str(FOLDER / script), *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DRY_RUN": "1", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def flags(words: list[str]) -> list[str]:
    return [word.removeprefix("--").split("=")[0] for word in words if word.startswith("--")]


@pytest.fixture
def parsed(monkeypatch):
    """Gives the words of `miras train ...` to the command line, and returns the configuration that
    it would train."""

    def parse(words: list[str]):
        assert words[:2] == [".venv/bin/miras", "train"]
        taken = []
        with monkeypatch.context() as patch:
            patch.chdir(ROOT)
            patch.setattr(miras_jax.training, "train", lambda config, **more: taken.append(config))
            # The paper's sizes are experiments of their own: here the options are what counts.
            words = [word.replace(DEFAULT, ASKED[0]) for word in words]
            assert cli.main(words[1:]) == 0
        return taken[0]

    return parse


def test_scripts_are_bash():
    assert {script.name for script in SCRIPTS} == {"slurm.sh", "tpu_pod.sh", "workstation.sh"}
    for script in SCRIPTS:
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert os.access(script, os.X_OK)
        assert DEFAULT in script.read_text()


def test_workstation(parsed):
    (words,) = dry_run("workstation.sh", *ASKED)
    config = parsed(words)
    assert (config.mesh.fsdp, config.directory) == (16, "runs/a b")
    lines = dry_run("workstation.sh", *ASKED, PROCESSES="2", GPUS="4", PORT="9000")
    assert len(lines) == 2
    for i, (env, *words, background) in enumerate(lines):
        assert (env, background) == ("env", "&")
        variables = dict(word.split("=", 1) for word in words[:4])
        assert variables == {
            "MIRAS_COORDINATOR": "localhost:9000",
            "MIRAS_PROCESS_COUNT": "2",
            "MIRAS_PROCESS_INDEX": str(i),
            "CUDA_VISIBLE_DEVICES": ("0,1", "2,3")[i],
        }
        assert parsed(words[4:]).mesh.fsdp == 16


def test_slurm(parsed):
    (srun, *words), *requeue = dry_run("slurm.sh", *ASKED, SLURM_JOB_ID="7")
    assert srun == "srun"
    start = words.index(".venv/bin/miras")
    assert set(flags(words[:start])) <= set(FLAGS["srun"].split())
    assert parsed(words[start:]).processes.lost_after == 60
    assert not requeue  # it ended with 0
    directives = re.findall(r"^#SBATCH (.*)$", (FOLDER / "slurm.sh").read_text(), re.MULTILINE)
    assert set(flags(directives)) <= set(FLAGS["sbatch"].split())
    assert len(flags(directives)) == len(directives)
    assert "--signal=TERM@300" in directives


@pytest.mark.parametrize(
    ("code", "restarts", "again"), [(143, 0, True), (75, 9, True), (2, 0, False), (143, 50, False)]
)
def test_slurm_queues_again_what_may_go_on(tmp_path, code, restarts, again):
    for name, text in (("srun", f"exit {code}"), ("scontrol", 'echo "scontrol $*"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(
        ["bash", str(FOLDER / "slurm.sh")],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert done.stdout == ("scontrol requeue 7\n" if again else "")


def test_tpu_pod(parsed):
    (words,) = dry_run("tpu_pod.sh", *ASKED, TPU="slice", ZONE="us-west4-a")
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice"]
    assert set(flags(words)) <= set(FLAGS["gcloud"].split())
    options = dict(word.split("=", 1) for word in words[6:])
    assert (options["--zone"], options["--worker"]) == ("us-west4-a", "all")
    cd, folder, and_, *words = shlex.split(options["--command"])
    assert (cd, folder, and_) == ("cd", "miras_jax", "&&")
    assert parsed(words).directory == "runs/a b"
    (words,) = dry_run("tpu_pod.sh", "stop", TPU="slice", ZONE="us-west4-a")
    assert words[-1] == "--command=pkill -TERM -f '[m]iras train'"


def test_gke(parsed):
    (jobset,) = yaml.safe_load_all((FOLDER / "gke_tpu.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"][0] == DEFAULT
    config = parsed([".venv/bin/miras", *container["command"][1:], *container["args"]])
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    rows, columns = map(int, topology.split("x"))
    chips = job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] == job["parallelism"]
    assert config.mesh.data * config.mesh.fsdp == chips == rows * columns
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == volumes
    assert any(config.directory.startswith(path) for path in mounts)
    # A pod failure policy needs pods that are not restarted where they are.
    assert pod["restartPolicy"] == "Never"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_guide_starts_what_there_is():
    """Each command of the guide that starts a script runs dry."""
    guide = (ROOT / "docs" / "launch.md").read_text()
    lines = re.findall(r"^\$ (.*experiments/launch/\S+\.sh.*)$", guide, re.MULTILINE)
    assert {script.name for script in SCRIPTS} <= {
        name for line in lines for name in re.findall(r"(\w+\.sh)", line)
    }
    for line in lines:
        words = shlex.split(line)
        number = next(i for i, word in enumerate(words) if word.endswith(".sh"))
        variables = dict(word.split("=", 1) for word in words[:number] if "=" in word[1:])
        if "sbatch" in words[:number]:
            options = [word for word in words[words.index("sbatch") : number] if word[0] == "-"]
            assert set(flags(options)) <= set(FLAGS["sbatch"].split())
            variables = {"SLURM_JOB_ID": "7"}
        commands = dry_run(Path(words[number]).name, *words[number + 1 :], **variables)
        assert commands
