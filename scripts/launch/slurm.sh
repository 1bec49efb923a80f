#!/usr/bin/env bash
# One run on several GPU nodes under Slurm; a preempted or timed-out job is queued again and resumes by itself.
#
#   sbatch --nodes=4 scripts/launch/slurm.sh --config=configs/bn_x30.py:imagenet --workdir=/shared/runs/bn_x30 \
#     --config.batch_size=1024 --config.eval.batch_size=1024 --config.data.dir=/shared/tfds
#
#SBATCH --job-name=bn_inception
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM two minutes before the end, time to write a checkpoint.
#SBATCH --signal=TERM@120
set -u

srun .venv/bin/python scripts/train.py --cluster "$@"
code=$?
# 143 is a run that was asked to stop and saved.
if [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
