"""The command `bn-inception`: the scripts of this project, from any folder.

`bn-inception train --config=bn_x5:quickstart --workdir=runs/quickstart` is `python scripts/train.py` with these flags.
"""

import pathlib
import pkgutil
import runpy
import sys

import bn_inception


def main() -> None:
  """Runs the script that the first word names; without one that exists it lists the scripts, and the exit code is 2."""
  folders = [str(pathlib.Path(folder, "scripts")) for folder in bn_inception.__path__]
  names = sorted(module.name for module in pkgutil.iter_modules(folders))
  name = sys.argv[1] if len(sys.argv) > 1 else ""
  if name not in names:
    print(
      f"bn-inception: say which script runs, and its flags: {', '.join(names)}.\n"
      "bn-inception train --help tells the flags of train.",
      file=sys.stderr,
    )
    sys.exit(2)
  sys.argv[:2] = [f"bn-inception {name}"]
  runpy.run_module(f"bn_inception.scripts.{name}", run_name="__main__")


if __name__ == "__main__":
  main()
