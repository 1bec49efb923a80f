"""Looks over what a run needs before it starts: python scripts/doctor.py --config=configs/bn_x5.py:imagenet"""

import pathlib

from absl import flags
from ml_collections import config_flags

from bn_inception import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and its scale: configs/bn_x5.py:imagenet.")
_WORKDIR = command_line.define_path("workdir", "runs", "Where the run would write.")
_OUTPUT = command_line.define_path("output", None, "Picture of training examples; by default WORKDIR/samples.png.")
flags.mark_flags_as_required(["config"])


def main() -> int:
  from bn_inception.tools import doctor

  workdir = pathlib.Path(_WORKDIR.value)
  picture = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else workdir / "samples.png"
  return 0 if doctor.examine(_CONFIG.value, workdir, picture) else 2


if __name__ == "__main__":
  command_line.run(main)
