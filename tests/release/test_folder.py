"""The release folder: round trips are exact, damage is one sentence, the script ends as it should."""

import json
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from bn_inception import release
from tests.release.test_readers import Evil, as_legacy


@pytest.fixture(scope="module", params=["torch", "tensorflow", "mxnet"])
def golden(request, goldens):
  return goldens[request.param]


@pytest.fixture(scope="module")
def imported(golden):
  return release.read(golden.path)


@pytest.fixture(scope="module")
def folder(imported, tmp_path_factory):
  path = tmp_path_factory.mktemp("releases") / "inner" / "net"
  release.write(imported, path)
  return path


@pytest.fixture(scope="module")
def one_folder(goldens, tmp_path_factory):
  path = tmp_path_factory.mktemp("releases") / "net"
  release.write(release.read(goldens["tensorflow"].path), path)
  return path


@pytest.fixture
def copy(one_folder, tmp_path):
  """A release to be damaged; its weights are linked, not copied."""
  for path in one_folder.iterdir():
    (tmp_path / path.name).symlink_to(path)
  return tmp_path


def replace(path, content):
  path.unlink()
  path.write_bytes(content)


def test_round_trip_is_exact(imported, folder):
  again = release.read(folder)
  assert (again.labels, again.metrics, again.torch_layout) == (imported.labels, None, imported.torch_layout)
  assert json.loads(again.config.to_json()) == json.loads(imported.config.to_json())
  assert jax.tree.structure(again.variables) == jax.tree.structure(imported.variables)
  for actual, expected in zip(jax.tree.leaves(again.variables), jax.tree.leaves(imported.variables), strict=True):
    assert actual.dtype == expected.dtype and actual.tobytes() == expected.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("folded", [False, True])
def test_logits_of_the_folder_are_those_of_the_file_bit_for_bit(golden, folder, images, folded):
  logits = []
  for path in (golden.path, folder):
    model, variables, preprocess = release.load(path, folded=folded)
    run = jax.jit(lambda variables, images: model.apply(variables, preprocess(images), train=False))
    logits.append(np.asarray(run(variables, images[:2])))
  np.testing.assert_array_equal(*logits)


def test_folder_holds_its_files_and_nothing_is_left_beside_it(folder):
  assert sorted(path.name for path in folder.iterdir()) == [
    "README.md",
    "config.json",
    "labels.txt",
    "metrics.json",
    "model.safetensors",
    "preprocessing.json",
  ]
  assert list(folder.parent.iterdir()) == [folder]


def test_weights_have_flat_names(folder):
  flat = safetensors.numpy.load((folder / "model.safetensors").read_bytes())
  assert {"params/inception_3a/1x1/conv/kernel", "batch_stats/inception_5b/pool_proj/bn/var"} <= flat.keys()


def test_labels_are_in_the_order_of_the_outputs(imported, folder):
  """n01440764 (tench) is the first class of all three, behind the background of TF-slim."""
  names = (folder / "labels.txt").read_text().splitlines()
  assert len(names) == imported.config.data.num_classes
  assert names[-1000] == "n01440764" and names[-1] == "n15075141" and names[:-1000] in ([], ["background"])


def test_preprocessing_says_what_the_network_does(imported, folder):
  """By its words alone, in NumPy."""
  said = json.loads((folder / "preprocessing.json").read_text())
  images = np.random.default_rng(0).integers(256, size=(2, 5, 5, 3), dtype=np.uint8)
  expected = (images - np.array(said["mean_rgb"])) / np.array(said["std_rgb"])
  expected = expected[..., ["rgb".index(colour) for colour in said["channel_order"]]]
  np.testing.assert_allclose(release.build(imported)[2](images), expected, rtol=1e-6, atol=1e-4)
  assert said["crop_size"] == 224 and said["resize_shorter_side"] == 256


def test_card_tells_what_is_known(imported, folder):
  text = (folder / "README.md").read_text()
  count = sum(leaf.size for leaf in jax.tree.leaves(imported.variables["params"]))
  first = imported.labels[0]
  for fact in (
    first,
    imported.config.release.source,
    imported.config.release.published,
    f"{count:,}",
    "13.6 million",
    "running",
    imported.config.data.channel_order.upper(),
    f"{imported.config.data.num_classes}",
  ):
    assert fact in text


