#!/usr/bin/env bash
# One run on several GPU nodes under Slurm, one task a node with all its GPUs. From the root of the checkout:
#
#   sbatch --nodes=4 scripts/launch/slurm.sh --config=configs/bn_x30.py:pod --workdir=/shared/runs/bn_x30 \
#     --config.data.dir=/shared/tfds
#
# A preempted or timed-out job saves, is queued again and resumes. After a crash or the loss of a host the run starts
# again, at most MAX_RESTARTS times and only if it has got further since the crash before. After bad input or divergence
# the job ends. Each task has a log: logs/slurm-JOB-task0.out. docs/clusters/slurm.md has more.
#
#SBATCH --job-name=bn_inception
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# The tasks get SIGTERM three minutes before the end, which is time to write a checkpoint.
#SBATCH --signal=TERM@180
set -u
python=${PYTHON:-.venv/bin/python}
max_restarts=${MAX_RESTARTS:-10}
workdir=
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#--workdir=} ;; esac
done
: "${workdir:?give --workdir=FOLDER, in one word}"
# The shell leaves ~ in --workdir=~/runs as it is, and the program does not.
workdir=${workdir/#\~\//$HOME/}
logs=${LOGS:-logs}
mkdir -p "$logs" "$workdir"
log=$logs/slurm-$SLURM_JOB_ID
# srun does not take this value from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# A restarted run takes compiled programs from this cache.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$workdir/compilation_cache}

say() { echo "$(date '+%F %T')  $*"; }

saved_step() {
  "$python" -c 'import json, sys; status = json.load(open(sys.argv[1])); print(status.get("saved_step") or 0)' "$workdir/status.json" \
    2> /dev/null || echo 0
}

# Whether to start again after a crash. A file keeps the steps at which the run crashed over requeues.
may_restart() {
  local step crashes=$log-crashes
  step=$(saved_step)
  if [ "$(tail -n 1 "$crashes" 2> /dev/null)" = "$step" ]; then
    say "The run crashed twice at step $step: not started again."
    return 1
  elif [ "$(wc -l 2> /dev/null < "$crashes" || echo 0)" -ge "$max_restarts" ]; then
    say "The run crashed more than MAX_RESTARTS=$max_restarts times: not started again."
    return 1
  fi
  echo "$step" >> "$crashes"
}

requeue() {
  # scancel leaves this script time to get here.
  if scontrol show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING'; then
    say "$1: the job is queued again."
    scontrol requeue "$SLURM_JOB_ID"
  fi
}

# Slurm signals the tasks. A signal that reaches only this shell (sbatch --signal=B:...) is passed on to them.
stop() { scancel --signal=TERM "$SLURM_JOB_ID"; }
trap stop TERM INT

while true; do
  rm -f "$log-code"
  srun --kill-on-bad-exit=1 --open-mode=append --output="$log-task%t.out" \
    scripts/launch/task.sh "$log-code" "$python" scripts/train.py --cluster "$@" &
  # A trapped signal ends `wait`, not srun.
  until wait $!; code=$?; ! kill -0 $! 2> /dev/null; do :; done
  # If no task wrote its code, srun's own code counts: a task was killed together with its shell, or its node was lost.
  code=$(cat "$log-code" 2> /dev/null || echo "$code")
  case $code in
    0) say "Done." ;;
    2) say "The run cannot go on: the last lines of $log-task0.out say what to mend." ;;
    3) say "The run diverged, which another try would only repeat." ;;
    143) requeue "The run saved and stopped" ;;
    75) may_restart && requeue "The run is to be started again" ;;
    *) if may_restart; then
         say "A task ended with code $code at step $(saved_step): starting again."
         continue
       fi ;;
  esac
  exit "$code"
done
