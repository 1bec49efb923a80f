"""What a user gives as a path: URLs are refused before anything is made, ~ is the home."""

import os
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from bn_inception import errors, evaluate, paths, release, train
from bn_inception.configs import mnist
from bn_inception.data import datasets
from bn_inception.reproduction import execution


@pytest.mark.parametrize(
  "path",
  [
    "gs://bucket/x",
    "s3://x",
    "hdfs://node:8020/x",
    "file:///x",
    "file:/x",
    "abfss://a@b/x",
    "HTTPS://host/x",
    "",
    " ",
    "a\0b",
    "~there-is-no-such-user/x",
  ],
)
def test_what_is_no_path_is_refused_by_every_entry(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = mnist.get_config("bn,quickstart")
  for call in (
    lambda: paths.local(path, "--x"),
    lambda: train.train_and_evaluate(config, path),
    lambda: evaluate.evaluate_run(path),
    lambda: evaluate.evaluate_checkpoints([path]),
    lambda: release.read(path),
    lambda: release.check_free(path),
    lambda: release.from_run(path),
    lambda: execution.reproduce("figure1", path, scale="quickstart", dry_run=True),
  ):
    with pytest.raises(errors.UserError):
      call()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["a/b", "/a/b", "./a:b", "C:x", "x.py:imagenet", "año/ñ", "a b", "-"])
def test_a_path_stays_as_it_is(path):
  assert paths.local(path, "--x") == path
  assert paths.local(pathlib.Path(path), "--x") == str(pathlib.Path(path))


def test_the_home_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert paths.local("~/x", "--x") == str(tmp_path / "x") and paths.local("~", "--x") == str(tmp_path)
  assert paths.local("x/~", "--x") == "x/~"


def test_the_environments_data_dir_is_checked_as_the_configs(monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/tfds")
  with pytest.raises(datasets.DataError, match=r"\$TFDS_DATA_DIR 'gs://bucket/tfds' is a URL"):
    datasets.open_split(ConfigDict({"name": "digits", "dir": ""}), "train")
  with pytest.raises(datasets.DataError, match="data.dir 's3://b' is a URL"):
    datasets.open_split(ConfigDict({"name": "digits", "dir": "s3://b"}), "train")


SCRIPTS = sorted(path.stem for path in (pathlib.Path(__file__).parent.parent / "scripts").glob("*.py"))


def test_the_table_of_runs_takes_paths_as_all_scripts(repository):
  result = subprocess.run(
    [sys.executable, "scripts/status.py", "gs://runs"],
    cwd=repository,
    capture_output=True,
    env=os.environ | {"PYTHONPATH": str(repository)},
    text=True,
    check=False,
  )
  assert result.returncode == 2 and "A run 'gs://runs' is a URL" in result.stderr


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "status"])  # Which has no flags.
def test_every_flag_that_is_a_path_is_treated(script, repository, tmp_path):
  """By what the flags are called, so that no script makes an exception."""
  program = (
    "import runpy, sys; from absl import flags; from bn_inception import command_line\n"
    f"command_line.run = lambda *_, **__: None; runpy.run_path('scripts/{script}.py', run_name='__main__')\n"
    "names = {'workdir', 'workdirs', 'output', 'data_dir', 'checkpoint', 'source', 'symbol', 'labels', 'json'}\n"
    "for name in names & set(flags.FLAGS):\n"
    "  print(name, flags.FLAGS[name].parser.parse('~/x'))\n"
    "  try: flags.FLAGS[name].parser.parse('gs://x')\n"
    "  except ValueError: continue\n"
    "  sys.exit(name)"
  )
  result = subprocess.run(
    [sys.executable, "-c", program],
    cwd=repository,
    capture_output=True,
    text=True,
    env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(repository)},
    check=False,
  )
  assert result.returncode == 0, result.stderr
  assert all(str(tmp_path / "x") in line for line in result.stdout.splitlines()), result.stdout


def test_a_config_file_in_the_home_is_read(repository, tmp_path):
  (tmp_path / "own.py").write_text("from bn_inception.configs import mnist\nget_config = mnist.get_config\n")
  result = subprocess.run(
    [sys.executable, "scripts/describe.py", "--config=~/own.py:bn"],
    cwd=repository,
    env=os.environ | {"HOME": str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0 and "trainable parameters" in result.stdout, result.stderr


@pytest.mark.parametrize(
  "words, sentence",
  [
    (["--workdir=gs://x/y", "--config=bn_x5"], "--workdir 'gs://x/y' is a URL"),
    (["--workdir="], "--workdir is empty"),
    (["--config=s3://x.py", "--workdir=x"], "--config 's3://x.py' is a URL"),
  ],
)
def test_the_sentence_names_the_flag_once(repository, words, sentence):
  result = subprocess.run(
    [sys.executable, "scripts/train.py", *words], cwd=repository, capture_output=True, text=True, check=False
  )
  assert result.returncode == 2
  assert result.stderr.strip().startswith(f"train.py: {sentence}"), result.stderr
