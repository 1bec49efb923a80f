#!/usr/bin/env bash
# One run as several processes on this machine, each with some virtual CPU devices: a rehearsal of a cluster.
#
#   scripts/launch/local_processes.sh 2 2 --config=configs/mnist.py:bn,quickstart --workdir=runs/rehearsal \
#     --config.batch_size=64 --config.batch_norm.group_size=32 --config.eval.batch_size=64
#
# Ctrl-C and SIGTERM are passed on to all processes. A second signal ends all processes. When one process fails, the
# other processes are ended after GRACE seconds (60). The exit code is that of the first process whose code is not 0.
set -u
processes=$1 devices=$2
shift 2
python=${PYTHON:-.venv/bin/python}
# Set before the first process starts: a signal that comes early ends the processes that there are, and no more start.
asked=
stop() {
  if [ -z "$asked" ]; then kill -TERM $(jobs -p); else kill -KILL $(jobs -p); fi 2> /dev/null
  asked=yes
}
trap stop TERM INT

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') || exit
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices PYTHONUNBUFFERED=1

pids=()
for ((process = 0; process < processes; process++)); do
  if [ -n "$asked" ]; then break; fi
  command=("$python" scripts/train.py --coordinator="127.0.0.1:$port" --processes="$processes"
           --process_id="$process" "$@")
  if [ "$process" -eq 0 ]; then
    "${command[@]}" &
  else  # The lines of the other processes carry the number of their process.
    "${command[@]}" > >(sed -u "s/^/[process $process] /") 2> >(sed -u "s/^/[process $process] /" >&2) &
  fi
  pids+=($!)
done

# The processes are looked at in turn, as the bash of macOS cannot wait for whichever ends first.
code=0 ended=0
if [ "${#pids[@]}" -eq 0 ]; then code=143; fi  # It was asked to stop.
while [ "${#pids[@]}" -gt 0 ]; do
  sleep 0.2
  left=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2> /dev/null; then
      left+=("$pid")
    else
      wait "$pid"
      result=$?
      if [ "$code" -eq 0 ] && [ "$result" -ne 0 ]; then code=$result ended=$SECONDS; fi
    fi
  done
  pids=(${left[@]+"${left[@]}"})
  if [ "$code" -ne 0 ] && [ $((SECONDS - ended)) -ge "${GRACE:-60}" ]; then kill -KILL "${pids[@]}" 2> /dev/null; fi
done
exit "$code"
