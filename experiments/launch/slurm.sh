#!/usr/bin/env bash
# A SLURM GPU cluster: one process a node with all its GPUs, or one a GPU.
#
#     sbatch experiments/launch/slurm.sh [EXPERIMENT.py [--OPTION VALUE ...]]
#     sbatch --nodes=4 --ntasks-per-node=8 experiments/launch/slurm.sh ...     one process a GPU
#
# MIRAS=...       the command, where it is not .venv/bin/miras; on a file system of all nodes
# MAX_RESTARTS=50 how often the job puts itself back into the queue
# DRY_RUN=1       print the commands instead of running them: DRY_RUN=1 bash experiments/launch/slurm.sh
#
# The job ends and is queued again when its time is nearly over, when it is preempted and when a node
# fails; each time the run goes on from its last checkpoint. To save and stop for good:
# scancel --signal=INT JOB.
#
# Five minutes before the end SLURM sends SIGTERM to the processes, which save and exit with 143.
#SBATCH --job-name=miras
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

experiment=${1:-experiments/pretrain.py:memory=yaad,size=1300m}
options=("${@:2}")
read -ra miras <<<"${MIRAS:-.venv/bin/miras}"

run() {
  if [[ ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

trap : TERM # of a preemption: srun passes it on, and this script lives to see the exit code
# The processes end each other, with a reason; srun gives them the time to, instead of killing all
# when the first one ends. Bound to one core, a process would compile and read text on it alone.
run srun --kill-on-bad-exit=0 --wait=0 --unbuffered --cpu-bind=none \
  "${miras[@]}" train "$experiment" --processes.lost-after 60 ${options[@]+"${options[@]}"}
code=$?

case $code in
  0 | 1 | 2 | 130) ;; # done, diverged, cannot be, told to stop: the same again would be no other
  *) # 143 saved, 75 and 134 another process was lost, 137 killed
    if ((${SLURM_RESTART_COUNT:-0} < ${MAX_RESTARTS:-50})); then
      run scontrol requeue "${SLURM_JOB_ID:?}"
    fi
    ;;
esac
exit $code
