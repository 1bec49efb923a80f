"""Prepares a data set as ArrayRecord: downloaded by TFDS, or from a --source.

The source is a folder with the archives of ImageNet, a data_dir with TFRecord files, or a folder of images.

python scripts/prepare_data.py --dataset=cifar10 --data_dir=/data/tfds
python scripts/prepare_data.py --source=ARCHIVES --data_dir=/data/tfds
python scripts/prepare_data.py --source=FOLDER --dataset=flowers --data_dir=/data/tfds --holdout=0.2 --seed=0
  FOLDER: a folder for each class with its images; or train, validation, test with such folders in them.
"""

import pathlib
import signal
import sys

from absl import flags

from bn_inception import command_line

_SOURCE = command_line.define_path(
  "source",
  None,
  "Folder with the ILSVRC2012 archives (that for validation is enough for evaluation), a TFDS data_dir "
  "with TFRecord files, or a folder of images. Without it TFDS downloads --dataset.",
)
_DATA_DIR = command_line.define_path("data_dir", None, "TFDS data_dir for the result.", required=True)
_DATASET = flags.DEFINE_string("dataset", "imagenet2012", "NAME[/CONFIG][:VERSION] of the data set.")
_HOLDOUT = flags.DEFINE_float(
  "holdout",
  None,
  "Part of each class of a folder without splits that is for validation; 0.2 by default.",
  lower_bound=1e-6,
  upper_bound=1 - 1e-6,
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the choice of these.", lower_bound=0)
_ON_ERROR = flags.DEFINE_enum("on_error", "fail", ["fail", "skip"], "What to do with images that cannot be read.")


def main() -> int:
  from bn_inception.data import preparation

  # As Ctrl-C: what is half written is removed.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    preparation.prepare(
      pathlib.Path(_SOURCE.value) if _SOURCE.value else None,
      pathlib.Path(_DATA_DIR.value),
      _DATASET.value,
      holdout=_HOLDOUT.value,
      seed=_SEED.value,
      on_error=_ON_ERROR.value,
    )
  except KeyboardInterrupt:
    print("\nInterrupted. What is finished is kept: the same command goes on.", file=sys.stderr)
    return 130
  return 0


if __name__ == "__main__":
  command_line.run(main)
