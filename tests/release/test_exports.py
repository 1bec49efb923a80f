"""Exports of the networks that are shipped, each loaded by its own runtime: the logits of this project's network."""

import importlib
import json
import pathlib
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from bn_inception import release
from bn_inception.release.peers.pytorch import file as torch_file
from tests.release.test_features import images_of, make_release

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SHIPPED = {
  f"{path.stem}:{scale}": (path.stem, scale)
  for scale in ("imagenet", "cifar10", "quickstart")
  for path in sorted(CONFIGS.glob("*.py"))
  if path.stem not in ("__init__", "common", "versions", "mnist", "ensemble", "resnet50", "finetune")
}
SHIPPED |= {f"ensemble:imagenet,{member}": ("ensemble", f"imagenet,{member}") for member in range(6)}
SHIPPED |= {"mnist:bn": ("mnist", "bn"), "mnist:plain": ("mnist", "plain")}
SMALL = ("mnist:bn", "mnist:plain", "inception:quickstart", "bn_x5:quickstart")


def release_of(name):
  file, argument = SHIPPED[name]
  config = importlib.import_module(f"bn_inception.configs.{file}").get_config(argument)
  return make_release(config.copy_and_resolve_references())


def logits_of(one, images):
  model, variables, preprocess = release.build(one)
  return np.asarray(jax.jit(lambda variables: model.apply(variables, preprocess(images), train=False))(variables))


def run_stablehlo(path, images):
  return np.asarray(jax.export.deserialize(bytearray(path.read_bytes())).call(images))


def run_savedmodel(path, images):
  """In a process of its own, as whoever serves it: jax is not there."""
  program = """
import sys
sys.modules["jax"] = None
import numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
np.save(sys.argv[3], serve(images=tf.constant(np.load(sys.argv[2])))["logits"].numpy())
"""
  files = [path.with_name(f"{path.name}.{name}.npy") for name in ("images", "logits")]
  np.save(files[0], images)
  subprocess.run([sys.executable, "-c", program, path, *files], check=True)
  return np.load(files[1])


def run_torch(path, images):
  """By the files that are written alone, in a process without this project."""
  program = """
import json, sys
import numpy as np, torch
import torch_module
config = json.load(open(sys.argv[1] + ".json"))
model = torch_module.build(config)
model.load_state_dict(torch.load(sys.argv[1] + ".pth", weights_only=True))
images = torch.from_numpy(np.load(sys.argv[2])).permute(0, 3, 1, 2)
with torch.inference_mode():
  np.save(sys.argv[3], model.eval()(torch_module.preprocess(config, images)).numpy())
"""
  files = [path.with_name(f"{path.stem}.{name}.npy") for name in ("images", "logits")]
  np.save(files[0], images)
  subprocess.run([sys.executable, "-c", program, path.stem, *files], check=True, cwd=path.parent)
  return np.load(files[1])


def run_onnx(path, images):
  onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX: make test-optional")
  session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
  return session.run(["logits"], {"images": images})[0]


RUNTIMES = {"stablehlo": run_stablehlo, "savedmodel": run_savedmodel, "torch": run_torch, "onnx": run_onnx}


def check(name, kind, folder, seed=0):
  """Exports a network and compares what its runtime makes of batches of one and of three."""
  one, path = release_of(name), folder / "net.pth"
  release.FORMATS[kind](one, path)
  images = images_of(one, 3)
  expected = logits_of(one, images)
  assert np.std(expected) > 1e-3 and np.isfinite(expected).all()
  for batch in (images, images[1:2]):
    actual = RUNTIMES[kind](path, batch)
    assert actual.dtype == np.float32 and actual.shape == (len(batch), one.config.data.num_classes)
    of_ours = expected if len(batch) == 3 else expected[1:2]
    assert np.abs(actual - of_ours).max() <= 1e-4 * np.abs(of_ours).max()


