"""The contact sheet: every image of the batch in its place."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from bn_inception import config_checks
from bn_inception.configs import inception
from bn_inception.data import pipeline
from bn_inception.tools import contact_sheet


def test_images_of_the_training_stream_in_rows_of_eight(digits_dir: str, tmp_path: pathlib.Path) -> None:
  config = inception.get_config("quickstart")  # Without photometric distortions.
  config.data.dir = digits_dir
  contact_sheet.draw(config, tmp_path / "new" / "sheet.png", images=11)
  sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
  assert sheet.shape == (2 * 28 + 4, 8 * 28 + 7 * 4)
  source = pipeline.open_source(config.data, "train")
  images = next(pipeline.train_batches(config.data, source, seed=config.seed, batch_size=11))["image"][0, ..., 0]
  np.testing.assert_array_equal(sheet[:28, 32:60], images[1])
  np.testing.assert_array_equal(sheet[32:60, 64:92], images[10])
  assert (sheet[32:, 96:] == 255).all() and (sheet[:, 28:32] == 255).all()
  config.data.photometric_strength = 1.0
  contact_sheet.draw(config, tmp_path / "sheet.jpg", images=11)
  distorted = np.asarray(Image.open(tmp_path / "sheet.jpg"), float)
  assert distorted.shape[:2] == (60, 252)
  assert np.abs(distorted[:28, 32:60] - images[1]).mean() > 5
  with pytest.raises(config_checks.ConfigError, match="neither a .png nor a .jpg"):
    contact_sheet.draw(config, tmp_path / "sheet.gif")
