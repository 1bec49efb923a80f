"""What the doctor finds: nothing in a sound setting, and each fault in a sentence."""

import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from bn_inception import state as state_lib
from bn_inception.configs import mnist
from bn_inception.data import pipeline
from bn_inception.tools import contact_sheet, doctor


@pytest.fixture(name="config")
def fixture_config(digits_dir, monkeypatch):
  monkeypatch.setattr(doctor, "_MEASURE_SECONDS", 0.2)
  config = mnist.get_config("bn,quickstart")
  config.data.dir, config.batch_size, config.batch_norm.group_size = digits_dir, 64, 64
  config.eval.batch_size = 64
  return config


def examine(config, tmp_path, capsys) -> tuple[bool, str]:
  sound = doctor.examine(config, tmp_path / "runs" / "new", tmp_path / "out" / "samples.png")
  assert not (tmp_path / "runs").exists()
  return sound, capsys.readouterr().out


def test_a_sound_setting_fits_on_a_page(config, tmp_path, capsys):
  sound, text = examine(config, tmp_path, capsys)
  assert sound and "Nothing stops this run." in text
  assert len(text.splitlines()) < 20 and max(map(len, text.splitlines())) < 200
  for words in (f"jax {jax.__version__}", "8 x ", "batch of 64", "4,000 train, 1,000 test, 10 classes"):
    assert words in text
  speeds = {
    name: float(re.search(rf"^{name} +([\d,.]+) images/s", text, re.M)[1].replace(",", ""))
    for name in ("Input", "Steps")
  }
  ratio = speeds["Input"] / speeds["Steps"]
  if ratio >= 1:
    assert f"the input is {ratio:.1f}x as fast" in text
  else:
    found = float(re.search(r"input-bound by ([\d.]+)x", text)[1])
    np.testing.assert_allclose(found, 1 / ratio, rtol=0.1)
  picture = np.asarray(Image.open(tmp_path / "out" / "samples.png").convert("L"))
  assert picture.min() == 0 and picture.max() == 255


def test_input_bound_is_said(capsys):
  findings = doctor.Findings([], [])
  doctor._compare(findings, 500.0, 900.0)  # pylint: disable=protected-access
  assert "input-bound by 1.8x" in capsys.readouterr().out
  assert "1.8x" in findings.warnings[0] and not findings.stops


def test_every_problem_is_found_at_once(config, tmp_path, capsys):
  config.batch_size, config.data.name = 60, "cifar10"
  sound, text = examine(config, tmp_path, capsys)
  assert not sound and "Nothing stops" not in text
  assert "batch_size of 60 examples does not divide over 8 devices" in text
  assert "'cifar10' is not prepared" in text and "prepare_data.py --dataset=cifar10" in text


def test_nothing_is_decoded_with_a_config_that_is_not_sound(config, tmp_path, capsys):
  config.data.update({"crop_aspect": (-1.0, 1.0), "cache": False})
  sound, text = examine(config, tmp_path, capsys)
  assert not sound and "data.crop_aspect is (-1.0, 1.0)" in text and "4,000 train" in text


def test_a_missing_file_and_a_full_disk_stop_a_run(config, digits_dir, tmp_path, capsys, monkeypatch):
  shutil.copytree(pathlib.Path(digits_dir) / "digits", tmp_path / "data" / "digits")
  (file,) = (tmp_path / "data" / "digits" / "1.0.0").glob("digits-train*")
  file.unlink()
  config.data.dir = str(tmp_path / "data")
  monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
  sound, text = examine(config, tmp_path, capsys)
  assert not sound and file.name in text
  assert "1 MB free, and checkpoints need" in text


def test_the_disk_needed_is_that_of_the_states(config, tmp_path, capsys):
  state = state_lib.TrainState(
    step=None,
    params=jax.ShapeDtypeStruct((5_000_000,), np.dtype("float32")),
    batch_stats={},
    opt_state=(),
    ema_params=None,
    sums=None,
  )
  doctor._disk(doctor.Findings([], []), config, state, tmp_path)  # pylint: disable=protected-access
  assert "80 MB for checkpoints of 20 MB, 3 kept and one being written" in capsys.readouterr().out


def test_the_sheet_shows_colours_and_gray(tmp_path):
  for channels, colour in ((3, (200, 30, 90)), (1, (77,))):
    images = np.broadcast_to(np.array(colour, np.uint8), (5, 20, 30, channels))
    contact_sheet.draw_labelled(images, list("abcde"), tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).reshape(-1, 3)
    expected = np.array(colour if channels == 3 else colour * 3)
    assert (np.abs(pixels.astype(int) - expected).max(axis=1) <= 1).mean() > 0.1


def test_the_sheet_is_what_the_contact_sheet_shows(config, tmp_path, monkeypatch):
  """With the distortions of the device, from the first position on, whatever the batch size."""
  config.data.photometric_strength, config.batch_size, config.batch_norm.group_size = 1.0, 8, 8
  drawn = []
  monkeypatch.setattr(contact_sheet, "draw_labelled", lambda images, *_: drawn.append(images))
  source = pipeline.open_source(config.data, "train")
  doctor._input(doctor.Findings([], []), config, source, tmp_path / "samples.png")  # pylint: disable=protected-access
  contact_sheet.draw(config, tmp_path / "sheet.png", images=32)
  sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
  cells = [sheet[top : top + 28, left : left + 28] for top in range(0, 128, 32) for left in range(0, 256, 32)]
  np.testing.assert_array_equal(drawn[0][..., 0], cells)
  stored = next(pipeline.train_batches(config.data, source, seed=config.seed, batch_size=32))["image"][0]
  assert np.abs(drawn[0].astype(int) - stored).mean() > 5


def test_the_versions_are_those_of_the_lock_of_this_python(capsys, monkeypatch):
  """requirements.txt has two locks. An environment of the other one is reported, one of the right one is not."""
  last, current = {"jax": "0.10.2", "flax": "0.12.8"}, {"jax": "0.12.0.1", "flax": "0.12.12"}
  own, other = (last, current) if sys.version_info < (3, 12) else (current, last)

  def warnings_with(versions):
    def version(name):
      if name not in versions:
        raise importlib.metadata.PackageNotFoundError(name)
      return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    findings = doctor.Findings([], [])
    doctor._versions(findings)
    return findings.warnings

  assert warnings_with(own) == []
  (warning,) = warnings_with(other)
  assert all(f"{name} {other[name]} ({own[name]})" in warning for name in own)


def test_a_place_that_is_no_folder_is_a_sentence(config, tmp_path):
  (tmp_path / "file").write_text("")
  findings = doctor.Findings([], [])
  doctor._disk(findings, config, None, tmp_path / "file" / "run")  # pylint: disable=protected-access
  images, positions = np.zeros((1, 28, 28, 1), np.uint8), np.zeros(1)
  doctor._samples(
    findings,
    config,
    images,
    ["0"],
    positions,  # pylint: disable=protected-access
    tmp_path / "file" / "samples.png",
  )
  assert f"{tmp_path / 'file'} is not a folder" in findings.stops[0]
  assert "samples.png cannot be written (" in findings.stops[1]


def test_the_exit_code(repository, tmp_path):
  result = subprocess.run(
    [
      sys.executable,
      "scripts/doctor.py",
      "--config=configs/bn_x5.py:quickstart",
      "--config.data.name=nothing",
      f"--config.data.dir={tmp_path}",
      "--config.batch_size=33",
      f"--workdir={tmp_path}",
    ],
    cwd=repository,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 2 and "Stops the run" in result.stdout and "Traceback" not in result.stderr
