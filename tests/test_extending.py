"""The recipes of docs/extending.md that need no new code in the project, carried out."""

import contextlib

import jax
import numpy as np
import tensorflow_datasets as tfds

from bn_inception import train
from bn_inception.configs import mnist

SIDE, MEAN, STD = 12, (40.0,), (9.0,)


class Bands(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A data set of one's own: gray images of 12x12, a bright band that lies (class 0) or stands (class 1)."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(SIDE, SIDE, 1)),
      "label": tfds.features.ClassLabel(names=("lying", "standing")),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(0, 256), "test": self._generate_examples(1, 70)}

  def _generate_examples(self, seed, number):
    for index, (image, label) in enumerate(images(seed, number)):
      yield index, {"image": image, "label": label}


def images(seed: int, number: int):
  rng = np.random.default_rng(seed)
  for index in range(number):
    image = rng.integers(0, 80, (SIDE, SIDE, 1), np.uint8)
    place = rng.integers(2, SIDE - 5)
    image[place : place + 3] += 150
    yield (image.swapaxes(0, 1) if index % 2 else image), index % 2


def test_another_data_set_with_other_preprocessing(tmp_path):
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(None):
    Bands(data_dir=tmp_path).download_and_prepare(file_format="array_record")
  config = mnist.get_config("bn,quickstart")
  config.data.update(dict(dir=str(tmp_path), name="bands", num_classes=2, cache=False, binary=False))
  config.data.update(dict(image_size=8, eval_resize=SIDE, mean=MEAN, std=STD, crop_area=(0.5, 1.0), flip=True))
  config.batch_size = config.batch_norm.group_size = 32
  config.eval.batch_size, config.eval.statistics, config.eval.sigmoid_input_units = 64, ("running",), ()
  config.steps_per_call, config.num_steps = 1, 60
  config.log_every = config.eval_every = config.checkpoint_every = 60
  config.learning_rate = 0.5
  metrics = train.train_and_evaluate(config, tmp_path / "run", jax.devices()[:1])["metrics"]
  assert metrics["eval/count"] == 70 and metrics["eval/running/top1"] > 0.9
