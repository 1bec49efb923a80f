"""Measures step and inference: python scripts/benchmark_step.py --config=configs/bn_x5.py:cifar10 [--against=torch]"""

from absl import flags
from ml_collections import config_flags

from bn_inception import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and its scale: configs/bn_x5.py:imagenet.")
_AGAINST = flags.DEFINE_string("against", None, "Measures another framework in turn: torch.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images in a batch; by default the config's.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of every program, a second or a step each.", lower_bound=1)
flags.mark_flags_as_required(["config"])


def main() -> None:
  from bn_inception.tools.benchmark_step import benchmark

  config = _CONFIG.value
  if _BATCH_SIZE.value:
    config.batch_size = _BATCH_SIZE.value
  print(benchmark(config, against=_AGAINST.value, rounds=_ROUNDS.value))


if __name__ == "__main__":
  command_line.run(main)
