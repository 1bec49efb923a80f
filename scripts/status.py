"""Shows how runs stand.

A folder that holds runs stands for all of them. A run that is "silent" calls itself running, but has written nothing
for a quarter of an hour: it was killed, or hangs.

python scripts/status.py --workdir=runs/bn_x5,runs/paper
"""

from bn_inception import command_line

_WORKDIR = command_line.define_path(
  "workdir", None, "Run directories, or folders that hold some.", several=True, required=True
)


def main() -> None:
  from bn_inception import run_table

  print(run_table.table(_WORKDIR.value))


if __name__ == "__main__":
  command_line.run(main)
