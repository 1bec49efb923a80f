"""What a config costs on a TPU that is not there:

python scripts/accelerator_cost.py --config=configs/bn_x5.py:imagenet --topology=v5e:4x4 --price=1.2
"""

from absl import flags
from ml_collections import config_flags

from bn_inception import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and its scale: configs/bn_x5.py:imagenet.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chips and how they are joined: v5e:4x4.")
_PRICE = flags.DEFINE_float("price", None, "Of a chip and hour, in any currency.", lower_bound=0)
_EVAL_EXAMPLES = flags.DEFINE_integer(
  "eval_examples", None, "Of the evaluation split, for data sets of your own.", lower_bound=1
)
_OUTPUT = command_line.define_path("output", None, "File for the numbers (JSON): results/accelerator_cost/NAME.json.")
flags.mark_flags_as_required(["config", "topology"])


def main() -> None:
  from bn_inception.tools import accelerator_cost

  name = config_flags.get_config_filename(flags.FLAGS["config"])
  print(
    accelerator_cost.report(_CONFIG.value, name, _TOPOLOGY.value, _PRICE.value, _EVAL_EXAMPLES.value, _OUTPUT.value)
  )


if __name__ == "__main__":
  command_line.run(main)
