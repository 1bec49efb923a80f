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


def test_folder_holds_three_files_and_nothing_is_left_beside_it(folder):
  assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
  assert list(folder.parent.iterdir()) == [folder]


def test_weights_have_flat_names(folder):
  flat = safetensors.numpy.load((folder / "model.safetensors").read_bytes())
  assert {"params/inception_3a/1x1/conv/kernel", "batch_stats/inception_5b/pool_proj/bn/var"} <= flat.keys()


def test_card_tells_what_is_known(imported, folder):
  text = (folder / "README.md").read_text()
  count = sum(leaf.size for leaf in jax.tree.leaves(imported.variables["params"]))
  for fact in (imported.config.release.source, imported.config.release.published, f"{count:,}", "13.6 million",
               "running", imported.config.data.channel_order.upper(), f"{imported.config.data.num_classes}"):
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


@pytest.mark.parametrize("damage", [
    lambda content: content[:-1], lambda content: content[:1000], lambda content: b"", lambda content: bytes(100),
    lambda content: b"\xff" * 8 + content[8:]])
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
  for change in ({}, {"params/conv2/conv/kernel": kernel.astype(np.float16)},
                 {"params/conv2/conv/kernel": kernel[:1]}, {"params/conv2/conv/kernel": kernel, "more": kernel}):
    replace(path, safetensors.numpy.save(flat | change))
    with pytest.raises(release.ReleaseError, match="does not hold the network of its config.json: (params/conv2|more)"):
      release.load(copy)


@pytest.mark.parametrize("change", [
    lambda config: config.pop("model"), lambda config: config.pop("release"), lambda config: config["data"].pop("mean"),
    lambda config: config["model"].update(stem="separated"), lambda config: config["model"].update(name="resnet"),
    lambda config: config["model"].update(surprise=1), lambda config: config["batch_norm"].update(epsilon="small"),
    lambda config: config["data"].update(channel_order="gbr")])
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


def run_script(repository, *arguments):
  command = [sys.executable, "scripts/import_checkpoint.py", *arguments]
  return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_script_imports_and_its_folder_is_the_same(repository, goldens, tmp_path):
  path = goldens["mxnet"].path
  symbol = sorted(path.parent.glob("*-symbol.json"))[0]
  result = run_script(repository, f"--source={path}", f"--symbol={symbol}", f"--output={tmp_path / 'net'}")
  assert result.returncode == 0, result.stderr
  jax.tree.map(np.testing.assert_array_equal, release.read(tmp_path / "net").variables,
               release.read(path, symbol).variables)


def test_script_refuses_a_hostile_file_with_one_sentence_and_exit_code_2(repository, tmp_path):
  source, victim = tmp_path / "evil.pth", tmp_path / "victim"
  source.write_bytes(as_legacy(pickle.dumps(Evil(open, str(victim), "w"), 2)))
  result = run_script(repository, f"--source={source}", f"--output={tmp_path / 'net'}")
  assert result.returncode == 2 and "Traceback" not in result.stderr
  assert result.stderr.strip().splitlines()[-1].startswith(f"import_checkpoint.py: {source} cannot be used: its pickle")
  assert not victim.exists() and not (tmp_path / "net").exists()
