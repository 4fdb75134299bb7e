#!/usr/bin/env bash
# One machine with one GPU or with several: dreamjax uses all that it sees.
#
#   experiments/launch/gpu.sh run take-cover --preset paper --run-dir runs/paper
#   CUDA_VISIBLE_DEVICES=0,1 experiments/launch/gpu.sh ...    # only these
#
# Stopped by Ctrl-C, a crash or a reboot: the same line goes on from the last checkpoint.
set -euo pipefail
exec dreamjax "$@" --device "${DEVICE:-gpu}"
