"""Prints the layers of a config's network: python scripts/describe.py --config=configs/bn_x5.py:imagenet"""

from absl import flags
from ml_collections import config_flags

from bn_inception import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and its scale: configs/bn_x5.py:imagenet.")
flags.mark_flags_as_required(["config"])


def main() -> None:
  from bn_inception import config_checks
  from bn_inception.tools import describe

  config_checks.check_config(_CONFIG.value, devices=1)
  print(describe.describe(_CONFIG.value))


if __name__ == "__main__":
  command_line.run(main)
