#!/usr/bin/env bash
# One run as several processes on this machine, each with some virtual CPU devices: a rehearsal of a cluster.
#
#   scripts/launch/local_processes.sh 2 2 --config=configs/mnist.py:bn,quickstart --workdir=runs/rehearsal \
#     --config.batch_size=64 --config.batch_norm.group_size=32 --config.eval.batch_size=64
set -euo pipefail
processes=$1 devices=$2
shift 2
python=${PYTHON:-.venv/bin/python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT INT TERM
for ((process = 1; process < processes; process++)); do
  "$python" scripts/train.py --coordinator="127.0.0.1:$port" --processes="$processes" --process_id="$process" "$@" \
    > /dev/null &
  pids+=($!)
done
"$python" scripts/train.py --coordinator="127.0.0.1:$port" --processes="$processes" --process_id=0 "$@"
wait
