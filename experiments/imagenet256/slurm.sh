#!/bin/bash
# Trains on ImageNet's latents under SLURM until it is done: each time the limit nears, the run saves and queues again.
#   sbatch experiments/imagenet256/slurm.sh [flags of `fit`, but not --name or --runs]
#SBATCH --job-name=imagenet256
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

resume=()
if [[ -e runs/imagenet256/last.ckpt || -e runs/imagenet256/previous.ckpt ]]; then resume=(--ckpt_path last); fi

# srun does not take this over from the batch job. One process that fails ends the others, which would wait for it.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
srun --kill-on-bad-exit=1 python -m snapgen_pl fit --config experiments/imagenet256/pretrain.yaml \
    --trainer.num_nodes "${SLURM_JOB_NUM_NODES:-1}" --trainer.devices "${SLURM_NTASKS_PER_NODE:-1}" \
    ${resume[@]+"${resume[@]}"} "$@" &
training=$!

# SLURM tells this shell alone. A signal to srun would kill its processes; sent to the job's step, it has each finish
# its training step and save.
again= status=0
trap 'again=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM
while true; do
    wait "$training" && status=0 || status=$?
    kill -0 "$training" 2>/dev/null || break # else the signal ended the wait, not the training
done
if [[ $again && $status == 0 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
