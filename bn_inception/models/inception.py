"""The Inception network of Figure 5, in every reading that a released network has given the figure.

The paper's table contradicts itself: with the table's own projection of 128, modules 4c and 4d have 608 channels, not
the stated 576. Released networks are of both kinds, and differ in padding, pooling and bias too. So each of these
choices is an attribute here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bn_inception import config_keys
from bn_inception.models import convolution, layers

DEPTH_MULTIPLIER = 8  # Filters for each input channel of the separable first convolution (§4.2).


class Widths(NamedTuple):
  """A row of Figure 5. `conv1x1` and `pool_proj` are 0 in modules of stride 2, whose pooling has no projection."""

  conv1x1: int
  reduce3x3: int
  conv3x3: int
  reduce_double: int
  conv_double: int
  pool: str
  pool_proj: int


def module_table(pool_proj_4cd: int = 96) -> dict[str, Widths]:
  """The rows of Figure 5. Its own projection, 128, gives 608 channels in 4c and 4d. The stated 576 need 96."""
  return {
    "3a": Widths(64, 64, 64, 64, 96, "avg", 32),
    "3b": Widths(64, 64, 96, 64, 96, "avg", 64),
    "3c": Widths(0, 128, 160, 64, 96, "max", 0),
    "4a": Widths(224, 64, 96, 96, 128, "avg", 128),
    "4b": Widths(192, 96, 128, 96, 128, "avg", 128),
    "4c": Widths(160, 128, 160, 128, 160, "avg", pool_proj_4cd),
    "4d": Widths(96, 128, 192, 160, 192, "avg", pool_proj_4cd),
    "4e": Widths(0, 128, 192, 192, 256, "max", 0),
    "5a": Widths(352, 192, 320, 160, 224, "avg", 128),
    "5b": Widths(352, 192, 320, 192, 224, "max", 128),
  }


# The activations of `Inception` beside its logits, by module. The names are the same before and after `merge`.
FEATURES = ("conv1", "conv2_reduce", "conv2", *(f"inception_{name}" for name in module_table()), "pooled")


class InceptionModule(nn.Module):
  """1x1, 3x3, double 3x3 and pooling branches side by side, concatenated in this order.

  Attributes:
    widths: a row of Figure 5, scaled.
    unit: constructor of a `ConvUnit`.
    reduction_pool: border of the pooling of stride 2, a key of `layers.POOL_PADDING`.
    avg_pool_include_pad: whether the average counts the border's zeros.
    merged: see `merge`; the unit then has no BN.
  """

  widths: Widths
  unit: Callable[..., nn.Module]
  reduction_pool: str
  avg_pool_include_pad: bool
  merged: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None) -> jax.Array:
    widths = self.widths
    stride = 1 if widths.conv1x1 else 2
    unit = lambda name, features, stride: self.unit(features, (3, 3), stride, name=name)

    first = (self._merged if self.merged else functools.partial(self._first, train=train, mask=mask))(x)
    second = {
      "3x3": (unit("3x3", widths.conv3x3, stride), first["3x3_reduce"]),
      "double_3x3_1": (unit("double_3x3_1", widths.conv_double, 1), first["double_3x3_reduce"]),
    }
    pooled = None if "pool_proj" in first else self._pool(x, stride)
    if pooled is not None and widths.pool_proj:
      second["pool_proj"] = (self.unit(widths.pool_proj, name="pool_proj"), pooled)
    second = dict(zip(second, layers.side_by_side(*zip(*second.values()), train=train, mask=mask)))
    third = unit("double_3x3_2", widths.conv_double, stride)(second["double_3x3_1"], train=train, mask=mask)

    branches = [first["1x1"]] if widths.conv1x1 else []
    branches += [second["3x3"], third, (first | second).get("pool_proj", pooled)]
    return jnp.concatenate(branches, axis=-1)

  def _first(self, x: jax.Array, *, train: bool, mask: jax.Array | None) -> dict[str, jax.Array]:
    """The 1x1 convolutions at the start of the module, the average's projection among them, and what follows each."""
    units = {name: self.unit(features, name=name) for name, features in _first_convolutions(self.widths).items()}
    if self.is_initializing():  # One unit after the other: tools/describe.py follows the calls.
      return {
        name: unit(self._pool(x, stride=1) if name == "pool_proj" else x, train=train, mask=mask)
        for name, unit in units.items()
      }
    units = {name: unit.parts(x.shape[-1]) for name, unit in units.items()}
    parameters = {name: unit.conv.parameters(x.shape[-1]) for name, unit in units.items()}
    kernels, biases = zip(*parameters.values())
    xs = layers.convolve_together(kernels, units["3x3_reduce"].conv.convolve, x)
    xs = self._with_pool_and_bias(dict(zip(units, xs)), biases)
    return dict(zip(units, layers.activate([*units.values()], xs, train=train, mask=mask)))

  def _pool(self, x: jax.Array, stride: int) -> jax.Array:
    if stride == 2:
      return max_pool_stride2(x, self.reduction_pool)
    if self.widths.pool == "max":
      return convolution.max_pool(x, window=(3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))
    return convolution.avg_pool(
      x, window=(3, 3), strides=(1, 1), padding=((1, 1), (1, 1)), count_include_pad=self.avg_pool_include_pad
    )

  def _merged(self, x: jax.Array) -> dict[str, jax.Array]:
    """The first convolutions as one convolution, and the average after its projection; see `merge`."""
    unit, features = self.unit(0, parent=None), _first_convolutions(self.widths)
    x = layers.Convolution(sum(features.values()), name="merged")(x)
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    ends = np.cumsum([*features.values()])[:-1]
    xs = self._with_pool_and_bias(dict(zip(features, jnp.split(x, ends, axis=-1))), jnp.split(bias, ends))
    return dict(zip(features, map(unit.nonlinearity, xs)))

  def _with_pool_and_bias(self, xs: dict[str, jax.Array], biases: Sequence[jax.Array | None]) -> list[jax.Array]:
    """The average pooling follows its projection. Both maps are linear, so the order does not change the result.

    After the projection the average has fewer channels. The bias is added after the average, because an average that
    counts the border's zeros would make the bias smaller.
    """
    if "pool_proj" in xs:
      xs = xs | {"pool_proj": self._pool(xs["pool_proj"], stride=1)}
    return [layers.add_bias(x, bias) for x, bias in zip(xs.values(), biases, strict=True)]