@pytest.mark.parametrize("name", SMALL[:1] + SMALL[3:])
def test_stablehlo(name, tmp_path):
  check(name, "stablehlo", tmp_path)


def test_stablehlo_is_for_every_kind_of_device_and_any_number_of_images(tmp_path):
  release.FORMATS["stablehlo"](release_of("mnist:bn"), tmp_path / "net")
  exported = jax.export.deserialize(bytearray((tmp_path / "net").read_bytes()))
  assert exported.platforms == ("cpu", "cuda", "tpu")
  ((batch, *image),) = (aval.shape for aval in exported.in_avals)
  assert not isinstance(batch, int) and image == [28, 28, 1] and exported.in_avals[0].dtype == np.uint8


@pytest.mark.parametrize("kind", ["release", "torch", "stablehlo"])
def test_home_is_expanded(kind, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  release.FORMATS[kind](release_of("mnist:bn"), "~/export.pth")
  assert (tmp_path / "export.pth").exists() and not (tmp_path / "~").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist:bn", "bn_x5:quickstart"])
def test_savedmodel(name, tmp_path):
  check(name, "savedmodel", tmp_path)


@pytest.mark.torch
@pytest.mark.parametrize("name", SHIPPED)
def test_torch_for_every_shipped_config(name, tmp_path):
  pytest.importorskip("torch", reason="needs PyTorch: make test-optional")
  check(name, "torch", tmp_path)


@pytest.mark.onnx
@pytest.mark.parametrize("kind", ["stablehlo", "savedmodel", "onnx"])
@pytest.mark.parametrize(
  "name", [*SMALL, "inception:cifar10", "bn_x5_sigmoid:cifar10", "inception:imagenet", "bn_x5:imagenet"]
)
def test_other_formats(name, kind, tmp_path):
  pytest.importorskip("onnxruntime", reason="needs ONNX: make test-optional")
  check(name, kind, tmp_path)


def test_torch_files_of_any_network(tmp_path):
  """Without PyTorch: what is written, and that the module's file may be there of another export, but no other file."""
  one = release_of("bn_x5:quickstart")
  one.config.model.auxiliary_heads, one.config.data.dir = ("4a",), "somewhere"
  release.write_torch(one, tmp_path / "a.pth")
  release.write_torch(one, tmp_path / "b.pth")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.pth", "b.json", "b.pth", "torch_module.py"]
  config = json.loads((tmp_path / "a.json").read_text())
  assert config["model"]["auxiliary_heads"] == [] and config["data"]["dir"] == ""  # No release has their weights.
  state = torch_file.read((tmp_path / "a.pth").read_bytes())
  kernel = one.variables["params"]["inception_5b"]["1x1"]["conv"]["kernel"]
  np.testing.assert_array_equal(state["inception.5b.1x1.conv.weight"], kernel.transpose(3, 2, 0, 1))
  (tmp_path / "torch_module.py").write_text("another")
  with pytest.raises(release.ReleaseError, match="torch_module.py exists already"):
    release.write_torch(one, tmp_path / "c.pth")
  assert not (tmp_path / "c.pth").exists()


@pytest.mark.parametrize("kind", ["torch", "stablehlo", "savedmodel", "onnx", "bninception"])
def test_existing_file_is_not_overwritten(kind, tmp_path):
  (tmp_path / "net").write_text("")
  one = release_of("mnist:bn")
  with pytest.raises(release.ReleaseError, match="exists already|cannot be exported"):
    release.FORMATS[kind](one, tmp_path / "net")
  assert (tmp_path / "net").read_text() == "" and len(list(tmp_path.iterdir())) == 1


def test_missing_packages_are_a_sentence_that_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "onnxscript", None)
  with pytest.raises(release.ReleaseError, match=r"not installed .*: pip install -e '\.\[onnx\]'\.$"):
    release.FORMATS["onnx"](release_of("mnist:bn"), tmp_path / "net.onnx")
