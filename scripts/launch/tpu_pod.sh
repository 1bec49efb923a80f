#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU slice, each of which has this checkout, set up, in ~/bn_inception.
#
#   scripts/launch/tpu_pod.sh my-tpu us-central2-b --config=configs/bn_x30.py:imagenet \
#     --workdir=/mnt/filestore/runs/bn_x30 --config.batch_size=1024 --config.eval.batch_size=1024
set -euo pipefail
tpu=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all \
  --command="cd ~/bn_inception && .venv/bin/python scripts/train.py --cluster $(printf '%q ' "$@")"
