#!/usr/bin/env bash
# The like of the shipped world take-cover, from nothing: recordings, V, M and C, then three rounds in
# which C plays and M learns from its play; at last a folder to hand on.
#
#   experiments/recipes/take_cover.sh runs/recipe            # 133 minutes on 2 cores (AVX512-BF16)
#   experiments/recipes/take_cover.sh runs/smoke --smoke     # minutes: shows that every step runs
#
# Measured at 22e5563: 1227 ± 622 (n = 300, games of seed 36; random 205, blind 724). The shipped world
# had twice the recordings, a V of 51,000 batches and 15 times C's steps, and makes 1628.
# Stopped anywhere, the same line goes on.
set -euo pipefail
run=${1:?the run directory}
size=(--preset cpu --vision.reader-weight 10 --memory.own-guesses 0 --memory.clock True --memory.residual False)
judged=(--evaluate.episodes 300 --evaluate.baseline-episodes 300)
rounds=3
if [ "${2:-}" = --smoke ]; then
  rounds=1
  size=(--preset smoke --vision.reader-weight 10 --memory.start-states 20 --memory.num-events 4 --memory.clock True
    --controller learn --iterate.rounds "$rounds" --iterate.episodes 4 --iterate.memory-steps 4)
  judged=(--evaluate.episodes 2 --evaluate.baseline-episodes 2)
fi
dreamjax iterate take-cover --run-dir "$run" "${size[@]}" --evaluate.baseline-episodes 10
dreamjax evaluate take-cover --run-dir "$run/round-$rounds" --seed 36 "${judged[@]}"
dreamjax export --run-dir "$run/round-$rounds" --target "$run/world-to-ship"
