#!/usr/bin/env bash
# From a fresh clone to a trained and evaluated backbone on phantoms (synthetic scans), on a CPU, in minutes.
#   bash launch/quickstart.sh [options of dino_oct/train.py, e.g. --seed 1 --out runs/quickstart-1]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
install_project

run=runs/quickstart
for ((i = 1; i < $#; i++)); do
    if [ "${!i}" = --out ]; then j=$((i + 1)) && run="${!j}"; fi
done

accelerate launch --config_file launch/cpu.yaml --num_cpu_threads_per_process "$(nproc)" dino_oct/train.py "$@"
if [ -e "$run/stopped" ]; then echo "$run was stopped; run this again to go on" >&2; exit 1; fi
echo
python evaluation/knn.py --model "$run" --k 5 10
echo
python evaluation/localization.py --model "$run" --n 72
echo
echo "All of it beside the weights before training, as one page: python evaluation/compare.py --model $run $run/checkpoints/start"
echo "… and beside supervised networks:  bash launch/compare_phantoms.sh"
echo "Attention over training, per head: $run/attention/   (look with any image viewer)"
echo "Curves and images:                 tensorboard --logdir $run   (after: . .venv/bin/activate)"
