"""Evaluates a checkpoint of a run: python scripts/evaluate.py --workdir=runs/quickstart [--step=400]"""

from absl import flags

from bn_inception import command_line

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest by default.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "In place of the run's data.dir.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "In place of the run's eval.batch_size.", lower_bound=1)
_POPULATION_BATCHES = flags.DEFINE_integer(
    "population_batches", None, "In place of the run's eval.population_batches.", lower_bound=1)


def main() -> None:
  from bn_inception.evaluate import evaluate_run
  evaluate_run(_WORKDIR.value, _STEP.value, data_dir=_DATA_DIR.value, batch_size=_BATCH_SIZE.value,
               population_batches=_POPULATION_BATCHES.value)


if __name__ == "__main__":
  command_line.run(main)
