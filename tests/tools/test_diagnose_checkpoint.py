"""The diagnosis of a checkpoint, from its file to the table and the picture."""

import logging

import numpy as np
import pytest
from PIL import Image

from bn_inception import diagnose, release
from bn_inception.configs import mnist
from bn_inception.tools import diagnose_checkpoint
from tests.release.test_features import make_release


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A release whose first two layers were never updated and whose third has statistics of nothing."""
  one = make_release(mnist.get_config("bn,quickstart").copy_and_resolve_references())
  one = one._replace(labels=tuple("9876543210"))
  for name in ("bn1", "bn2"):
    one.variables["batch_stats"][name] = {"mean": np.zeros(100, np.float32), "var": np.ones(100, np.float32)}
  path = tmp_path_factory.mktemp("diagnosis") / "net"
  release.write(one, path)
  return path


def test_a_release_folder_is_diagnosed(folder, digits_dir, tmp_path, caplog):
  with caplog.at_level(logging.INFO, "bn_inception"):
    found = diagnose_checkpoint.diagnose_checkpoint(
      str(folder), tmp_path / "picture.png", data_dir=digits_dir, batches=3
    )
  assert found.network_order == ["bn1", "bn2", "bn3"]
  assert {layer.path for layer in found.layers if layer.never_updated} == {"bn1", "bn2"}
  assert found.findings[0].startswith("2 of 3 BN layers were never updated") and found.findings[0] in caplog.text
  assert "3 training batches of 60 examples of digits:1.0.0, 3 of test" in caplog.text
  assert set(found.metrics) == {"training", "evaluation"}
  assert set(found.metrics["training"]["batch"]) == {"loss", "top-1"}
  assert min(np.asarray(Image.open(tmp_path / "picture.png")).shape[:2]) > 300


def test_a_batch_that_is_padded_is_left_out(folder, digits_dir, caplog):
  """Of the 1,000 digits 40 are left after 16 batches of 60."""
  with caplog.at_level(logging.INFO, "bn_inception"):
    diagnose_checkpoint.diagnose_checkpoint(str(folder), data_dir=digits_dir, batches=17)
  assert "17 training batches of 60 examples of digits:1.0.0, 16 of test." in caplog.text


def test_training_batches_have_the_distortions_of_training_and_evaluation_batches_have_none(
  folder, digits_dir, tmp_path
):
  plain, distorted = [], []
  for strength, losses in ((0.0, plain), (1.0, distorted)):
    one = release.read(folder)
    one.config.data.binary, one.config.data.photometric_strength = False, strength
    release.write(one, tmp_path / str(strength))
    found = diagnose_checkpoint.diagnose_checkpoint(str(tmp_path / str(strength)), data_dir=digits_dir, batches=2)
    losses += [found.metrics[name]["running"]["loss"] for name in ("training", "evaluation")]
  assert abs(plain[0] - distorted[0]) > 1e-4 and plain[1] == distorted[1]


def test_outputs_are_matched_with_classes_by_name(folder, digits_dir):
  """The labels of the release stand in reverse order: with its outputs reversed it has the same accuracy."""
  accuracy = lambda path: diagnose_checkpoint.diagnose_checkpoint(str(path), data_dir=digits_dir, batches=2).metrics[
    "evaluation"
  ]["batch"]["top-1"]
  one = release.read(folder)
  params = one.variables["params"]
  params["logits"] = {name: leaf[..., ::-1] for name, leaf in params["logits"].items()}
  release.write(one._replace(labels=one.labels[::-1]), folder.parent / "reversed")
  assert accuracy(folder) == accuracy(folder.parent / "reversed")


def test_a_network_without_batch_norm_is_a_sentence(tmp_path):
  release.write(make_release(mnist.get_config("plain,quickstart").copy_and_resolve_references()), tmp_path / "net")
  with pytest.raises(diagnose.DiagnosisError, match="has no BN layers"):
    diagnose_checkpoint.diagnose_checkpoint(str(tmp_path / "net"))
