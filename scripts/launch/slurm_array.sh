#!/usr/bin/env bash
# The runs of a figure or of a sweep, split over the tasks of a Slurm job array. From the root of the checkout:
#
#   sbatch --array=0-3 scripts/launch/slurm_array.sh scripts/reproduce.py figure3 --count=4 \
#     --workdir=/shared/runs/paper --data_dir=/shared/tfds
#
# Each task makes every fourth run, with one GPU. A preempted or timed-out task saves, is queued again and goes on.
# Evaluations that wait for runs of other tasks are made when the same command is given again after the last task has
# ended. docs/clusters/slurm.md has more.
#
#SBATCH --job-name=bn_inception
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
set -u
: "${SLURM_ARRAY_TASK_ID:?give sbatch --array=0-N}"
case " $* " in
  *" --count="*) ;;
  *) echo "Give --count=N, the number of tasks of the whole array, also when only some of them are started again." >&2
     exit 2 ;;
esac
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

stop() { scancel --signal=TERM "$SLURM_JOB_ID"; }
trap stop TERM INT
srun "${PYTHON:-.venv/bin/python}" "$@" --index="$SLURM_ARRAY_TASK_ID" &
until wait $!; code=$?; ! kill -0 $! 2> /dev/null; do :; done
# 143: the task saved and stopped. 75: the fault may pass. After scancel the job is no longer running.
case $code in
  75 | 143) if scontrol show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING'; then
              scontrol requeue "$SLURM_JOB_ID"
            fi ;;
esac
exit "$code"
