#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU slice. Each host has this checkout, set up, in ~/bn_inception.
#
#   scripts/launch/tpu_pod.sh my-tpu us-central2-b --config=configs/bn_x30.py:pod --workdir=/mnt/filestore/runs/bn_x30
#
# On every host the run is a service of systemd, so the run does not end with this ssh session. systemd starts the run
# again, at most 10 times an hour, unless the run is done, its input is bad (2) or it diverged (3).
# "journalctl -u bn_inception" shows the log. "sudo systemctl stop bn_inception" on all hosts saves and stops the run.
# docs/clusters/tpu.md has more; this script has not been run.
set -euo pipefail
tpu=$1 zone=$2
shift 2
service=(
  sudo systemd-run --unit=bn_inception --collect
  --property=Restart=on-failure --property=RestartSec=10 "--property=RestartPreventExitStatus=2 3"
  --property=StartLimitIntervalSec=3600 --property=StartLimitBurst=10 --property=TimeoutStopSec=180
  --property=KillMode=mixed --setenv=PYTHONUNBUFFERED=1
)
gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command="cd ~/bn_inception && \
$(printf '%q ' "${service[@]}") --uid=\$(id -u) --working-directory=\$PWD \
--setenv=JAX_COMPILATION_CACHE_DIR=\$HOME/.cache/bn_inception \
\$PWD/.venv/bin/python scripts/train.py --cluster $(printf '%q ' "$@")"
