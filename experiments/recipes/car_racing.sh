#!/usr/bin/env bash
# The shipped world car-racing, from nothing: recordings of drivers of every skill, V, M and C, then
# rounds in which C drives and M learns from its driving; at last a C that learns in the world as it
# is handed on, in half precision.
#
#   experiments/recipes/car_racing.sh runs/recipe            # 3 to 4 hours on 2 cores
#   experiments/recipes/car_racing.sh runs/smoke --smoke     # minutes: shows that every step runs
#
# Stopped anywhere, the same line goes on.
set -euo pipefail
run=${1:?the run directory}
form=(--seed 71 --memory.residual True --memory.num-events 0 --memory.clock False --memory.own-guesses 0.25
  --memory.dropout 0.05 --dream.temperature 1 --dream.dropout 0)
learnt=(--learn.steps 8000000)
size=(--collect.episodes 700 --vision.steps 4000
  --memory.steps 8000 --memory.batch-size 64 --memory.sequence-length 64
  --memory.learning-rate 3e-3 --memory.decay 0.9995 --memory.start-states 3000
  "${learnt[@]}" --iterate.episodes 96 --iterate.memory-steps 2500)
judged=(--evaluate.episodes 100 --evaluate.baseline-episodes 100)
rounds=5
if [ "${2:-}" = --smoke ]; then
  rounds=1
  learnt=(--preset smoke)
  size=(--preset smoke --controller learn --collect.policy habits
    --iterate.episodes 4 --iterate.memory-steps 4)
  judged=(--evaluate.episodes 2 --evaluate.baseline-episodes 2)
fi
dreamjax iterate car-racing --run-dir "$run" "${form[@]}" "${size[@]}" --iterate.rounds "$rounds" \
  --evaluate.episodes 40 --evaluate.baseline-episodes 10
dreamjax export --run-dir "$run/round-$rounds" --target "$run/rounded"
dreamjax learn car-racing --world "$run/rounded" --run-dir "$run/player" "${learnt[@]}"
dreamjax evaluate car-racing --run-dir "$run/player" "${judged[@]}"
dreamjax export --run-dir "$run/player" --target "$run/world-to-ship"
