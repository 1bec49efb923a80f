"""Trains a config. The same command resumes a run.

python scripts/train.py --config=configs/bn_x5.py:quickstart --workdir=runs/quickstart
python scripts/train.py --config=configs/bn_x5.py:cifar10 --workdir=runs/slow --config.learning_rate=0.02
"""

from absl import flags
from ml_collections import config_flags

from bn_inception import command_line, status

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and its scale: configs/bn_x5.py:imagenet.")
_WORKDIR = command_line.define_path("workdir", None, "Run directory; the same one resumes a run.")
_ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
  "allow_config_change", False, "Resume with another learning rate (schedule), L2, length or evaluation."
)
_PARAMETER_TABLE = flags.DEFINE_bool("parameter_table", False, "Print every parameter with its shape.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
  from bn_inception.train import train_and_evaluate

  summary = train_and_evaluate(
    _CONFIG.value,
    _WORKDIR.value,
    allow_config_change=_ALLOW_CONFIG_CHANGE.value,
    parameter_table=_PARAMETER_TABLE.value,
  )
  command_line.say_next(_WORKDIR.value, summary["status"])
  return status.OF_STATUS[summary["status"]]


if __name__ == "__main__":
  command_line.run(main, stops=True)