def _first_convolutions(widths: Widths) -> dict[str, int]:
  """Features of the 1x1 convolutions at the start of a module, the average's projection among them."""
  features = {
    "1x1": widths.conv1x1,
    "3x3_reduce": widths.reduce3x3,
    "double_3x3_reduce": widths.reduce_double,
    "pool_proj": widths.pool_proj if widths.pool == "avg" else 0,
  }
  return {name: width for name, width in features.items() if width}


def max_pool_stride2(x: jax.Array, border: str) -> jax.Array:
  """Max pooling 3x3 with stride 2; `border` is a key of `layers.POOL_PADDING`."""
  padding = tuple(layers.POOL_PADDING[border](size) for size in x.shape[1:3])
  return convolution.max_pool(x, window=(3, 3), strides=(2, 2), padding=padding)


class AuxiliaryHead(nn.Module):
  """GoogLeNet's auxiliary classifier: average pooling 5x5 / 3, 1x1 convolution 128, a hidden layer of 1024."""

  num_classes: int
  unit: Callable[..., nn.Module]
  scale: Callable[[int], int]

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None) -> jax.Array:
    # As in Caffe, the last window may hang over the end: 14x14 become 4x4, 7x7 become 2x2.
    padding = tuple((0, max(5 - size, -(size - 5) % 3)) for size in x.shape[1:3])
    x = convolution.avg_pool(x, window=(5, 5), strides=(3, 3), padding=padding, count_include_pad=False)
    x = self.unit(self.scale(128), name="conv")(x, train=train, mask=mask)
    x = x.reshape(x.shape[0], 1, 1, -1)
    x = self.unit(self.scale(1024), name="hidden")(x, train=train, mask=mask)
    return layers.Dense(self.num_classes, name="logits")(x[:, 0, 0]).astype(jnp.float32)


