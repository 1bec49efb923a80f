"""Measures the host's input pipeline beside others: python scripts/benchmark_input.py --data_dir=DIR [--json=FILE]"""

from absl import flags

from bn_inception import command_line
from bn_inception.configs import inception

_DATA_DIR = command_line.define_path("data_dir", None, "TFDS data_dir with imagenet2012 prepared.", required=True)
_RECORDS = flags.DEFINE_integer("records", 5_000, "Records of the training split to use at most.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images in a batch.", lower_bound=1)
_JSON = command_line.define_path("json", None, "File for the result.")


def main() -> None:
  from bn_inception.tools.benchmark_input import benchmark

  config = inception.get_config("imagenet")
  config.data.dir, config.data.shuffle = _DATA_DIR.value, "global"
  benchmark(config, max_records=_RECORDS.value, batch_size=_BATCH_SIZE.value, json_path=_JSON.value)


if __name__ == "__main__":
  command_line.run(main)
