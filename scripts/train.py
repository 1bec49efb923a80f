"""Trains a config: python scripts/train.py --config=configs/bn_x5.py:quickstart --workdir=runs/quickstart"""

from absl import flags
from ml_collections import config_flags

from bn_inception import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and its scale: configs/bn_x5.py:imagenet.")
_WORKDIR = command_line.define_path("workdir", None, "Run directory; the same one resumes a run.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
  from bn_inception.train import train_and_evaluate
  summary = train_and_evaluate(_CONFIG.value, _WORKDIR.value)
  return 143 if summary["status"] == "preempted" else 0  # 128 + SIGTERM: the scheduler's sign to start it again.


if __name__ == "__main__":
  command_line.run(main)
