"""Makes a release folder, or a file for another framework, of a run's checkpoint or of any release.

python scripts/export_checkpoint.py --checkpoint=runs/bn_x5 --statistics=population --output=released/bn_x5
python scripts/export_checkpoint.py --checkpoint=released/bn_x5 --format=torch --output=bn_x5.pth
"""

import pathlib

from absl import flags

from bn_inception import command_line

_CHECKPOINT = command_line.define_path(
  "checkpoint", None, "Run directory, release folder, hf://user/name, or the file of a peer.", hub=True, required=True
)
_STEP = flags.DEFINE_integer("step", None, "Of a run: step of the checkpoint; the newest by default.")
_STATISTICS = flags.DEFINE_enum("statistics", "running", ["running", "population"], "Of a run: BN statistics to take.")
_DATA_DIR = command_line.define_path("data_dir", None, "Of a run: in place of its data.dir.")
_SYMBOL = command_line.define_path("symbol", None, "MXNet's -symbol.json; by default the one beside --checkpoint.")
_FORMAT = flags.DEFINE_enum(
  "format",
  "release",
  ["release", "torch", "bninception", "stablehlo", "savedmodel", "onnx"],
  "release: a folder. torch: a state dict, of pretrained-models.pytorch's bninception where that holds the network, "
  "else with torch_module.py and its config beside it. bninception: this or nothing. stablehlo: for jax.export. "
  "savedmodel: a folder for TensorFlow. onnx: needs pip install -e '.[onnx]'.",
)
_LICENSE = flags.DEFINE_string(
  "license", None, "Of a network of your own, as the Hugging Face Hub names it (cc-by-4.0), for the card of a release."
)
_NOTE = flags.DEFINE_string("note", None, "A line for the card of a release: what else its users must know.")
_OUTPUT = command_line.define_path("output", None, "Folder, or .pth, .onnx or .stablehlo file.", required=True)
for _name in ("license", "note"):
  flags.register_multi_flags_validator(
    [_name, "format"],
    lambda values, name=_name: values[name] is None or values["format"] == "release",
    f"Only a release folder states a {_name}: give --{_name} with --format=release.",
  )


def main() -> None:
  from bn_inception import release

  release.check_free(_OUTPUT.value)  # Before anything that takes long.
  exported = release.read(
    _CHECKPOINT.value, _SYMBOL.value, step=_STEP.value, statistics=_STATISTICS.value, data_dir=_DATA_DIR.value
  )
  if _LICENSE.value is not None:
    exported = release.with_license(exported, _LICENSE.value)
  if _NOTE.value is not None:
    exported = release.with_note(exported, _NOTE.value)
  release.FORMATS[_FORMAT.value](exported, pathlib.Path(_OUTPUT.value))
  print(
    f"{_OUTPUT.value}: {exported.config.release.source}, {exported.config.data.num_classes} classes, "
    f"{exported.config.release.statistics} statistics"
  )


if __name__ == "__main__":
  command_line.run(main)
