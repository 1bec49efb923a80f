"""Draws distorted training images: python scripts/contact_sheet.py --config=configs/inception.py --output=sheet.jpg"""

import pathlib

from absl import flags
from ml_collections import config_flags

from bn_inception import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and its scale: configs/bn_x5.py:imagenet.")
_OUTPUT = command_line.define_path("output", None, "The picture to write, a .png or .jpg file.")
_IMAGES = flags.DEFINE_integer("images", 64, "How many images.", lower_bound=1)
_QUALITY = flags.DEFINE_integer("quality", 80, "Of a JPEG.", lower_bound=1, upper_bound=100)
flags.mark_flags_as_required(["config", "output"])


def main() -> None:
  from bn_inception.tools import contact_sheet

  print(contact_sheet.draw(_CONFIG.value, pathlib.Path(_OUTPUT.value), images=_IMAGES.value, quality=_QUALITY.value))


if __name__ == "__main__":
  command_line.run(main)
