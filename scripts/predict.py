"""Predicts image files.

Images that cannot be read are named and skipped, and then the exit code is 2.

python scripts/predict.py --checkpoint=released/bn_x5 --images=photographs,cat.jpg --output=classes.csv
"""

from absl import flags

from bn_inception import command_line, status

_CHECKPOINT = command_line.define_path(
  "checkpoint", None, "Run directory, release folder, hf://user/name, or the file of a peer.", hub=True, required=True
)
_IMAGES = command_line.define_path("images", None, "Files, and folders of images.", several=True, required=True)
_TOP = flags.DEFINE_integer("top", 5, "How many classes of each image.", lower_bound=1)
_FEATURES = flags.DEFINE_string("features", None, "Also these activations: pooled, inception_5b, ...")
_OUTPUT = command_line.define_path("output", None, "Table to write: .csv, .jsonl or .npz.", required=True)


def main() -> int:
  from bn_inception import predict

  skipped = predict.write_predictions(
    _CHECKPOINT.value, _IMAGES.value, _OUTPUT.value, top=_TOP.value, features=_FEATURES.value
  )
  return status.EXIT_BAD_INPUT if skipped else status.EXIT_DONE


if __name__ == "__main__":
  command_line.run(main)
