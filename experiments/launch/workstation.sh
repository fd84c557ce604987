#!/usr/bin/env bash
# One machine: all its GPUs in one process, or PROCESSES of them with an equal share of the GPUs.
#
#     experiments/launch/workstation.sh [EXPERIMENT.py [--OPTION VALUE ...]]
#
# PROCESSES=1  processes to start; one is enough on one machine, and simplest
# GPUS=8       GPUs that they share out, where there are several processes; without, none is assigned
# PORT=8476    port at which the processes find each other
# MIRAS=...    the command, where it is not .venv/bin/miras
# DRY_RUN=1    print the commands instead of running them
#
# Ctrl-C and SIGTERM reach every process: they save and end. Ends with the largest exit code.
set -uo pipefail

experiment=${1:-experiments/pretrain.py:memory=yaad,size=1300m}
options=("${@:2}")
processes=${PROCESSES:-1} gpus=${GPUS:-0} port=${PORT:-8476}
read -ra miras <<<"${MIRAS:-.venv/bin/miras}"
command=("${miras[@]}" train "$experiment" ${options[@]+"${options[@]}"})

if ((processes == 1)); then
  [[ ${DRY_RUN:-} ]] && { printf '%q ' "${command[@]}"; echo; exit; }
  exec "${command[@]}"
fi
if ((gpus % processes)); then
  echo "GPUS=$gpus must be a multiple of PROCESSES=$processes" >&2
  exit 2
fi

started=()
# Only the first signal is passed on: a terminal sends Ctrl-C to the processes itself, and a second
# one would end them without saving.
trap 'trap : TERM; kill -TERM "${started[@]}"' TERM
trap : INT
for ((i = 0; i < processes; i++)); do
  variables=(MIRAS_COORDINATOR="localhost:$port" MIRAS_PROCESS_COUNT="$processes" MIRAS_PROCESS_INDEX="$i")
  if ((gpus)); then
    share=$((gpus / processes))
    variables+=(CUDA_VISIBLE_DEVICES="$(seq -s, $((i * share)) $(((i + 1) * share - 1)))")
  fi
  if [[ ${DRY_RUN:-} ]]; then
    printf '%q ' env "${variables[@]}" "${command[@]}"
    echo '&'
  else
    env "${variables[@]}" "${command[@]}" &
    started+=($!)
  fi
done

largest=0
for process in ${started[@]+"${started[@]}"}; do
  while # a signal that is trapped ends `wait`, not the process
    wait "$process"
    code=$?
    kill -0 "$process" 2>/dev/null
  do :; done
  ((code > largest)) && largest=$code
done
exit "$largest"
