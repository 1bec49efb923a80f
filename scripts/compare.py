"""Compares runs in a table and in a picture of their curves.

Runs that differ in their seed alone are one row and one curve, whose band is one standard deviation over the seeds.
They are called by the values of their configs in which they differ. A folder that holds runs, or archived runs, stands
for all of them.

python scripts/compare.py --workdir=runs/inception,runs/bn_x5 --output=compare.png --target=0.9
"""

from absl import flags

from bn_inception import command_line

_WORKDIR = command_line.define_path(
  "workdir", None, "Run directories, or folders that hold some.", several=True, required=True
)
_OUTPUT = command_line.define_path("output", None, "The picture to write, a .png file; none by default.")
_TARGET = flags.DEFINE_float(
  "target", None, "Validation accuracy: the table has the steps to it.", lower_bound=0, upper_bound=1
)
_LOG_X = flags.DEFINE_bool("log_x", False, "Steps on a logarithmic axis.")


def main() -> None:
  from bn_inception import comparison

  print(comparison.compare(_WORKDIR.value, _OUTPUT.value, target=_TARGET.value, log_x=_LOG_X.value))


if __name__ == "__main__":
  command_line.run(main)
