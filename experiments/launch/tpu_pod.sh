#!/usr/bin/env bash
# A Cloud TPU pod slice: the same command on every worker; they find each other.
#
#     TPU=NAME ZONE=us-west4-a experiments/launch/tpu_pod.sh [EXPERIMENT.py [--OPTION VALUE ...]]
#     TPU=NAME ZONE=us-west4-a experiments/launch/tpu_pod.sh stop        save and end
#
# FOLDER=miras_jax  the project on every worker, with its .venv, as seen from the home folder
# RESTARTS=5        how often to start again after a failure, as of a worker
# DRY_RUN=1         print the commands instead of running them
set -uo pipefail

experiment=${1:-experiments/pretrain.py:memory=yaad,size=1300m}
options=("${@:2}")
folder=${FOLDER:-miras_jax}

on_all_workers() {
  local command=(gcloud compute tpus tpu-vm ssh "${TPU:?the name of the TPU VM}"
    --zone="${ZONE:?its zone}" --worker=all --command="$1")
  if [[ ${DRY_RUN:-} ]]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
}

if [[ $experiment == stop ]]; then
  on_all_workers "pkill -TERM -f '[m]iras train'" # the brackets keep pkill from finding this shell
  exit
fi

words=$(printf '%q ' .venv/bin/miras train "$experiment" ${options[@]+"${options[@]}"})
for ((left = ${RESTARTS:-5}; ; left--)); do
  on_all_workers "cd $(printf '%q' "$folder") && $words"
  code=$?
  # ssh returns the code of the command: what the same command would meet again, or was told to do.
  case $code in 0 | 2 | 130 | 143) exit "$code" ;; esac
  ((left > 0)) || exit "$code"
  echo "exit code $code; starting again, $left time(s) left" >&2
  sleep 30
done