def test_existing_folder_is_not_overwritten(imported, folder, tmp_path):
  before = (folder / "config.json").read_bytes()
  with pytest.raises(release.ReleaseError, match="exists already"):
    release.write(imported, folder)
  assert (folder / "config.json").read_bytes() == before
  (tmp_path / "file").write_text("")
  with pytest.raises(release.ReleaseError, match="exists already"):
    release.write(imported, tmp_path / "file")
  with pytest.raises(release.ReleaseError, match="cannot be written"):
    release.write(imported, tmp_path / "file" / "net")
  (tmp_path / "link").symlink_to(tmp_path / "nowhere")
  with pytest.raises(release.ReleaseError, match="exists already"):
    release.write(imported, tmp_path / "link")


@pytest.mark.parametrize(
  "damage",
  [
    lambda content: content[:-1],
    lambda content: content[:1000],
    lambda content: b"",
    lambda content: bytes(100),
    lambda content: b"\xff" * 8 + content[8:],
  ],
)
def test_damaged_weights_are_an_error(copy, damage):
  path = copy / "model.safetensors"
  replace(path, damage(path.read_bytes()))
  with pytest.raises(release.ReleaseError, match="model.safetensors is damaged") as error:
    release.load(copy)
  assert "\n" not in str(error.value)


def test_weights_of_another_network_are_an_error(copy):
  path = copy / "model.safetensors"
  flat = safetensors.numpy.load(path.read_bytes())
  kernel = flat.pop("params/conv2/conv/kernel")
  for change in (
    {},
    {"params/conv2/conv/kernel": kernel.astype(np.float16)},
    {"params/conv2/conv/kernel": kernel[:1]},
    {"params/conv2/conv/kernel": kernel, "more": kernel},
  ):
    replace(path, safetensors.numpy.save(flat | change))
    with pytest.raises(release.ReleaseError, match="does not hold the network of its config.json: (params/conv2|more)"):
      release.load(copy)


@pytest.mark.parametrize(
  "change",
  [
    lambda config: config.pop("model"),
    lambda config: config.pop("release"),
    lambda config: config["data"].pop("mean"),
    lambda config: config["model"].update(stem="separated"),
    lambda config: config["model"].update(name="resnet"),
    lambda config: config["model"].update(surprise=1),
    lambda config: config["batch_norm"].update(epsilon="small"),
    lambda config: config["data"].update(channel_order="gbr"),
    lambda config: config["data"].update(image_size=10**6, eval_resize=10**6),
  ],
)
def test_config_of_no_network_is_an_error(copy, change):
  path = copy / "config.json"
  config = json.loads(path.read_text())
  change(config)
  replace(path, json.dumps(config).encode())
  with pytest.raises(release.ReleaseError, match="config.json (is not the config|describes no network)"):
    release.load(copy)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe"])
def test_damaged_config_is_an_error(copy, content):
  replace(copy / "config.json", content)
  with pytest.raises(release.ReleaseError, match="config.json is not the config of a release"):
    release.load(copy)


@pytest.mark.parametrize("name", ["labels.txt", "metrics.json", "preprocessing.json"])
def test_missing_file_is_an_error(copy, name):
  (copy / name).unlink()
  with pytest.raises(release.ReleaseError, match=f"{name} cannot be read"):
    release.load(copy)


@pytest.mark.parametrize("content", [b"a\nb\n", b"\n" * 1001, b"\xff" * 100, b"x\n" * 1001, b"x" * 2**23])
def test_labels_of_another_network_are_an_error(copy, content):
  replace(copy / "labels.txt", content)
  with pytest.raises(release.ReleaseError, match="labels.txt( names|: class| is| has)") as error:
    release.load(copy)
  assert len(str(error.value)) < 500


def test_empty_labels_are_names_not_known(copy):
  replace(copy / "labels.txt", b"")
  assert release.read(copy).labels == ()


METRICS = {"top1": 0.7, "top5": 0.9, "loss": 1.0, "count": 50000, "data": "x", "command": "y"}


@pytest.mark.parametrize(
  "change",
  [
    {"top1": 70.0},
    {"top5": -0.1},
    {"count": 0},
    {"count": 1.5},
    {"count": None},
    {"loss": float("nan")},
    {"loss": float("inf")},
    {"top1": "0.7"},
    {"command": None},
    {"command": 1},
    {"more": 1},
    {"top1": float("nan")},
  ],
)
def test_impossible_metrics_are_an_error(copy, change):
  metrics = {name: value for name, value in (METRICS | change).items() if value is not None}
  replace(copy / "metrics.json", json.dumps(metrics).encode())
  with pytest.raises(release.ReleaseError, match="metrics.json holds no metrics of a release"):
    release.read(copy)


def test_metrics_are_read(copy):
  replace(copy / "metrics.json", json.dumps(METRICS).encode())
  assert release.read(copy).metrics == METRICS


