"""A release folder is loaded and a photograph classified with jax, flax, NumPy, safetensors and Pillow alone."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bn_inception import release
from tests.release import test_features
from tests.test_few_packages import FORBIDDEN

# What a user runs; the first argument says what must not be imported.
PROGRAM = """
import json, sys

class Forbid:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in json.loads(sys.argv[1]):
      raise ModuleNotFoundError(f"{name} is not to be imported here", name=name)

sys.meta_path.insert(0, Forbid())
import numpy as np
from PIL import Image
from bn_inception import release

model, variables, preprocess = release.load(sys.argv[2])
labels = release.read(sys.argv[2]).labels
logits = model.apply(variables, preprocess(np.asarray(Image.open(sys.argv[3]))[None, :, :, None]), train=False)
print(json.dumps([labels[int(logits[0].argmax())], logits[0].tolist()]))
"""
ALLOWED = ("safetensors",)
OTHERS = ("ml_collections", "optax")  # Of requirements.txt too, and needed to train.


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A release folder, a photograph and what the network says of it."""
  path = tmp_path_factory.mktemp("few")
  one = test_features.make_release(test_features.mnist.get_config("bn,quickstart").copy_and_resolve_references())
  one = one._replace(labels=tuple("abcdefghij"))
  release.write(one, path / "net")
  image = test_features.images_of(one)[0]
  Image.fromarray(image[..., 0]).save(path / "photograph.png")
  model, variables, preprocess = release.build(one)
  return path / "net", path / "photograph.png", np.asarray(model.apply(variables, preprocess(image[None]), train=False))


def run(python, repository, forbidden, folder, photograph):
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  result = subprocess.run(
    [python, "-c", PROGRAM, json.dumps(forbidden), folder, photograph],
    capture_output=True,
    cwd=folder.parent,
    env=environment | {"PYTHONPATH": str(repository)},
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout)


def test_loading_and_predicting_imports_no_other_package(repository, files):
  folder, photograph, expected = files
  label, logits = run(sys.executable, repository, [*(set(FORBIDDEN) - set(ALLOWED)), *OTHERS], folder, photograph)
  np.testing.assert_allclose(logits, expected[0], rtol=1e-5, atol=1e-5)
  assert label == "abcdefghij"[int(expected.argmax())]


@pytest.mark.slow
def test_in_an_environment_without_other_packages(repository, files, tmp_path):
  """As `pip install` makes it; flax brings what it depends on, but no ml_collections, TensorFlow or OpenCV."""
  subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
  names = ("jax", "flax", "numpy", "safetensors", "pillow")
  lines = (repository / "requirements.txt").read_text().splitlines()
  packages = [line for line in lines if line.partition("==")[0] in names]  # pip takes the lines of this Python.
  python = tmp_path / "venv" / "bin" / "python"
  installed = subprocess.run(
    [python, "-m", "pip", "install", "--quiet", *packages], capture_output=True, text=True, check=False
  )
  if installed.returncode:
    pytest.skip(f"needs a package index: {installed.stderr.strip().splitlines()[-1]}")
  names = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout.split()
  assert not {"ml_collections", "ml-collections", "tensorflow-cpu", "tensorflow"} & set(names)
  label, logits = run(python, repository, [], *files[:2])
  np.testing.assert_allclose(logits, files[2][0], rtol=1e-5, atol=1e-5)
