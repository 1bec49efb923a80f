"""Makes a figure or table of the paper, or the report of all that was made.

The first word says what: figure1, figure2, figure3, figure4, ablation, best_rate (networks with BN at the best rate of
their own sweep), precision (bfloat16 beside float32), sweep (of the learning rates behind them), archive (copies the
small files of finished runs), report (one page with every figure and claim beside the paper's, from run directories or
an archive). The same command resumes. Without --scale and --data_dir the embedded digits serve where the data set of
the figure is absent.

python scripts/reproduce.py figure1 --workdir=runs/paper --data_dir=/data/tfds
python scripts/reproduce.py figure3 --scale=cifar10 --seeds=3 --workdir=runs/paper --index=0 --count=4 --dry_run
python scripts/reproduce.py archive --workdir=runs/paper --output=results
python scripts/reproduce.py report --workdir=runs/paper
"""

from absl import flags

from bn_inception import command_line, status

_WORKDIR = command_line.define_path("workdir", None, "Where the runs are.", required=True)
_SCALE = flags.DEFINE_string("scale", None, "imagenet, cifar10, cifar10_full or quickstart; for figure1 mnist.")
_DATA_DIR = command_line.define_path(
  "data_dir", None, "TFDS data_dir; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."
)
_SEEDS = flags.DEFINE_integer(
  "seeds", None, "Runs of each experiment; by default 3, of figure4 and sweep 1.", lower_bound=1
)
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "In place of the configs' lengths.", lower_bound=1)
_INDEX = flags.DEFINE_integer("index", 0, "Which part of the runs, with --count.", lower_bound=0)
_COUNT = flags.DEFINE_integer("count", 1, "Parts that the runs are split into, one a machine.", lower_bound=1)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only say what would run, and how long.")
_OUTPUT = command_line.define_path("output", None, "Folder for the archive, or for the report; by default --workdir.")

WHAT = ("figure1", "figure2", "figure3", "figure4", "ablation", "best_rate", "precision", "sweep", "archive", "report")


def main(what: str) -> int:
  if what == "report":
    from bn_inception.reproduction import page

    print(page.write(_WORKDIR.value, _OUTPUT.value or _WORKDIR.value))
    return 0
  if what == "archive":
    from bn_inception.reproduction import archive

    print("\n".join(archive.archive(_WORKDIR.value, _OUTPUT.value or "results")))
    return 0
  from bn_inception.reproduction import execution

  result = execution.reproduce(
    what,
    _WORKDIR.value,
    scale=_SCALE.value,
    data_dir=_DATA_DIR.value or "",
    seeds=_SEEDS.value,
    num_steps=_NUM_STEPS.value,
    index=_INDEX.value,
    count=_COUNT.value,
    dry_run=_DRY_RUN.value,
  )
  return status.OF_STATUS.get(result, 0)


if __name__ == "__main__":
  command_line.run(main, choices=WHAT, stops=True)
