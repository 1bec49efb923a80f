"""The recipes of docs/extending.md that need no new code in the project, carried out."""

import contextlib

import flax
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from bn_inception import release, train
from bn_inception.configs import mnist
from bn_inception.release import assemble, peers
from bn_inception.release.peers import format
from tests.release.test_features import images_of, make_release

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


def of_msgpack(path, content, beside) -> release.Release:
  """A checkpoint of Flax's own examples, `flax.serialization.to_bytes` of the variables of a network of §4.1."""
  tree = flax.serialization.msgpack_restore(content)
  tensors = flax.traverse_util.flatten_dict(tree, sep="/")
  config = mnist.get_config("bn,quickstart").copy_and_resolve_references()
  config.release = {"source": "Flax", "classes": "digits", "published": "none", "statistics": "running"}
  variables = assemble.assemble(
    tensors,
    config,
    source_name=lambda name: name,  # Both have Flax's names.
    layout=lambda name, shape: (shape, tuple(range(len(shape)))),
  )
  return release.Release(config, variables)


def test_another_checkpoint_format(tmp_path, monkeypatch):
  one = make_release(mnist.get_config("bn,quickstart").copy_and_resolve_references())
  path, cut = tmp_path / "net.msgpack", tmp_path / "cut.msgpack"
  path.write_bytes(flax.serialization.to_bytes(one.variables))
  with pytest.raises(release.ReleaseError, match="none of the formats that are known, PyTorch, .*Caffe"):
    release.read(path)

  recognises = lambda content: content.startswith(b"\x82")  # A map of two: params and batch_stats.
  row = format.Format("Flax", recognises, of_msgpack)
  monkeypatch.setattr(peers, "FORMATS", (*peers.FORMATS, row))
  model, variables, preprocess = release.load(path)
  jax.tree.map(np.testing.assert_array_equal, dict(variables), dict(one.variables))
  images = images_of(one)
  x = (images.reshape(2, -1) >= 128).astype(np.float64)
  params, statistics = one.variables["params"], one.variables["batch_stats"]
  for layer in ("1", "2", "3"):
    bn, running = params[f"bn{layer}"], statistics[f"bn{layer}"]
    x = x @ params[f"hidden{layer}"]["kernel"].astype(np.float64)
    x = bn["gamma"] * (x - running["mean"]) / np.sqrt(running["var"] + one.config.batch_norm.epsilon) + bn["beta"]
    x = 1 / (1 + np.exp(-x))
  expected = x @ params["logits"]["kernel"] + params["logits"]["bias"]
  logits = model.apply(variables, preprocess(images), train=False)
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)

  less = {**one.variables, "params": {name: node for name, node in params.items() if name != "logits"}}
  cut.write_bytes(flax.serialization.to_bytes(less))
  with pytest.raises(release.ReleaseError, match="cut.msgpack cannot be used: it lacks params/logits"):
    release.read(cut)
