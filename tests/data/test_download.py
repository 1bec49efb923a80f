"""Data sets that TFDS downloads: from a server on this machine, which may also not answer as it should."""

import functools
import http.server
import json
import pathlib
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from bn_inception.data import preparation
from bn_inception.data.datasets import DataError, open_split

_EXAMPLES = [{"label": index % 3, "level": 10 * index} for index in range(9)]


class DownloadedGreys(tfds.core.GeneratorBasedBuilder):
  """Nine grey images, as a file on a server describes them."""

  VERSION = tfds.core.Version("1.2.3")
  url = ""

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(4, 4, 3)), "label": tfds.features.ClassLabel(num_classes=3)}
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(dl_manager.download(self.url))}

  def _generate_examples(self, path):
    for index, example in enumerate(json.loads(pathlib.Path(path).read_text())):
      yield index, {"image": np.full((4, 4, 3), example["level"], np.uint8), "label": example["label"]}


@pytest.fixture
def served(tmp_path, monkeypatch) -> pathlib.Path:
  """The file that the server hands out. TFDS trusts what a set without recorded checksums downloads."""
  folder = tmp_path / "served"
  folder.mkdir()
  (folder / "greys.json").write_text(json.dumps(_EXAMPLES))
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  monkeypatch.setattr(DownloadedGreys, "url", f"http://127.0.0.1:{server.server_port}/greys.json")
  yield folder / "greys.json"
  server.shutdown()
  server.server_close()


def test_a_set_is_downloaded_once_and_read_as_it_was_served(served, tmp_path):
  preparation.prepare(None, tmp_path / "data", "downloaded_greys")
  served.unlink()
  preparation.prepare(None, tmp_path / "data", "downloaded_greys:1.*.*")
  split = open_split(ConfigDict({"name": "downloaded_greys", "dir": str(tmp_path / "data")}), "train")
  assert (split.name, split.num_examples) == ("downloaded_greys:1.2.3", 9)
  read = tfds.builder("downloaded_greys", data_dir=tmp_path / "data").as_data_source("train")
  assert sorted((int(e["image"][0, 0, 0]), int(e["label"])) for e in read) == [
    (example["level"], example["label"]) for example in _EXAMPLES
  ]


def test_a_failed_download_is_one_sentence_and_the_same_call_goes_on(served, tmp_path):
  content = served.read_text()
  served.unlink()
  with pytest.raises(DataError, match="cannot prepare downloaded_greys .*404.* the same command goes on") as caught:
    preparation.prepare(None, tmp_path / "data", "downloaded_greys")
  assert "\n" not in str(caught.value)
  served.write_text(content)
  preparation.prepare(None, tmp_path / "data", "downloaded_greys")


@pytest.mark.parametrize(
  "name, sentence",
  [
    ("no_such_set", "TFDS has no data set 'no_such_set' .*choose one of"),
    ("downloaded_greys:9.0.0", "TFDS has no data set 'downloaded_greys:9.0.0' "),
    ("imagenet2012", "get the archives from .* and give their folder as --source"),
    ("", "TFDS has no data set '' "),
  ],
)
def test_what_cannot_be_downloaded_is_one_sentence(name, sentence, tmp_path):
  with pytest.raises(DataError, match=sentence) as caught:
    preparation.prepare(None, tmp_path / "data", name)
  assert "\n" not in str(caught.value)