class Inception(nn.Module):
  """Inception of Figure 5, [B, H, W, channels] to float32 logits [B, num_classes].

  In training the collection `batch_moments` receives the moments of every BN layer, and the collection `auxiliary`
  receives the logits of the auxiliary heads, if these collections are mutable.

  Attributes:
    num_classes: of the softmax; 0: the network ends with the pooled features, and has no logits.
    width: factor on every number of channels.
    stem: "separable" (the paper's: 7x7 with depth multiplier 8), "plain" (7x7), or "small" (3x3 of stride 1 and a
      single pooling, which takes 32 px images to 16x16 at 3a).
    pool_proj_4cd: 96 or 128, see `module_table`.
    padding: of convolutions with stride 2, "same" or "symmetric".
    stem_pool, reduction_pool: borders of the two pools of the stem, and of the pools in 3c and 4e; keys of
      `layers.POOL_PADDING`.
    avg_pool_include_pad: whether averages count the border's zeros.
    conv_bias: convolutions have a bias under BN too.
    nonlinearity: a key of `layers.NONLINEARITIES`.
    norm: constructor of BN layers (`layers.norm_from_config`), or None.
    norm_in_stem: False: the first convolution has a bias and no BN.
    per_activation: names of modules ("5b") whose BN is per activation (§4.2.3).
    local_response_norm: after the first pool and before the second (GoogLeNet).
    dropout_rate: before the softmax layer, in training if an RNG "dropout" is given.
    auxiliary_heads: names of modules ("4a", "4d") with an auxiliary classifier in training.
    init_scale: factor on the initial convolution weights (§4.2.3).
    dtype: of the computation; parameters and statistics are float32.
    merged: a network without BN in the form for inference, see `merge`.
  """

  num_classes: int
  width: float = 1.0
  stem: str = "separable"
  pool_proj_4cd: int = 96
  padding: str = "same"
  stem_pool: str = "same"
  reduction_pool: str = "same"
  avg_pool_include_pad: bool = False
  conv_bias: bool = False
  nonlinearity: str = "relu"
  norm: Callable[..., nn.Module] | None = None
  norm_in_stem: bool = True
  per_activation: tuple[str, ...] = ()
  local_response_norm: bool = False
  dropout_rate: float = 0.0
  auxiliary_heads: tuple[str, ...] = ()
  init_scale: float = 1.0
  dtype: str = "float32"
  merged: bool = False

  @property
  def feature_names(self) -> tuple[str, ...]:
    return FEATURES

  def _scale(self, channels: int) -> int:
    return max(round(channels * self.width), 1) if channels else 0

  def _unit(self, norm: Callable[..., nn.Module] | None) -> Callable[..., nn.Module]:
    """The constructor of this network's convolution units: `unit(features, window, stride, name=...)`."""
    return functools.partial(
      layers.ConvUnit,
      norm=norm,
      padding=self.padding,
      nonlinearity=layers.NONLINEARITIES[self.nonlinearity],
      use_bias=self.conv_bias,
      init_scale=self.init_scale,
    )

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool | None = None, mask: jax.Array | None = None) -> jax.Array:
    """Logits of images.

    Args:
      x: [B, H, W, channels] normalized images, any float type.
      train: True has batch statistics, dropout and auxiliary heads; False has the running averages. Required.
      mask: [B], the examples that enter the batch statistics; None: all.

    Raises:
      ValueError, TypeError: if x is no batch of images, or `train` is missing.
    """
    layers.check_call(x, train)
    x = self._stem(x.astype(self.dtype), train=train, mask=mask)
    for name, row in module_table(self.pool_proj_4cd).items():
      widths = row._replace(**{field: self._scale(value) for field, value in row._asdict().items() if field != "pool"})
      norm = self.norm
      if norm is not None and name in self.per_activation:
        norm = functools.partial(norm, per_activation=True)
      unit = self._unit(norm)
      x = InceptionModule(
        widths, unit, self.reduction_pool, self.avg_pool_include_pad, self.merged, name=f"inception_{name}"
      )(x, train=train, mask=mask)
      if name in self.auxiliary_heads and (train or self.is_initializing()):
        head = AuxiliaryHead(self.num_classes, unit, self._scale, name=f"auxiliary_{name}")
        self.sow("auxiliary", name, head(x, train=train, mask=mask))
    x = jnp.mean(x, axis=(1, 2))
    self.sow("intermediates", "pooled", x)  # A feature, kept only if the caller asks for it.
    if not self.num_classes:
      return x.astype(jnp.float32)
    # An evaluation with batch statistics has train=True too. It gives no RNG, so nothing is dropped.
    x = nn.Dropout(self.dropout_rate, deterministic=not (train and self.has_rng("dropout")))(x)
    return layers.Dense(self.num_classes, name="logits")(x).astype(jnp.float32)

  def _stem(self, x: jax.Array, *, train: bool, mask: jax.Array | None) -> jax.Array:
    first_unit, unit = self._unit(self.norm if self.norm_in_stem else None), self._unit(self.norm)
    lrn = layers.local_response_norm if self.local_response_norm else lambda x: x
    window, stride = ((3, 3), 1) if self.stem == "small" else ((7, 7), 2)
    multiplier = DEPTH_MULTIPLIER if self.stem == "separable" else 0
    x = first_unit(self._scale(64), window, stride, depth_multiplier=multiplier, name="conv1")(
      x, train=train, mask=mask
    )
    x = lrn(max_pool_stride2(x, self.stem_pool))
    x = unit(self._scale(64), name="conv2_reduce")(x, train=train, mask=mask)
    x = unit(self._scale(192), (3, 3), name="conv2")(x, train=train, mask=mask)
    x = lrn(x)
    return x if self.stem == "small" else max_pool_stride2(x, self.stem_pool)


