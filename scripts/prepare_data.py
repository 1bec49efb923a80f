"""Prepares a data set as ArrayRecord: python scripts/prepare_data.py --source=ARCHIVES --data_dir=/data/tfds"""

import pathlib
import signal
import sys

from absl import flags

from bn_inception import command_line

_SOURCE = command_line.define_path(
    "source", None, "Folder with the ILSVRC2012 archives, or a TFDS data_dir with TFRecord files.", required=True)
_DATA_DIR = command_line.define_path("data_dir", None, "TFDS data_dir for the result.", required=True)
_NAME = flags.DEFINE_string("name", "imagenet2012", "NAME[/CONFIG][:VERSION] of the data set.")


def main() -> int:
  from bn_inception.data import preparation
  # As Ctrl-C: what is half written is removed.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    preparation.prepare(pathlib.Path(_SOURCE.value), pathlib.Path(_DATA_DIR.value), _NAME.value)
  except KeyboardInterrupt:
    print("\nInterrupted. What is finished is kept: the same command goes on.", file=sys.stderr)
    return 130
  return 0


if __name__ == "__main__":
  command_line.run(main)
