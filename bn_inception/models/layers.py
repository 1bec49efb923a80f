"""The layers of the paper's networks: g(BN(W u)) and local response normalization."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bn_inception import batch_norm
from bn_inception.config_keys import Config
from bn_inception.models import convolution

NONLINEARITIES = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}

# Padding of a pooling window of 3 with stride 2, in four ways; the input is `size` pixels long.
POOL_PADDING: dict[str, Callable[[int], tuple[int, int]]] = {
  "same": lambda size: (size % 2, 1),  # TensorFlow
  "ceil": lambda size: (0, 1 - size % 2),  # Caffe, PyTorch's ceil_mode: the last window may hang over the end.
  "floor": lambda size: (0, 0),  # MXNet from 2016 on
  "floor_pad1": lambda size: (1, 1),  # MXNet from 2016 on, in 3c and 4e
}


def check_call(x: jax.Array, train: bool | None) -> None:
  """Checks what users easily forget in a call of a network: that `x` is a batch of images, and `train`.

  Raises:
    ValueError, TypeError: one sentence that says what is missing.
  """
  if jnp.ndim(x) != 4:
    raise ValueError(
      f"A network takes a batch of images, [B, H, W, C], and this input is {list(jnp.shape(x))}: give "
      "images[None] for a single image."
    )
  if train is None:
    raise TypeError(
      "The call of the network does not say its purpose: say train=False for evaluation (running averages, "
      "no dropout) or train=True for training."
    )


def norm_from_config(config: Config) -> Callable[..., nn.Module] | None:
  """Makes the constructor of a network's BN layers, or None for a network without BN."""
  settings = config.batch_norm
  if not settings.enabled:
    return None
  return functools.partial(
    batch_norm.BatchNorm,
    epsilon=settings.epsilon,
    group_size=settings.group_size or None,
    use_gamma=settings.use_gamma,
    momentum=settings.momentum,
    frozen=tuple(config.init.freeze) if config.init.freeze_statistics else (),
  )


