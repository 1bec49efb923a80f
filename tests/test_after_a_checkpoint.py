"""docs/after_a_checkpoint.py from top to bottom, as a reader runs it. Slow: `make test-all`."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bn_inception import release


@pytest.mark.slow
def test_the_script_runs_and_its_network_is_as_accurate_as_it_says(repository, tmp_path):
  ours = ("CHECKPOINT", "PHOTOGRAPH", "FOLDER", "STEPS", "XLA_FLAGS")
  environment = {name: value for name, value in os.environ.items() if name not in ours}
  result = subprocess.run(
    [sys.executable, repository / "docs" / "after_a_checkpoint.py"],
    cwd=tmp_path,
    env=environment | {"PYTHONPATH": str(repository)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  here = tmp_path / "after_a_checkpoint"
  assert (here / "diagnosis.png").exists()
  assert (here / "tuned.onnx").exists() or "pip install -e '.[onnx]'" in result.stdout
  # Counted anew, of the files: they have the size of the network's images, so that none is resized or cropped.
  model, variables, preprocess = release.load(here / "tuned_release")
  labels = release.read(here / "tuned_release").labels
  files = sorted((here / "digits_5_to_9" / "validation").glob("*/*.png"))
  images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
  logits = model.apply(variables, preprocess(images), train=False)
  accuracy = np.mean([labels[output] == file.parent.name for output, file in zip(np.argmax(logits, -1), files)])
  assert len(files) == 500 and accuracy >= 0.8
  stated = float(result.stdout.rpartition("top-1 ")[2].partition("%")[0]) / 100
  assert abs(stated - accuracy) <= 0.002
