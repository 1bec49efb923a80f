"""The hub's view of a release: metadata of the card, hf:// paths, and whose accuracy is shown."""

import fnmatch
import hashlib
import importlib
import re
import sys
import types

import pytest
import yaml

from bn_inception import release
from bn_inception.configs import mnist
from bn_inception.release import card, hub, loading
from tests.release.test_features import make_release

METRICS = {"top1": 0.905, "top5": 0.995, "loss": 0.4, "count": 1000, "data": "digits test", "command": "none"}


def front_matter(folder):
  """The YAML between the first two lines of dashes, as the hub reads it."""
  text = (folder / "README.md").read_text()
  _, block, rest = text.split("---\n", 2)
  assert text.startswith("---\n") and rest.lstrip().startswith("# ")
  return yaml.safe_load(block)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  """A release folder with metrics, laid out as in the hub's cache: its files are links."""
  path = tmp_path_factory.mktemp("hub")
  one = make_release(mnist.get_config("bn,quickstart").copy_and_resolve_references())
  release.write(one._replace(labels=tuple("0123456789"), metrics=METRICS), path / "net")
  snapshot = path / "snapshot"
  snapshot.mkdir()
  for file in (path / "net").iterdir():
    (snapshot / file.name).symlink_to(file)
  return snapshot


def test_metadata_of_own_networks(own):
  data = front_matter(own)
  assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
    "unknown",
    "bn-inception",
    "image-classification",
  )
  assert data["datasets"] == ["mnist"] and data["metrics"] == ["accuracy"] and "base_model" not in data
  (result,) = data["model-index"][0]["results"]
  assert result["task"]["type"] == "image-classification" and result["dataset"]["split"] == "test"
  assert [metric["value"] for metric in result["metrics"]] == [0.905, 0.995]
  assert all("1000 examples of digits test" in metric["name"] for metric in result["metrics"])


@pytest.mark.parametrize("network,title,tagged", [("bn_x5", "Inception-BN", True), ("inception", "Inception", False)])
def test_a_network_without_bn_is_not_called_one_with(network, title, tagged):
  config = importlib.import_module(f"bn_inception.configs.{network}").get_config("quickstart")
  text = card.card(make_release(config.copy_and_resolve_references()).config, (), None)
  assert f"\n# {title}: " in text
  assert ("- batch-normalization\n" in text) == tagged


def test_a_note_stands_on_the_card_and_stays(own, tmp_path):
  note = "The images were JPEG-compressed copies."
  release.write(release.with_note(release.read(own), f" {note}"), tmp_path / "noted")
  release.write(release.read(tmp_path / "noted"), tmp_path / "again")
  assert f"\n| note | {note} |\n" in (tmp_path / "again" / "README.md").read_text()
  assert "| note |" not in (own / "README.md").read_text()
  for wrong in ("", " ", "two | cells", "two\nlines"):
    with pytest.raises(release.ReleaseError, match="one line of text"):
      release.with_note(release.read(own), wrong)


def test_the_license_of_an_own_network_is_its_maker_s_to_state(own, tmp_path):
  released = release.read(own)
  release.write(release.with_license(released, "cc-by-4.0"), tmp_path / "licensed")
  assert front_matter(tmp_path / "licensed")["license"] == "cc-by-4.0"
  assert "License: cc-by-4.0." in (tmp_path / "licensed" / "README.md").read_text()
  release.write(release.read(tmp_path / "licensed"), tmp_path / "again")
  assert front_matter(tmp_path / "again")["license"] == "cc-by-4.0"
  for wrong in ("", "CC BY 4.0", "x\ny: z"):
    with pytest.raises(release.ReleaseError, match="no license as the hub names them"):
      release.with_license(released, wrong)
  released.config.release.base_model = "someone/network"
  with pytest.raises(release.ReleaseError, match="for its makers to state"):
    release.with_license(released, "mit")


def test_card_says_what_it_is_for_and_how_it_is_loaded(own):
  text = " ".join((own / "README.md").read_text().split())
  for words in (
    "## Intended use and limits",
    "not for decisions about",
    'release.load("this folder")',
    "hf://user/name",
    "License: not stated",
  ):
    assert words in text


