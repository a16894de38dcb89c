#!/usr/bin/env bash
# From a fresh clone to the report, on a CPU: DINO and three supervised networks trained on phantoms (synthetic scans),
# compared with the weights before training and with a random network.
#   bash launch/compare_phantoms.sh [options of evaluation/compare.py, e.g. --out report]
# About 15 minutes on two cores, install included. Networks that are already trained are kept: run it again to go on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
install_project

runs=runs/compare
mkdir -p "$runs"
threads=$((($(nproc) + 1) / 2)) # two trainings side by side

train() { # train NAME SCRIPT [options]
    local name=$1 && shift
    if [ -e "$runs/$name/export/config.json" ] && [ -e "$runs/$name/finished" ]; then return; fi
    echo "training $name (log: $runs/$name.log)"
    accelerate launch --config_file launch/cpu.yaml --num_cpu_threads_per_process "$threads" \
        "$@" --out "$runs/$name" >"$runs/$name.log" 2>&1 || { tail -n 3 "$runs/$name.log" >&2; return 1; }
    if [ -e "$runs/$name/stopped" ]; then echo "$runs/$name was stopped; run this again to go on" >&2; return 1; fi
    touch "$runs/$name/finished"
}

train dino dino_oct/train.py &
dino=$!
# fewer epochs than the presets: enough for a comparison that ends today
train vit supervised/train.py --config configs/supervised/phantoms_vit.yaml --optim.epochs 10
train convnext supervised/train.py --config configs/supervised/phantoms_convnext.yaml --optim.epochs 16
train resnet supervised/train.py --config configs/supervised/phantoms_resnet.yaml --optim.epochs 3
wait "$dino"

python evaluation/compare.py --model "$runs/dino" "$runs/dino/checkpoints/start" random:test_vit \
    "$runs/vit" "$runs/convnext" "$runs/resnet" "$@"
