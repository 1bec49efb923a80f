"""Turns a released network into a release folder.

python scripts/import_checkpoint.py --checkpoint=bn_inception-52deb4733.pth --output=released/bn_inception
"""

import pathlib

from bn_inception import command_line

_CHECKPOINT = command_line.define_path(
  "checkpoint", None, "PyTorch, TensorFlow, MXNet or Caffe file, also as .xz.", required=True
)
_SYMBOL = command_line.define_path("symbol", None, "MXNet's -symbol.json; by default the one beside --checkpoint.")
_LABELS = command_line.define_path(
  "labels", None, "File with the name of each output, one a line; of ImageNet networks that are known it is not needed."
)
_OUTPUT = command_line.define_path("output", None, "Release folder to write.", required=True)


def main() -> None:
  from bn_inception import release

  release.check_free(_OUTPUT.value)  # Before anything that takes long.
  imported = release.read(_CHECKPOINT.value, _SYMBOL.value)
  if _LABELS.value:
    imported = release.with_labels(imported, _LABELS.value)
  release.write(imported, pathlib.Path(_OUTPUT.value))
  print(
    f"{_OUTPUT.value}: {imported.config.release.source}, {imported.config.data.num_classes} classes, "
    f"{'named' if imported.labels else 'whose names are not known (--labels=FILE gives them)'}"
  )


if __name__ == "__main__":
  command_line.run(main)
