#!/usr/bin/env bash
# A TPU pod slice: the same command on every one of its hosts. The run directory lies in a bucket
# that all hosts have mounted, or on a shared disk.
#
#   NAME=my-slice ZONE=us-east5-b experiments/launch/tpu_pod.sh \
#     run take-cover --preset paper --run-dir /mnt/runs/paper
#
# A host that is lost ends the command on all of them; the same line goes on from the last checkpoint.
set -euo pipefail
printf -v words '%q ' "$@"
exec gcloud compute tpus tpu-vm ssh "${NAME:?the slice}" --zone "${ZONE:?its zone}" --worker all \
  --command "dreamjax ${words}--device ${DEVICE:-tpu} --distributed"