@pytest.mark.parametrize("published", [False, True])
def test_published_accuracy_is_that_of_the_published_file(goldens, tmp_path, monkeypatch, published):
  path = tmp_path / "bn_inception-52deb4733.pth"
  path.symlink_to(goldens["torch"].path)
  digest = hashlib.sha256(loading.source_file.read(path)).hexdigest()
  if published:
    monkeypatch.setattr(loading, "_PUBLISHED_SHA256", (digest[:9],))
  one = release.read(path)
  text = one.config.release.published
  assert text.startswith("top-1 73.524 %") == published
  if not published:
    assert text.startswith(
      f"none for this file, its name says SHA-256 52deb4733 and its content has {digest[:9]}; the "
      "same architecture as one with top-1 73.524 %"
    )
    path = tmp_path / f"bn_inception-{digest[:8]}.pth"
    path.symlink_to(goldens["torch"].path)
    text = release.read(path).config.release.published
    assert text.startswith("none for this file, it is not known to be the published one; the same architecture as")
  release.write(one, tmp_path / "net")
  data = front_matter(tmp_path / "net")
  assert ("model-index" in data) == published and data["license"] == "bsd-3-clause"
  assert data["base_model"] == "Cadene/pretrained-models.pytorch" and data["datasets"] == ["imagenet-1k"]
  if published:
    values = [metric["value"] for metric in data["model-index"][0]["results"][0]["metrics"]]
    assert values == [0.73524, 0.91562]


def test_the_published_files_are_those_whose_address_the_documentation_gives(repository):
  """PyTorch's habit: the digits behind the last hyphen begin the SHA-256 of the content."""
  text = (repository / "docs" / "released_networks.md").read_text()
  row = next(line for line in text.splitlines() if "73.524" in line and line.startswith("|"))
  names = re.findall(r"`[^`]*?([\w-]+-([0-9a-f]{8,})\.pth)`", row)
  assert loading._PUBLISHED_SHA256 == (names[0][1],)  # The first address; the others are of other weights.


def test_a_path_on_the_hub_is_its_snapshot_here(own, tmp_path, monkeypatch):
  """The hub has other files too, and gives those that are asked for."""
  asked = []

  def snapshot_download(repository, *, revision, allow_patterns):
    asked.append((repository, revision))
    snapshot = tmp_path / str(len(asked))
    snapshot.mkdir()
    for name in [path.name for path in own.iterdir()] + ["pytorch_model.bin"]:
      if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
        (snapshot / name).symlink_to(own / name)
    return str(snapshot)

  monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
  model, variables, preprocess = release.load("hf://user/net-1.0")
  assert model.num_classes == 10 and release.read("hf://user/net@v2").metrics == METRICS
  assert asked == [("user/net-1.0", None), ("user/net", "v2")]
  assert {path.name for path in (tmp_path / "1").iterdir()} == {path.name for path in own.iterdir()}


@pytest.mark.parametrize("path", ["hf://", "hf://name", "hf://a/b/c", "hf://a/b@", "hf://../../etc"])
def test_what_is_no_repository_is_a_sentence(path):
  with pytest.raises(release.ReleaseError, match="names no repository: give hf://user/name"):
    release.read(path)


def test_hub_that_fails_or_is_not_installed_is_a_sentence(monkeypatch):
  def fail(*_, **__):
    raise OSError("no such repository\nmore lines")

  monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=fail))
  with pytest.raises(release.ReleaseError, match=r"^hf://a/b cannot be downloaded \(OSError: no such repository\)\.$"):
    release.read("hf://a/b")
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(release.ReleaseError, match=r"pip install -e '\.\[hub\]'\.$"):
    release.read("hf://a/b")


@pytest.mark.onnx
def test_the_hubs_own_package_finds_a_snapshot_in_its_cache(own, tmp_path, monkeypatch):
  """Its cache as it lays it out; without a connection."""
  huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: make test-optional")
  commit, repository = "0" * 40, tmp_path / "models--user--net"
  (repository / "refs").mkdir(parents=True)
  (repository / "refs" / "main").write_text(commit)
  (repository / "snapshots").mkdir()
  (repository / "snapshots" / commit).symlink_to(own)
  constants = importlib.import_module("huggingface_hub.constants")  # The package has it only once it is imported.
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  assert hub.local_path("hf://user/net").samefile(own)
  card = huggingface_hub.ModelCard((own / "README.md").read_text())
  assert card.data.library_name == "bn-inception" and card.data.eval_results[0].metric_value == 0.905
