"""Trains a config with every combination of some values and seeds, and compares the runs.

The runs are made in WORKDIR/KEY=VALUE/.../seedN one after the other, those of the first seed first. The same command
makes what is missing and resumes what was cut. A run that diverges stops no other; if all diverge, the exit code is 3.

python scripts/sweep.py --config=bn_x5:quickstart --workdir=runs/sweep --set learning_rate=0.01,0.03 --seeds=3
python scripts/sweep.py --config=bn_x5:cifar10 --workdir=runs/grid --set batch_size=32,64 --set weight_decay=0,2e-5
sbatch --array=0-3 scripts/launch/slurm_array.sh scripts/sweep.py --count=4 ...: a GPU for each quarter of the runs
"""

from absl import flags
from ml_collections import config_flags

from bn_inception import command_line, status

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and its scale: configs/bn_x5.py:imagenet.")
_WORKDIR = command_line.define_path("workdir", None, "Folder that holds the runs.", required=True)
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE,VALUE,... of a key of the config; several make the grid.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of each combination, from the config's seed on.", lower_bound=1)
_INDEX = flags.DEFINE_integer("index", 0, "Which part of the runs, with --count.", lower_bound=0)
_COUNT = flags.DEFINE_integer("count", 1, "Parts that the runs are split into, one a machine.", lower_bound=1)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only say what would run, and how long.")
_TARGET = flags.DEFINE_float(
  "target", None, "Validation accuracy: the table has the steps to it.", lower_bound=0, upper_bound=1
)
flags.mark_flags_as_required(["config"])


def main() -> int:
  from bn_inception import sweep

  result = sweep.sweep(
    _CONFIG.value,
    _WORKDIR.value,
    _SET.value,
    seeds=_SEEDS.value,
    index=_INDEX.value,
    count=_COUNT.value,
    dry_run=_DRY_RUN.value,
    target=_TARGET.value,
  )
  return status.OF_STATUS.get(result, status.EXIT_DONE)


if __name__ == "__main__":
  command_line.run(main, stops=True)