class Convolution(nn.Module):
  """Convolution of NHWC input. Parameters are float32; the computation has the type of the input.

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

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel, bias = self.parameters(x.shape[-1])
    return add_bias(self.convolve(x, kernel), bias)

  @nn.compact
  def parameters(self, channels: int) -> tuple[jax.Array, jax.Array | None]:
    """(kernel, bias or None) for an input of `channels` channels."""
    initializer = nn.initializers.variance_scaling(self.init_gain**2, "fan_in", "truncated_normal")
    kernel = self.param("kernel", initializer, (*self.window, channels // self.groups, self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
    return kernel, bias

  @nn.nowrap
  def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution without bias with a given kernel: the layer's own, or the joined kernels of several layers."""
    padding = {"same": "SAME", "symmetric": tuple((size // 2, size // 2) for size in self.window)}[self.padding]
    conv2d = functools.partial(
      convolution.conv2d, strides=(self.stride, self.stride), padding=padding, feature_group_count=self.groups
    )
    return linear(conv2d, x, kernel)


class Dense(nn.Module):
  """Matrix product and bias. Parameters are float32; the computation has the type of the input.

  Attributes:
    features: output features.
    use_bias: adds one bias per feature.
    kernel_init: initializer of the kernel.
  """

  features: int
  use_bias: bool = True
  kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
    return add_bias(linear(jnp.matmul, x, kernel), bias)


def linear(product: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, kernel: jax.Array) -> jax.Array:
  """product(x, kernel) in the type of x. The kernel's gradient is a sum in the kernel's own type.

  The gradient of a parameter is a sum over the batch, and so over devices. If x is bfloat16, JAX's own gradient rounds
  each device's part to bfloat16 before the parts are added. Then the sum loses digits, and depends on the number of
  devices.

  Args:
    product: a function that is linear in each of its two arguments. Both arguments have one type.
    x: [B, ..., channels], any float type.
    kernel: float32.
  """
  return product(x, kernel) if x.dtype == kernel.dtype else _mixed_linear(product, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mixed_linear(product, x, kernel):
  return product(x, kernel.astype(x.dtype))


def _mixed_linear_forward(product, x, kernel):
  return _mixed_linear(product, x, kernel), (x, kernel)


def _mixed_linear_backward(product, residuals, dy):
  x, kernel = residuals
  (dx,) = jax.vjp(lambda x: product(x, kernel.astype(x.dtype)), x)[1](dy)
  # XLA for TPU multiplies x and dy as bfloat16 values, which they are, and keeps the sum in float32.
  (dkernel,) = jax.vjp(lambda kernel: product(x.astype(kernel.dtype), kernel), kernel)[1](dy.astype(kernel.dtype))
  return dx, dkernel


_mixed_linear.defvjp(_mixed_linear_forward, _mixed_linear_backward)


def add_bias(x: jax.Array, bias: jax.Array | None) -> jax.Array:
  """x + bias in the type of x, or x itself for None. The bias's gradient is a sum in its own type, as in `linear`."""
  return x if bias is None else _add_bias(x, bias)


@jax.custom_vjp
def _add_bias(x, bias):
  return x + bias.astype(x.dtype)


_add_bias.defvjp(
  lambda x, bias: (_add_bias(x, bias), bias),
  lambda bias, dy: (dy, jnp.sum(dy.astype(bias.dtype), tuple(range(dy.ndim - bias.ndim)))),
)


class ConvUnit(nn.Module):
  """z = g(BN(W u)): convolution, batch normalization, nonlinearity (§3.2).

  Attributes:
    norm: constructor of the BN layer. None: the unit has no BN, and the convolution has a bias.
    nonlinearity: g.
    use_bias: adds a bias even under BN (some released networks have such a bias).
    depth_multiplier: if not 0, the convolution is separable: `depth_multiplier` filters for each input channel, and a
      1x1 convolution over the filtered channels (§4.2, the first layer).
    The other attributes are those of `Convolution`.
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

  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
    return side_by_side([self], [x], train=train, mask=mask)[0]

  @nn.compact
  def parts(self, channels: int) -> "UnitParts":
    """The layers of the unit for an input of `channels` channels."""
    window, stride, depthwise = self.window, self.stride, None
    if self.depth_multiplier:
      depthwise = Convolution(
        channels * self.depth_multiplier,
        window,
        stride,
        self.padding,
        groups=channels,
        init_gain=self.init_scale,
        name="depthwise",
      )
      window, stride = (1, 1), 1
    # He et al. (2015): sqrt(2 / fan_in) keeps the variance through a ReLU [choice: the paper is silent].
    conv = Convolution(
      self.features,
      window,
      stride,
      self.padding,
      self.use_bias or self.norm is None,
      init_gain=2**0.5 * self.init_scale,
      name="conv",
    )
    return UnitParts(depthwise, conv, None if self.norm is None else self.norm(name="bn"), self.nonlinearity)


class UnitParts(NamedTuple):
  """The layers of a `ConvUnit` in their order."""

  depthwise: Convolution | None
  conv: Convolution
  norm: nn.Module | None
  nonlinearity: Callable[[jax.Array], jax.Array]


def side_by_side(
  units: Sequence[ConvUnit], xs: Sequence[jax.Array], *, train: bool, mask: jax.Array | None = None
) -> list[jax.Array]:
  """Applies each unit to its own input. The units do not depend on each other; see `activate`."""
  if len(units) > 1 and units[0].is_initializing():  # One unit after the other: tools/describe.py follows the calls.
    return [unit(x, train=train, mask=mask) for unit, x in zip(units, xs, strict=True)]
  parts = [unit.parts(x.shape[-1]) for unit, x in zip(units, xs, strict=True)]
  convolve = lambda part, x: part.conv(x if part.depthwise is None else part.depthwise(x))
  return activate(parts, [convolve(part, x) for part, x in zip(parts, xs)], train=train, mask=mask)


def activate(
  units: Sequence[UnitParts], xs: Sequence[jax.Array], *, train: bool, mask: jax.Array | None = None
) -> list[jax.Array]:
  """g(BN(x)) of units whose convolutions gave xs. All units have BN or none has; BN layers share collectives."""
  if len(units) == 1 and units[0].norm is not None:
    xs = [units[0].norm(xs[0], train=train, mask=mask)]
  elif units[0].norm is not None:
    xs = batch_norm.normalize_layers([unit.norm for unit in units], xs, train=train, mask=mask)
  return [unit.nonlinearity(x) for unit, x in zip(units, xs)]


def convolve_together(
  kernels: Sequence[jax.Array], convolve: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array
) -> list[jax.Array]:
  """convolve(x, kernel) of several kernels as one convolution, which reads x once.

  The kernels differ only in the number of features.
  """
  ends = np.cumsum([kernel.shape[-1] for kernel in kernels])[:-1]
  return jnp.split(convolve(x, jnp.concatenate(kernels, axis=-1)), ends, axis=-1)


def fold_batch_norm(variables: dict[str, Any], *, epsilon: float) -> dict[str, Any]:
  """Converts the variables of a network with BN to the network without BN (`batch_norm.enabled = False`).

  Args:
    variables: {"params", "batch_stats"} of a network in which `bn` normalizes the output of its neighbour `conv`
      (ConvUnit), and `bn1` normalizes the output of `hidden1` (MnistMlp).
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
      raise ValueError(
        f"{path[1:]} has BN per activation, which cannot be folded into a convolution: evaluate this network unfolded."
      )
    kernel, bias = batch_norm.fold(
      affine["kernel"],
      affine.get("bias"),
      statistics["mean"],
      statistics["var"],
      norm.get("gamma", jnp.ones_like(beta)),
      beta,
      epsilon=epsilon,
    )
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
