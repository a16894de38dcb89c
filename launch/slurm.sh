#!/usr/bin/env bash
#SBATCH --job-name=dino-oct
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
#SBATCH --signal=USR1@180
# One task per GPU (keep --ntasks-per-node and --gpus-per-node equal). Three minutes before the time limit every task gets
# USR1: the trainer saves and ends, the job goes back into the queue, and there the same command goes on.
#   sbatch --nodes 2 launch/slurm.sh --config configs/vitb8_oct2017.yaml --data OCT2017 --out runs/vitb8
#   TRAINER=supervised/train.py sbatch launch/slurm.sh --model resnet50 --data OCT2017 --out runs/resnet50
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
. .venv/bin/activate

run=""
for ((i = 1; i < $#; i++)); do
    if [ "${!i}" = --out ]; then j=$((i + 1)) && run="${!j}"; fi
done
[ -n "$run" ] || { echo "error: give the run folder with --out, so that a requeued job finds it" >&2; exit 2; }

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-29500}
# accelerate reads these names; exec makes the trainer itself the task that SLURM signals.
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
    exec python "${TRAINER:-dino_oct/train.py}" "$@"' train "$@"

# The trainer leaves this file when a signal stopped it before the end.
if [ -e "$run/stopped" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
