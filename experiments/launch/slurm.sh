#!/usr/bin/env bash
#SBATCH --job-name=dreamjax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#
# One process a node, each with all GPUs of its node. The run directory lies where all nodes see it.
#
#   sbatch experiments/launch/slurm.sh run take-cover --preset paper --run-dir /shared/runs/paper
#   sbatch --nodes 1 --partition preemptible experiments/launch/slurm.sh ...    # other sizes
#
# Two minutes before its time is over, or when it is preempted, every process saves a checkpoint and
# ends; the job is put back into the queue and goes on from there, on as many nodes or on others.
set -euo pipefail

requeue() {
  trap '' TERM
  kill -TERM "$step" 2>/dev/null || true
  wait "$step" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap requeue TERM

srun --kill-on-bad-exit=1 dreamjax "$@" --device "${DEVICE:-gpu}" --distributed &
step=$!
wait "$step"
