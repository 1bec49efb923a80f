"""Why is a network good in training and bad in evaluation? Running averages beside population and batch statistics.

python scripts/diagnose.py --checkpoint=PATH --data_dir=DIR [--output=diagnosis.png]
  PATH: a run directory, a release folder, or a PyTorch, TensorFlow, MXNet or Caffe file. For any other Flax network:
  bn_inception.diagnose.diagnose.
"""

from absl import flags

from bn_inception import command_line

_CHECKPOINT = command_line.define_path("checkpoint", None, "The network.", hub=True, required=True)
_DATA_DIR = command_line.define_path("data_dir", None, "TFDS data_dir, in place of the network's own data.dir.")
_DATASET = flags.DEFINE_string("dataset", None, "NAME[/CONFIG][:VERSION], in place of the network's own data.name.")
_BATCHES = flags.DEFINE_integer("batches", 16, "Batches of each split.", lower_bound=2)
_OUTPUT = command_line.define_path("output", None, "Picture to write, a .png.")


def main() -> None:
  from bn_inception.tools import diagnose_checkpoint

  diagnose_checkpoint.diagnose_checkpoint(
    _CHECKPOINT.value, _OUTPUT.value, data_dir=_DATA_DIR.value, dataset=_DATASET.value, batches=_BATCHES.value
  )


if __name__ == "__main__":
  command_line.run(main)
