"""ResNet against the published count, against its formulas in NumPy, in PyTorch, and trained from its config."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception import batch_norm, config_checks, models, release, run_directory, train
from bn_inception.configs import resnet50
from bn_inception.models import resnet
from bn_inception.tools import describe
from tests.release.test_features import images_of, make_release

EPSILON = 1e-5
NORM = functools.partial(batch_norm.BatchNorm, epsilon=EPSILON)


def shapes_of(model, shape):
  return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape), train=False))


def draw(shapes) -> dict[str, Any]:
  """Variables far from where they start: vectors of 0.5 to 1.5, kernels that keep the size of their input."""
  rng = np.random.default_rng(0)

  def leaf(shape):
    return rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape)

  return jax.tree.map(lambda a: leaf(a.shape).astype(np.float32), shapes)


def tiny_config():
  """A network of one block, whose training compiles in a second or two."""
  config = resnet50.get_config("quickstart").copy_and_resolve_references()
  config.model.stage_sizes, config.model.width, config.learning_rate = (1,), 1 / 16, 0.1
  return config


def test_resnet50_has_the_published_number_of_parameters():
  """25,557,032 (torchvision's resnet50): He et al.'s table 1 with two numbers of BN for each channel."""
  config = resnet50.get_config("imagenet")
  shapes = shapes_of(models.build(config), (1, 224, 224, 3))
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert count(shapes["params"]) == 25_557_032
  assert count(shapes["batch_stats"]) == 2 * 26_560
  feature = lambda model, x, variables: models.features(model, variables, x, model.feature_names)
  model = models.build(config)
  maps = jax.eval_shape(functools.partial(feature, model), jnp.zeros((2, 224, 224, 3)), shapes)
  assert {name: value.shape[1:] for name, value in maps.items()} == {
    "conv1": (112, 112, 64),
    "stage1": (56, 56, 256),
    "stage2": (28, 28, 512),
    "stage3": (14, 14, 1024),
    "stage4": (7, 7, 2048),
    "pooled": (2048,),
  }


# --------------------------------------------------------------------------------------------- the formulas, in NumPy


def numpy_logits(variables, x, *, stage_sizes, stem, group_size=None):
  """He et al. (2016) in float64; with `group_size` BN takes the moments of each group, else the running averages."""

  def unit(x, path, stride=1):
    node = functools.reduce(lambda tree, name: tree[name], path, variables["params"])
    kernel = np.asarray(node["conv"]["kernel"], np.float64)
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), *[(size // 2,) * 2] * 2, (0, 0)))
    rows, columns = (side - size + 1 for side in x.shape[1:3])
    y = sum(x[:, i : i + rows : stride, j : j + columns : stride] @ kernel[i, j] for i, j in np.ndindex(size, size))
    if group_size is None:
      statistics = functools.reduce(lambda tree, name: tree[name], path, variables["batch_stats"])["bn"]
      mean, var = (np.asarray(statistics[name], np.float64) for name in ("mean", "var"))
    else:
      groups = y.reshape(-1, group_size, *y.shape[1:])
      mean, var = (np.repeat(f(groups, axis=(1, 2, 3)), group_size, axis=0)[:, None, None] for f in (np.mean, np.var))
    return node["bn"]["gamma"] * (y - mean) / np.sqrt(var + EPSILON) + node["bn"]["beta"]

  relu = lambda x: np.maximum(x, 0)
  x = relu(unit(x.astype(np.float64), ["conv1"], 1 if stem == "small" else 2))
  if stem == "plain":
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = ((side + 1) // 2 for side in x.shape[1:3])
    windows = [padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for i in range(3) for j in range(3)]
    x = np.max(windows, axis=0)
  for stage, size in enumerate(stage_sizes):
    for block in range(size):
      name, stride = f"stage{stage + 1}_block{block + 1}", 2 if stage and not block else 1
      y = relu(unit(x, [name, "conv1"]))
      y = unit(relu(unit(y, [name, "conv2"], stride)), [name, "conv3"])
      x = relu(y + (x if block else unit(x, [name, "projection"], stride)))
  head = variables["params"]["logits"]
  return x.mean((1, 2)) @ np.asarray(head["kernel"], np.float64) + head["bias"]


@pytest.mark.parametrize("stem,size", [("plain", 18), ("small", 7)])  # Maps of odd and even sides.
def test_logits_are_the_formulas(stem, size):
  model = resnet.ResNet(num_classes=5, stage_sizes=(2, 1), width=1 / 16, stem=stem, norm=NORM)
  variables = draw(shapes_of(model, (1, size, size, 3)))
  x = np.random.default_rng(1).normal(size=(3, size, size, 3)).astype(np.float32)
  expected = numpy_logits(variables, x, stage_sizes=(2, 1), stem=stem)
  logits = jax.jit(lambda variables: model.apply(variables, x, train=False))(variables)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
  folded, params = models.fold(model, variables, epsilon=EPSILON)  # Without a word about ResNet.
  logits = jax.jit(lambda params: folded.apply(params, x, train=False))(params)
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_batch_norm_in_groups_normalizes_each_group_by_itself():
  model = resnet.ResNet(
    num_classes=5, stage_sizes=(1,), width=1 / 16, stem="small", norm=functools.partial(NORM, group_size=4)
  )
  variables = draw(shapes_of(model, (1, 6, 6, 1)))
  x = np.random.default_rng(1).normal(size=(8, 6, 6, 1)).astype(np.float32)
  x[4:] *= 3  # The groups differ.
  expected = numpy_logits(variables, x, stage_sizes=(1,), stem="small", group_size=4)
  whole = numpy_logits(variables, x, stage_sizes=(1,), stem="small", group_size=8)
  apply = jax.jit(lambda variables: model.apply(variables, x, train=True, mutable=["batch_moments"]))
  logits, updates = apply(variables)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
  assert np.abs(whole - expected).max() > 0.01
  assert updates["batch_moments"]["stage1_block1"]["projection"]["bn"]["moments"].mean.shape == (2, 16)


def test_convolutions_in_bfloat16_give_float32_logits():
  model = resnet.ResNet(num_classes=4, stage_sizes=(1,), width=1 / 16, norm=NORM, dtype="bfloat16")
  init = lambda: model.init_with_output(
    jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False, capture_intermediates=True
  )
  logits, variables = jax.eval_shape(init)
  assert logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
  assert variables["intermediates"]["stage1_block1"]["conv3"]["bn"]["__call__"][0].dtype == jnp.bfloat16


# ------------------------------------------------------------------------------------- in the loop, from its config


def losses_of(config, workdir) -> list[float]:
  summary = train.train_and_evaluate(config, workdir, jax.devices()[:1])
  assert (summary["status"], summary["step"]) == ("done", config.num_steps)
  assert summary["metrics"]["eval/count"] == 1000
  return [line["train/loss"] for line in run_directory.read_metrics(workdir) if "train/loss" in line]


def twenty_steps(config, digits_dir):
  config.data.dir, config.eval.statistics = digits_dir, ("running",)
  config.num_steps = config.eval_every = config.checkpoint_every = 20
  config.log_every = 5
  return config


def test_a_small_resnet_trains_from_its_config_and_becomes_a_release(digits_dir, tmp_path):
  config = twenty_steps(tiny_config(), digits_dir)
  losses = losses_of(config, tmp_path / "run")
  assert losses[-1] < losses[0]
  one = release.from_run(tmp_path / "run")
  release.write(one, tmp_path / "net")
  assert "# ResNet" in (tmp_path / "net" / "README.md").read_text()
  model, variables, preprocess = release.load(tmp_path / "net")
  images = images_of(one)
  logits = jax.jit(lambda variables: model.apply(variables, preprocess(images), train=False))(variables)
  x = (images.astype(np.float64) - 127.5) / 127.5
  expected = numpy_logits(one.variables, x, stage_sizes=(1,), stem="small")
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_resnet50_trains_20_steps_from_its_config(digits_dir, tmp_path):
  """The 50 layers at the quickstart scale."""
  losses = losses_of(twenty_steps(resnet50.get_config("quickstart"), digits_dir), tmp_path / "run")
  assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]


@pytest.mark.parametrize(
  "key,value", [("model.stem", "separable"), ("batch_norm.in_stem", False), ("batch_norm.per_activation", ("stage1",))]
)
def test_what_only_inception_has_is_refused(key, value):
  config, (section, name) = resnet50.get_config("quickstart"), key.split(".")
  config[section][name] = value
  with pytest.raises(config_checks.ConfigError, match=f"{key} is"):
    config_checks.check_config(config, devices=1)


def test_describe_has_a_row_for_each_block_and_the_published_multiply_adds():
  """4.09e9 (torchvision's table of its resnet50)."""
  text = describe.describe(resnet50.get_config("imagenet"))
  rows = [line.split() for line in text.splitlines() if line.startswith("stage")]
  assert [row[0] for row in rows[:4]] == ["stage1_block1", "stage1_block2", "stage1_block3", "stage2_block1"]
  assert len(rows) == 16 and rows[3][1:3] == ["3x3/2", "28x28x512"]
  assert "25,557,032" in text and "4,089,184,256" in text


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_formats_without_resnet_say_so(format, tmp_path):
  with pytest.raises(release.ReleaseError, match="'resnet' is not among .* choose --format=stablehlo"):
    release.FORMATS[format](make_release(tiny_config()), tmp_path / "net.pth")
  assert not list(pathlib.Path(tmp_path).iterdir())


# ------------------------------------------------------------------------------------------------------- in PyTorch


@pytest.mark.torch
def test_logits_are_those_of_resnet50_in_pytorch():
  """ResNet-50 as torchvision's resnet50 has it, with its names, written in plain PyTorch; 64 px, all 50 layers."""
  torch = pytest.importorskip("torch", reason="needs PyTorch: make test-optional")
  nn = torch.nn

  class Bottleneck(nn.Module):
    def __init__(self, inplanes, planes, stride):
      super().__init__()
      self.conv1, self.bn1 = nn.Conv2d(inplanes, planes, 1, bias=False), nn.BatchNorm2d(planes)
      self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
      self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
      self.downsample = None
      if stride != 1 or inplanes != 4 * planes:
        self.downsample = nn.Sequential(
          nn.Conv2d(inplanes, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)
        )

    def forward(self, x):
      y = torch.relu(self.bn1(self.conv1(x)))
      y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
      return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

  def stage(inplanes, planes, blocks, stride):
    rest = [Bottleneck(4 * planes, planes, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(inplanes, planes, stride), *rest)

  network = nn.Sequential()
  network.add_module("conv1", nn.Conv2d(3, 64, 7, 2, 3, bias=False))
  network.add_module("bn1", nn.BatchNorm2d(64))
  network.add_module("relu", nn.ReLU())
  network.add_module("maxpool", nn.MaxPool2d(3, 2, 1))
  for number, (planes, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3)), 1):
    inplanes = 64 if number == 1 else 2 * planes
    network.add_module(f"layer{number}", stage(inplanes, planes, blocks, 1 if number == 1 else 2))
  network.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
  network.add_module("flatten", nn.Flatten())
  network.add_module("fc", nn.Linear(2048, 1000))

  model = models.build(resnet50.get_config("imagenet"))
  variables = draw(shapes_of(model, (1, 64, 64, 3)))
  state = {}
  leaves = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    _, *modules, name = (entry.key for entry in path)
    if modules == ["logits"]:
      state[f"fc.{'weight' if name == 'kernel' else name}"] = leaf.T
      continue
    *block, unit, kind = modules
    prefix = ""
    if block:
      stage_number, _, block_number = block[0].removeprefix("stage").partition("_block")
      prefix = f"layer{stage_number}.{int(block_number) - 1}."
    if unit == "projection":
      target = f"{prefix}downsample.{0 if kind == 'conv' else 1}"
    else:
      target = prefix + (unit if kind == "conv" else unit.replace("conv", "bn"))
    state[f"{target}.{leaves.get(name, 'weight')}"] = leaf.transpose(3, 2, 0, 1) if name == "kernel" else leaf
  state = {name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()}
  result = network.load_state_dict(state, strict=False)
  assert not result.unexpected_keys and all(name.endswith("num_batches_tracked") for name in result.missing_keys)
  x = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
  with torch.inference_mode():
    expected = network.double().eval()(torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2)).numpy()
  logits = jax.jit(lambda variables: model.apply(variables, x, train=False))(variables)
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
