#!/usr/bin/env bash
# The trainer under torchrun instead of accelerate launch; one process per GPU of this machine (or PROCESSES=N).
#   bash launch/torchrun.sh --config configs/vitb8_oct2017.yaml --data OCT2017 --out runs/vitb8
#   TRAINER=supervised/train.py bash launch/torchrun.sh --model resnet50 --data OCT2017 --out runs/resnet50
set -euo pipefail
cd "$(dirname "$0")/.."
processes=${PROCESSES:-$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)}
[ "$processes" -gt 0 ] || processes=1
exec torchrun --standalone --nproc-per-node "$processes" "${TRAINER:-dino_oct/train.py}" "$@"