def merge(model: Inception, params: dict[str, Any]) -> tuple[Inception, dict[str, Any]]:
  """The same network in the form for inference: linear maps that follow each other or lie side by side become one map.

  The 1x1 convolutions at the start of a module become one convolution. An average pooling and its projection change
  places, so that the average has fewer channels, and the projection becomes part of this one convolution. The separable
  convolution of the stem becomes a plain 7x7 convolution.

  Args:
    model: without BN, as after `layers.fold_batch_norm`.
    params: its parameters.
  """
  params = dict(params)
  stem = model.stem
  if stem == "separable":
    conv1 = params["conv1"]
    depthwise, pointwise = conv1["depthwise"]["kernel"], conv1["conv"]["kernel"][0, 0]
    by_channel = pointwise.reshape(-1, DEPTH_MULTIPLIER, pointwise.shape[-1])
    filters = depthwise.reshape(*depthwise.shape[:2], -1, DEPTH_MULTIPLIER)
    kernel = jnp.einsum("hwcm,cmo->hwco", filters, by_channel, precision="highest")
    params["conv1"] = {"conv": conv1["conv"] | {"kernel": kernel}}
    stem = "plain"
  for name, widths in module_table(model.pool_proj_4cd).items():
    module = dict(params[f"inception_{name}"])
    first = [module.pop(unit)["conv"] for unit in _first_convolutions(widths)]
    kernels, biases = ([conv[leaf] for conv in first] for leaf in ("kernel", "bias"))
    params[f"inception_{name}"] = module | {
      "merged": {"kernel": jnp.concatenate(kernels, -1)},
      "bias": jnp.concatenate(biases),
    }
  return model.clone(stem=stem, merged=True), params


def from_config(config: config_keys.Config) -> Inception:
  """The network of a config's `model`, `batch_norm`, `data.num_classes` and `dtype`."""
  settings = {name: getattr(config.model, name) for name in config_keys.names(config_keys.Inception) - {"name"}}
  return Inception(
    num_classes=config.data.num_classes,
    norm=layers.norm_from_config(config),
    dtype=config.dtype,
    norm_in_stem=config.batch_norm.in_stem,
    per_activation=tuple(config.batch_norm.per_activation),
    **settings,
  )
