"""Draws runs side by side: python scripts/compare.py --workdirs=runs/inception,runs/bn_x5 --output=compare.png"""

import pathlib

from bn_inception import command_line

_WORKDIRS = command_line.define_path(
  "workdirs", None, "Run directories; their last parts name the curves.", several=True, required=True
)
_OUTPUT = command_line.define_path("output", None, "The picture to write, a .png file.", required=True)


def main() -> None:
  from bn_inception import curves

  print(curves.compare([pathlib.Path(workdir) for workdir in _WORKDIRS.value], pathlib.Path(_OUTPUT.value)))


if __name__ == "__main__":
  command_line.run(main)