@pytest.mark.parametrize("name", ["metrics.json", "preprocessing.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 10**5, b'{"a": ' * 10**5, b"1" * 2**21])
def test_damaged_json_is_one_sentence(copy, name, content):
  replace(copy / name, content)
  with pytest.raises(release.ReleaseError, match=f"{name} (is damaged|has 2,097,152 bytes)") as error:
    release.read(copy)
  assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("change", [{"mean_rgb": [1, 2, 3]}, {"channel_order": "bgr"}, {"more": 1}])
def test_preprocessing_of_another_network_is_an_error(copy, change):
  path = copy / "preprocessing.json"
  replace(path, json.dumps(json.loads(path.read_text()) | change).encode())
  with pytest.raises(release.ReleaseError, match="is not the preprocessing of its config.json"):
    release.load(copy)


@pytest.mark.parametrize("kind", ["mean", 3, "population "])
def test_unknown_statistics_are_an_error(copy, kind):
  config = json.loads((copy / "config.json").read_text())
  config["release"]["statistics"] = kind
  replace(copy / "config.json", json.dumps(config).encode())
  with pytest.raises(release.ReleaseError, match="release.statistics is none of running, population, none"):
    release.load(copy)


@pytest.fixture(scope="module")
def torch_folder(goldens, tmp_path_factory):
  path = tmp_path_factory.mktemp("releases") / "net"
  release.write(release.read(goldens["torch"].path), path)
  return path


@pytest.mark.parametrize(
  "damage",
  [
    lambda rows: rows[1:],
    lambda rows: [*rows, rows[0]],
    lambda rows: [["x", "float32", [1], None], *rows[1:]],
    lambda rows: [[rows[0][0], "float31", *rows[0][2:]], *rows[1:]],
    lambda rows: 3,
    lambda rows: [[1, 2]],
    lambda rows: [[rows[0][0], "float32", [2**70], None], *rows[1:]],
    lambda rows: [{}],
    lambda rows: None,
    lambda rows: [[rows[0][0], "float32", [-64, -3, 7, 7], None], *rows[1:]],
    lambda rows: [[rows[0][0], "float32", "64", None], *rows[1:]],
    lambda rows: [[[], "float32", [64], None], *rows[1:]],
    lambda rows: [*rows, ["conv2_3x3_bn.num_batches_tracked", "int8", [], 1000]],
    lambda rows: [*rows, ["conv2_3x3_bn.num_batches_tracked", "int64", [2**40], 1]],
    lambda rows: [*rows, ["other_bn.num_batches_tracked", "int64", [], 1]],
  ],
)
def test_layout_of_another_state_dict_is_an_error(torch_folder, tmp_path, damage):
  for path in torch_folder.iterdir():
    (tmp_path / path.name).symlink_to(path)
  content = (torch_folder / "model.safetensors").read_bytes()
  layout = json.loads(
    json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["torch_state_dict"]
  )
  assert len(layout) >= 416
  weights = safetensors.numpy.load(content)
  replace(
    tmp_path / "model.safetensors", safetensors.numpy.save(weights, {"torch_state_dict": json.dumps(damage(layout))})
  )
  with pytest.raises(release.ReleaseError) as error:
    release.read(tmp_path)
  assert "\n" not in str(error.value) and len(str(error.value)) < 500 and str(tmp_path) in str(error.value)


def run_script(repository, *arguments):
  command = [sys.executable, "scripts/import_checkpoint.py", *arguments]
  return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_script_imports_and_its_folder_is_the_same(repository, goldens, tmp_path):
  path = goldens["mxnet"].path
  symbol = sorted(path.parent.glob("*-symbol.json"))[0]
  result = run_script(repository, f"--checkpoint={path}", f"--symbol={symbol}", f"--output={tmp_path / 'net'}")
  assert result.returncode == 0, result.stderr
  jax.tree.map(
    np.testing.assert_array_equal, release.read(tmp_path / "net").variables, release.read(path, symbol).variables
  )


def test_script_refuses_a_hostile_file_with_one_sentence_and_exit_code_2(repository, tmp_path):
  source, victim = tmp_path / "evil.pth", tmp_path / "victim"
  source.write_bytes(as_legacy(pickle.dumps(Evil(open, str(victim), "w"), 2)))
  result = run_script(repository, f"--checkpoint={source}", f"--output={tmp_path / 'net'}")
  assert result.returncode == 2 and "Traceback" not in result.stderr
  assert result.stderr.strip().splitlines()[-1].startswith(f"import_checkpoint.py: {source} cannot be used: its pickle")
  assert not victim.exists() and not (tmp_path / "net").exists()
