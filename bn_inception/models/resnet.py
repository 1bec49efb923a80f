"""Residual networks of bottleneck blocks (He et al., 2016), such as ResNet-50: the example of docs/extending.md.

A block of stride 2 has its stride in the 3x3 convolution, as the networks that are called ResNet v1.5 (Goyal et al.,
2017, §5.1, and the released weights of torchvision). He et al. have the stride in the 1x1 convolution before it, which
reads a quarter of the pixels and drops the others. Parameters are the same in name, shape and number.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bn_inception import config_keys
from bn_inception.models import convolution, layers

_EXPANSION = 4  # The last convolution of a block has so many times the channels of the two before it.


class BottleneckBlock(nn.Module):
  """relu(F(x) + shortcut(x)) with F of 1x1, 3x3 and 1x1 convolutions, BN behind each.

  Attributes:
    features: channels of the first two convolutions.
    stride: of the 3x3 convolution.
    unit: constructor of a `ConvUnit`.
  """

  features: int
  stride: int
  unit: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None) -> jax.Array:
    linear_unit = functools.partial(self.unit, _EXPANSION * self.features, nonlinearity=lambda x: x)
    y = self.unit(self.features, name="conv1")(x, train=train, mask=mask)
    y = self.unit(self.features, (3, 3), self.stride, name="conv2")(y, train=train, mask=mask)
    units, inputs = [linear_unit(name="conv3")], [y]
    if self.stride != 1 or x.shape[-1] != _EXPANSION * self.features:
      units.append(linear_unit(stride=self.stride, name="projection"))
      inputs.append(x)
    # Neither needs the other, so that their BN layers share collectives.
    y, *projected = layers.side_by_side(units, inputs, train=train, mask=mask)
    return nn.relu(y + (projected[0] if projected else x))


class ResNet(nn.Module):
  """ResNet, [B, H, W, channels] to float32 logits [B, num_classes].

  Attributes:
    num_classes: of the softmax; 0: the network ends with the pooled features, and has no logits.
    stage_sizes: bottleneck blocks of each stage; (3, 4, 6, 3) is ResNet-50. Every stage but the first halves the map
      and doubles the channels.
    width: factor on every number of channels.
    stem: "plain" (7x7 of stride 2 and a pooling of stride 2) or "small" (3x3 of stride 1, for small images).
    norm: constructor of BN layers (`layers.norm_from_config`), or None: convolutions then have a bias.
    dtype: of the computation; parameters and statistics are float32.
  """

  num_classes: int
  stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
  width: float = 1.0
  stem: str = "plain"
  norm: Callable[..., nn.Module] | None = None
  dtype: str = "float32"

  @property
  def feature_names(self) -> tuple[str, ...]:
    return ("conv1", *(f"stage{number}" for number in range(1, len(self.stage_sizes) + 1)), "pooled")

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool | None = None, mask: jax.Array | None = None) -> jax.Array:
    """Logits of images; arguments and errors are those of `inception.Inception`."""
    layers.check_call(x, train)
    unit = functools.partial(layers.ConvUnit, norm=self.norm, padding="symmetric")
    channels = max(round(64 * self.width), 1)
    window, stride = ((3, 3), 1) if self.stem == "small" else ((7, 7), 2)
    x = unit(channels, window, stride, name="conv1")(x.astype(self.dtype), train=train, mask=mask)
    if self.stem == "plain":
      x = convolution.max_pool(x, window=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for stage, size in enumerate(self.stage_sizes):
      for block in range(size):
        stride = 2 if stage and not block else 1
        name = f"stage{stage + 1}_block{block + 1}"
        x = BottleneckBlock(channels * 2**stage, stride, unit, name=name)(x, train=train, mask=mask)
      self.sow("intermediates", f"stage{stage + 1}", x)  # A feature; kept only where it is asked for.
    x = jnp.mean(x, axis=(1, 2))
    self.sow("intermediates", "pooled", x)
    if not self.num_classes:
      return x.astype(jnp.float32)
    return layers.Dense(self.num_classes, name="logits")(x).astype(jnp.float32)


def from_config(config: config_keys.Config) -> ResNet:
  """The network of a config's `model`, `batch_norm`, `data.num_classes` and `dtype`."""
  settings = {name: getattr(config.model, name) for name in config_keys.names(config_keys.ResNet) - {"name"}}
  return ResNet(
    num_classes=config.data.num_classes, norm=layers.norm_from_config(config), dtype=config.dtype, **settings
  )
