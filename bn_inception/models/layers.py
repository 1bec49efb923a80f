"""The layers the paper's networks are made of: g(BN(W u)) and local response normalization."""

import functools
import re
from typing import Any
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bn_inception import batch_norm
from bn_inception.models import convolution

NONLINEARITIES = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}

# A pooling window of 3 with stride 2 meets the border in four ways; the input is `size` pixels long.
POOL_PADDING: dict[str, Callable[[int], tuple[int, int]]] = {
    "same": lambda size: (size % 2, 1),  # TensorFlow
    "ceil": lambda size: (0, 1 - size % 2),  # Caffe, PyTorch's ceil_mode: the last window may hang over the end.
    "floor": lambda size: (0, 0),  # MXNet from 2016 on
    "floor_pad1": lambda size: (1, 1),  # MXNet from 2016 on, in 3c and 4e
}


def norm_from_config(config: ConfigDict) -> Callable[..., nn.Module] | None:
  """Makes the constructor of a network's BN layers, or None for a network without BN."""
  settings = config.batch_norm
  if not settings.enabled:
    return None
  return functools.partial(batch_norm.BatchNorm, epsilon=settings.epsilon, group_size=settings.group_size or None,
                           use_gamma=settings.use_gamma)


class Convolution(nn.Module):
  """Convolution of NHWC input, float32 parameters, computed in the type of its input.

  Attributes:
    features: output channels.
    window: (height, width) of the kernel.
    stride: of both axes.
    padding: "same" (TensorFlow: the odd pixel at the end) or "symmetric" (half the window on each side).
    use_bias: adds one bias per channel.
    groups: of input channels (`feature_group_count`).
    init_gain: factor on the standard deviation of the initial kernel, sqrt(1 / fan_in).
  """

  features: int
  window: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = "same"
  use_bias: bool = False
  groups: int = 1
  init_gain: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    initializer = nn.initializers.variance_scaling(self.init_gain**2, "fan_in", "truncated_normal")
    kernel = self.param("kernel", initializer, (*self.window, x.shape[-1] // self.groups, self.features))
    padding = {"same": "SAME", "symmetric": tuple((size // 2, size // 2) for size in self.window)}[self.padding]
    x = convolution.conv2d(x, kernel.astype(x.dtype), strides=(self.stride, self.stride), padding=padding,
                           feature_group_count=self.groups)
    if self.use_bias:
      x += self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
    return x


class ConvUnit(nn.Module):
  """z = g(BN(W u)): convolution, batch normalization, nonlinearity (§3.2).

  Attributes:
    norm: constructor of the BN layer; None for none, and then the convolution has a bias.
    nonlinearity: g.
    use_bias: a bias even under BN (some released networks have one).
    depth_multiplier: not 0: the convolution is separable, `depth_multiplier` filters for each input channel and a 1x1
      convolution over them (§4.2, the first layer).
    Others as `Convolution`.
  """

  features: int
  window: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = "same"
  norm: Callable[..., nn.Module] | None = None
  nonlinearity: Callable[[jax.Array], jax.Array] = jax.nn.relu
  use_bias: bool = False
  depth_multiplier: int = 0
  init_scale: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
    use_bias = self.use_bias or self.norm is None
    # He et al. (2015): sqrt(2 / fan_in) keeps the variance through a ReLU [choice: the paper is silent].
    init_gain = 2**0.5 * self.init_scale
    window, stride = self.window, self.stride
    if self.depth_multiplier:
      channels = x.shape[-1]
      x = Convolution(channels * self.depth_multiplier, window, stride, self.padding, groups=channels,
                      init_gain=self.init_scale, name="depthwise")(x)
      window, stride = (1, 1), 1
    x = Convolution(self.features, window, stride, self.padding, use_bias, init_gain=init_gain, name="conv")(x)
    if self.norm is not None:
      x = self.norm(name="bn")(x, train=train, mask=mask)
    return self.nonlinearity(x)


def fold_batch_norm(variables: dict[str, Any], *, epsilon: float) -> dict[str, Any]:
  """Variables of a network with BN as those of the same network without (`batch_norm.enabled = False`).

  Args:
    variables: {"params", "batch_stats"} of a network in which `bn` normalizes the output of its neighbour `conv`
      (ConvUnit) and `bn1` that of `hidden1` (MnistMlp).
    epsilon: of its BN layers.

  Returns:
    {"params"} with every BN folded into the affine map before it (Algorithm 2, line 11).

  Raises:
    ValueError: for BN per activation, which no convolution can hold.
  """
  def walk(params: dict[str, Any], statistics: dict[str, Any], path: str) -> dict[str, Any]:
    norms = {name: re.sub("^(conv|hidden)", "bn", name) for name in params}
    norms = {name: norm for name, norm in norms.items() if norm != name and norm in params}
    folded = {}
    for name, node in params.items():
      if name in norms:
        folded[name] = fold(node, params[norms[name]], statistics[norms[name]], path)
      elif name not in norms.values():
        folded[name] = walk(node, statistics.get(name, {}), f"{path}/{name}") if isinstance(node, dict) else node
    return folded

  def fold(affine: dict[str, jax.Array], norm: dict[str, jax.Array], statistics: dict[str, jax.Array], path: str):
    beta = norm["beta"]
    if beta.ndim != 1:
      raise ValueError(f"{path[1:]} has BN per activation, which cannot be folded into a convolution: "
                       "evaluate this network unfolded.")
    kernel, bias = batch_norm.fold(
        affine["kernel"], affine.get("bias"), statistics["mean"], statistics["var"],
        norm.get("gamma", jnp.ones_like(beta)), beta, epsilon=epsilon)
    return {"kernel": kernel, "bias": bias}

  return {"params": walk(variables["params"], variables["batch_stats"], "")}


def local_response_norm(x: jax.Array) -> jax.Array:
  """x / (1 + 1e-4 / 5 * sum of squares over 5 neighbouring channels)^0.75, as the public GoogLeNet.

  Args:
    x: [B, H, W, C].
  """
  squares = jnp.square(x.astype(jnp.float32))
  neighbours = jax.lax.reduce_window(squares, 0.0, jax.lax.add, (1, 1, 1, 5), (1, 1, 1, 1), "SAME")
  return (x * (1 + 1e-4 / 5 * neighbours) ** -0.75).astype(x.dtype)
