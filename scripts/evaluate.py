"""Evaluates a run as its training does, or any network or ensemble of networks on any data set.

With --workdir the run's own evaluation is made again, with the statistics of its eval.statistics on the run's own
data. Nothing is written.

With --checkpoint=PATH[,PATH...] class probabilities are averaged over crops and networks. The prediction of each
example is written, and the same command resumes. A PATH may be a run directory too.

python scripts/evaluate.py --workdir=runs/quickstart --step=400
python scripts/evaluate.py --checkpoint=bn_inception-52deb4733.pth --data_dir=/data/tfds --crops=144
"""

from absl import flags

from bn_inception import command_line

_WORKDIR = command_line.define_path("workdir", None, "Run directory: the run's own evaluation again.")
_STEP = flags.DEFINE_integer("step", None, "With --workdir: step of the checkpoint; the newest by default.")
_POPULATION_BATCHES = flags.DEFINE_integer(
  "population_batches", None, "With --workdir: in place of the run's eval.population_batches.", lower_bound=1
)
_DATA_DIR = command_line.define_path("data_dir", None, "TFDS data_dir, in place of the network's own data.dir.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images that pass a network at a time.", lower_bound=1)

_CHECKPOINT = command_line.define_path(
  "checkpoint",
  None,
  "Run directories, release folders, hf://user/name, or files of peers; of more than one the ensemble.",
  several=True,
  hub=True,
)
_DATASET = flags.DEFINE_string(
  "dataset",
  None,
  "NAME[/CONFIG][:VERSION] in TFDS: imagenet2012, imagenet_v2, imagenet2012_real, ...; by default "
  "the one that the networks were made for.",
)
_SPLIT = flags.DEFINE_string("split", None, "By default validation or test.")
_CROPS = flags.DEFINE_enum("crops", "1", ["1", "10", "144"], "Crops of each image.")
_STATISTICS = flags.DEFINE_enum("statistics", "running", ["running", "population"], "BN statistics of run directories.")
_FOLDED = flags.DEFINE_bool("folded", False, "Fold BN into the convolutions: faster, the same to float32 rounding.")
_ON_ERROR = flags.DEFINE_enum("on_error", "fail", ["fail", "skip"], "What to do with a record that cannot be read.")
_OUTPUT = command_line.define_path("output", None, "Folder for the predictions; by default one in evaluations/.")
_OF_CHECKPOINT = ("dataset", "split", "crops", "statistics", "folded", "on_error", "output")
_OF_WORKDIR = ("step", "population_batches")


def main() -> None:
  command_line.one_of("workdir", _OF_WORKDIR, "checkpoint", _OF_CHECKPOINT)  # Before what takes seconds to import.

  from bn_inception import evaluate

  if _CHECKPOINT.value is None:
    evaluate.evaluate_run(
      _WORKDIR.value,
      _STEP.value,
      data_dir=_DATA_DIR.value,
      batch_size=_BATCH_SIZE.value,
      population_batches=_POPULATION_BATCHES.value,
    )
  else:
    evaluate.evaluate_checkpoints(
      _CHECKPOINT.value,
      _OUTPUT.value,
      data_dir=_DATA_DIR.value,
      dataset=_DATASET.value,
      split=_SPLIT.value,
      crops=int(_CROPS.value),
      batch_size=_BATCH_SIZE.value,
      statistics=_STATISTICS.value,
      folded=_FOLDED.value,
      on_error=_ON_ERROR.value,
    )


if __name__ == "__main__":
  command_line.run(main, stops=True)
