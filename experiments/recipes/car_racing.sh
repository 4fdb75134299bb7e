#!/usr/bin/env bash
# The like of the shipped world car-racing, from nothing: recordings of drivers of every skill, V, M and
# C, then rounds in which C drives and M learns from its driving; at last a folder to hand on.
#
#   experiments/recipes/car_racing.sh runs/recipe            # hours on 2 cores; not run in full yet
#   experiments/recipes/car_racing.sh runs/smoke --smoke     # minutes: shows that every step runs
#
# Stopped anywhere, the same line goes on.
set -euo pipefail
run=${1:?the run directory}
form=(--memory.residual --memory.num-events 0 --memory.no-clock
  --memory.batch-size 32 --memory.sequence-length 64 --memory.start-states 1000)
size=(--collect.episodes 800 --collect.policy dreamjax.game.car_racing:drive --collect.min-steps 25
  --vision.steps 3000 --memory.steps 5000 --memory.decay 0.9992 --memory.learning-rate 2e-3
  --memory.dropout 0 --learn.steps 5000000 --iterate.episodes 96 --iterate.memory-steps 2500)
judged=(--evaluate.episodes 100 --evaluate.baseline-episodes 100)
rounds=4
if [ "${2:-}" = --smoke ]; then
  rounds=1
  size=(--preset smoke --controller learn --iterate.episodes 4 --iterate.memory-steps 4)
  judged=(--evaluate.episodes 2 --evaluate.baseline-episodes 2)
fi
dreamjax iterate car-racing --run-dir "$run" "${form[@]}" "${size[@]}" --iterate.rounds "$rounds" \
  --evaluate.baseline-episodes 10
dreamjax evaluate car-racing --run-dir "$run/round-$rounds" "${judged[@]}"
dreamjax export --run-dir "$run/round-$rounds" --target "$run/world-to-ship"
