"""Batch normalization: the paper's transform (Algorithm 1), its gradient (§3), and its use at inference (Algorithm 2).

A mini-batch of the algorithm is a *group* of `group_size` consecutive examples, on any number of devices. `batch_norm`
returns the activations and the `Moments` of every group. The caller decides what becomes of the moments: running
averages (`update_running_averages`, or the layer `BatchNorm` by itself), Algorithm 2's population statistics
(population.py), or nothing.

Sharding. Under a mesh the batch is split evenly over all devices. A group lies inside one device or spans several
devices. Each device reduces its own part. Only a group that spans devices needs communication: one collective forward
(mean and variance travel together) and one backward (the two sums of §3 travel together). Layers that stand side by
side share both collectives (`batch_norms`). The running averages of all layers travel together, once a step.

The mesh has Auto axes. Some axes may not split the batch (a model axis). Explicit axes become Auto inside the
transform. Inside `shard_map` and `pmap` a layer sees the share of one device, and training is refused.

Precision. Moments are float32 (float64 for float64 input) for every compute type. The variance is taken around a value
close to the mean, so the variance keeps its digits when |mean| >> std. Parts of a group are merged by their means and
variances (Chan et al., 1979), never through E[x^2] - E[x]^2.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bn_inception import parameter_names
from bn_inception.errors import UserError


@flax.struct.dataclass
class Moments:
  """Moments of G groups over F features (F is (C,), or (H, W, C) per activation).

  Attributes:
    mean: [G, *F] float32, mu of Algorithm 1.
    variance: [G, *F] float32, the biased variance of Algorithm 1.
    count: [G] float32, the number of values in each group (m, or m*p*q for a convolution).
  """

  mean: jax.Array
  variance: jax.Array
  count: jax.Array


def statistics_dtype(dtype: Any) -> Any:
  """The type of moments: float32, or float64 for float64 input."""
  return jnp.promote_types(dtype, jnp.float32)


def _parts(batch: int, group_size: int | None) -> tuple[int, int]:
  """(groups, parts) of a batch. A part is the share of one group on one device. Each group has parts / groups parts.

  Parts decide only where communication happens. Results do not depend on the parts.
  """
  group_size = group_size or batch
  if batch % group_size:
    raise ValueError(
      f"A batch of {batch} examples does not divide into BN groups of {group_size}: choose a multiple of {group_size}."
    )
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.manual_axes or mesh.explicit_axes:
    kind = "shard_map or pmap over" if mesh.manual_axes else "the Explicit axes"
    raise ValueError(
      f"BN groups are of the whole batch, which cannot be seen inside {kind} "
      f"{', '.join(mesh.manual_axes or mesh.explicit_axes)}: compute BN under plain jax.jit, with the batch split "
      "over a mesh of axis_types=(AxisType.Auto,)."
    )
  devices = 1 if mesh.empty else mesh.size
  # A group may straddle two shares (12 examples a device, groups of 8). Results are right then, and XLA moves the data.
  spans_devices = batch % devices == 0 and group_size % (batch // devices) == 0
  return batch // group_size, max(devices, batch // group_size) if spans_devices else batch // group_size


def _replicate(x: jax.Array) -> jax.Array:
  """Gives every device all of `x`. This is one collective under a mesh, and nothing without a mesh."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec())


def _merge(
  mean: jax.Array, variance: jax.Array, count: jax.Array, axis: int, offset: jax.Array | float = 0.0
) -> tuple[jax.Array, ...]:
  """Mean, variance and count of a union from the means, variances and counts of its parts (Chan et al., 1979).

  The parts lie along `axis`. The mean of a part is mean + offset. The two are not added before the merge: means differ
  by much less than their size, and rounding the sum would lose the difference.
  """
  total = jnp.sum(count, axis)
  weight = count / jnp.maximum(jnp.expand_dims(total, axis), 1)
  weight = weight.reshape(weight.shape + (1,) * (mean.ndim - count.ndim))
  shift = jnp.sum(weight * mean, axis, keepdims=True)
  centred = mean - shift + offset
  shift_offset = jnp.sum(weight * centred, axis, keepdims=True)
  merged_variance = jnp.sum(weight * (variance + (centred - shift_offset) ** 2), axis)
  return jnp.squeeze(shift + shift_offset, axis), merged_variance, total


def _in_parts(x: jax.Array, parts: int) -> jax.Array:
  """[B, ...] as [parts, B / parts, ...]."""
  return x.reshape(parts, x.shape[0] // parts, *x.shape[1:])


def _averaged_axes(x: jax.Array, per_activation: bool) -> tuple[int, ...]:
  """The axes of x [parts, examples, ..., C] that moments average within a part."""
  return (1,) if per_activation else tuple(range(1, x.ndim - 1))


def _spread(statistic: jax.Array, x: jax.Array) -> jax.Array:
  """Statistics of groups or parts, [n, *F], laid out to broadcast against x [parts, examples, ..., C]."""
  features = statistic.shape[1:]
  per_part = jnp.repeat(statistic, x.shape[0] // statistic.shape[0], axis=0)
  return per_part.reshape(x.shape[0], *(1,) * (x.ndim - 1 - len(features)), *features)


def group_moments(
  x: jax.Array, *, group_size: int | None = None, mask: jax.Array | None = None, per_activation: bool = False
) -> Moments:
  """Mean and biased variance of each group (Algorithm 1, lines 1 and 2).

  Args:
    x: [B, ..., C], any float type.
    group_size: examples a group; None: all B.
    mask: [B]; examples where the mask is 0 or False count for nothing.
    per_activation: moments of every activation (row, column, channel) rather than of every feature map.

  Returns:
    Moments of B / group_size groups. A group without any example has mean 0, variance 0 and count 0.

  Raises:
    ValueError: if group_size does not divide B.
  """
  return _moments((x,), mask, group_size, per_activation)[0]


class _PartMoments(NamedTuple):
  """Moments of the parts of one layer, [parts, *F]; the mean is shift + offset, see `_merge`."""

  shift: jax.Array
  offset: jax.Array
  variance: jax.Array
  count: jax.Array  # [parts, 1, ...]


def _part_moments(x: jax.Array, mask: jax.Array | None, parts: int, per_activation: bool) -> _PartMoments:
  """Reduces x [B, ..., C] on every device by itself."""
  x = _in_parts(x, parts).astype(statistics_dtype(x.dtype))
  axes = _averaged_axes(x, per_activation)
  values = math.prod(x.shape[axis] for axis in axes)  # In a part.
  features = tuple(size for axis, size in enumerate(x.shape) if axis > 0 and axis not in axes)
  if mask is None:
    weight = 1.0
    count = jnp.full((parts, *(1,) * len(features)), values, x.dtype)
    # Any value near the mean can be the shift if computing this value needs no pass over x. The mean of the part's
    # first example is within sqrt(examples) standard deviations of the part's mean. So at most log2(examples) bits are
    # lost below.
    shift = jnp.mean(x[:, :1], axes)
  else:
    weight = _in_parts(mask, parts).reshape(*x.shape[:2], *(1,) * (x.ndim - 2)).astype(x.dtype)
    count = jnp.sum(weight, 1).reshape(parts, *(1,) * len(features)) * (values // x.shape[1])
    x = jnp.where(weight > 0, x, 0)  # A masked value may be anything, also NaN.
    shift = jnp.sum(weight * x, axes) / jnp.maximum(count, 1)
  centred = x - _spread(shift, x)
  offset = jnp.sum(weight * centred, axes) / jnp.maximum(count, 1)
  variance = jnp.maximum(jnp.sum(weight * centred**2, axes) / jnp.maximum(count, 1) - offset**2, 0)
  return _PartMoments(shift, offset, variance, count)


def _moments(
  xs: Sequence[jax.Array], mask: jax.Array | None, group_size: int | None, per_activation: bool
) -> list[Moments]:
  """`group_moments` of several layers. The layers share one collective if groups span devices."""
  groups, parts = _parts(xs[0].shape[0], group_size)
  layers = [_part_moments(x, mask, parts, per_activation) for x in xs]
  if parts == groups:
    return [Moments(layer.shift + layer.offset, layer.variance, layer.count.reshape(groups)) for layer in layers]
  stacked = [jnp.stack([*layer[:3], jnp.broadcast_to(layer.count, layer.shift.shape)]) for layer in layers]
  merged = []
  for shift, offset, variance, count in _together(stacked, 2):
    in_groups = (leaf.reshape(groups, parts // groups, *leaf.shape[1:]) for leaf in (shift, variance, count, offset))
    shift, variance, count, offset = in_groups
    mean, variance, count = _merge(shift, variance, count, 1, offset)
    merged.append(jax.tree.map(_replicate, Moments(mean, variance, count.reshape(groups, -1)[:, 0])))
  return merged


def _together(leaves: Sequence[jax.Array], axes: int) -> list[jax.Array]:
  """Gives every device all of several arrays in one collective. The first `axes` axes of all arrays are alike."""
  if len(leaves) == 1:
    return [_replicate(leaves[0])]
  kept = leaves[0].shape[:axes]
  widths = np.cumsum([math.prod(leaf.shape[axes:]) for leaf in leaves])[:-1]
  together = _replicate(jnp.concatenate([leaf.reshape(*kept, -1) for leaf in leaves], axis=-1))
  return [piece.reshape(leaf.shape) for piece, leaf in zip(jnp.split(together, widths, axis=-1), leaves)]


def batch_norm(
  x: jax.Array,
  gamma: jax.Array,
  beta: jax.Array,
  *,
  epsilon: float,
  group_size: int | None = None,
  mask: jax.Array | None = None,
  per_activation: bool = False,
) -> tuple[jax.Array, Moments]:
  """Algorithm 1: normalizes every group by its own mean and variance, then scales and shifts.

  The gradient flows through the moments as in §3. To the gradient the returned moments are constants. Masked examples
  are normalized like the other examples but do not enter the moments.

  Args:
    x: [B, ..., C], any float type.
    gamma: [*F], F = (C,), or x.shape[1:] per activation.
    beta: [*F].
    epsilon: added to the variance.
    group_size, mask, per_activation: as in `group_moments`.

  Returns:
    (y, moments): y like x in shape and type.

  Raises:
    ValueError: if group_size does not divide B.
  """
  return batch_norms(
    (x,), (gamma,), (beta,), epsilon=epsilon, group_size=group_size, mask=mask, per_activation=per_activation
  )[0]


def batch_norms(
  xs: Sequence[jax.Array],
  gammas: Sequence[jax.Array],
  betas: Sequence[jax.Array],
  *,
  epsilon: float,
  group_size: int | None = None,
  mask: jax.Array | None = None,
  per_activation: bool = False,
) -> list[tuple[jax.Array, Moments]]:
  """`batch_norm` of layers that do not depend on each other. The layers share its collectives if groups span devices.

  Args:
    xs: the input of each layer, [B, ..., C] with the same B.
    gammas, betas: the parameters of each layer.
    epsilon, group_size, mask, per_activation: as in `batch_norm`, the same for all layers.

  Returns:
    (y, moments) of each layer.

  Raises:
    ValueError: if group_size does not divide B.
  """
  transform = lambda *arrays: _batch_norms(*arrays, epsilon, group_size, per_activation)
  shardings = [jax.typeof(x).sharding for x in xs]
  meshes = (sharding.mesh for sharding in shardings)
  mesh = next((mesh for mesh in meshes if mesh.explicit_axes and not mesh.manual_axes), None)
  if mesh is not None:
    # The results are as without Explicit axes: activations sharded like their input, moments on every device.
    moments = Moments(*[NamedSharding(mesh, PartitionSpec())] * 3)
    results = [(NamedSharding(mesh, sharding.spec), moments) for sharding in shardings]
    transform = jax.sharding.auto_axes(transform, out_sharding=results)
  return transform(tuple(xs), tuple(gammas), tuple(betas), mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _batch_norms(xs, gammas, betas, mask, epsilon, group_size, per_activation):
  return _batch_norms_forward(xs, gammas, betas, mask, epsilon, group_size, per_activation)[0]


def _batch_norms_forward(xs, gammas, betas, mask, epsilon, group_size, per_activation):
  _, parts = _parts(xs[0].shape[0], group_size)
  all_moments = _moments(xs, mask, group_size, per_activation)

  def normalize(x, gamma, beta, moments):
    part = _in_parts(x, parts)
    scale = gamma * jax.lax.rsqrt(moments.variance + epsilon)
    y = (part - _spread(moments.mean, part)) * _spread(scale, part) + beta
    return y.astype(x.dtype).reshape(x.shape), moments

  results = [normalize(*layer) for layer in zip(xs, gammas, betas, all_moments, strict=True)]
  return results, (xs, gammas, betas, mask, all_moments)


def _batch_norms_backward(epsilon, group_size, per_activation, residuals, cotangents):
  """The chain rule of §3 as one formula, with sums over the group:

  d/dx = gamma / sqrt(var + eps) * (dy - sum(dy) / m - xhat * sum(dy * xhat) / m).
  """
  xs, gammas, betas, mask, all_moments = residuals
  groups, parts = _parts(xs[0].shape[0], group_size)
  dys = [_in_parts(dy, parts).astype(moments.mean.dtype) for (dy, _), moments in zip(cotangents, all_moments)]
  inverse_stds = [jax.lax.rsqrt(moments.variance + epsilon) for moments in all_moments]
  xhats = [
    (_in_parts(x, parts) - _spread(moments.mean, dy)) * _spread(inverse_std, dy)
    for x, dy, moments, inverse_std in zip(xs, dys, all_moments, inverse_stds)
  ]

  all_sums = []
  for dy, xhat in zip(dys, xhats):
    axes = _averaged_axes(dy, per_activation)
    all_sums.append(jnp.stack([jnp.sum(dy, axes), jnp.sum(dy * xhat, axes)]))  # [2, parts, *F]
  if parts != groups:
    all_sums = [
      _replicate(jnp.sum(sums.reshape(2, groups, parts // groups, *sums.shape[2:]), axis=2))
      for sums in _together(all_sums, 2)
    ]

  def gradients(x, gamma, beta, moments, dy, xhat, inverse_std, sums):
    count = jnp.maximum(moments.count, 1).reshape(groups, *(1,) * gamma.ndim)
    mean_dy, mean_dy_xhat = sums / count
    through_moments = _spread(mean_dy, dy) + xhat * _spread(mean_dy_xhat, dy)
    if mask is not None:  # The moments do not depend on masked examples.
      through_moments *= _in_parts(mask, parts).reshape(*dy.shape[:2], *(1,) * (dy.ndim - 2)).astype(dy.dtype)
    dx = _spread(gamma * inverse_std, dy) * (dy - through_moments)
    dbeta, dgamma = jnp.sum(sums, axis=1)
    return dx.reshape(x.shape).astype(x.dtype), dgamma.astype(gamma.dtype), dbeta.astype(beta.dtype)

  layers = zip(xs, gammas, betas, all_moments, dys, xhats, inverse_stds, all_sums)
  return *(tuple(leaves) for leaves in zip(*(gradients(*layer) for layer in layers))), None


_batch_norms.defvjp(_batch_norms_forward, _batch_norms_backward)


def normalize_with(
  x: jax.Array, mean: jax.Array, variance: jax.Array, gamma: jax.Array, beta: jax.Array, *, epsilon: float
) -> jax.Array:
  """BN with given statistics: one affine map per feature (Algorithm 2, line 11).

  Args:
    x: [B, ..., C], any float type.
    mean, variance, gamma, beta: [*F].
    epsilon: added to the variance.

  Returns:
    Like x in shape and type.
  """
  # The mean is subtracted first, not moved into the offset. The map is the same, and there is no cancellation.
  return ((x - mean) * (gamma * jax.lax.rsqrt(variance + epsilon)) + beta).astype(x.dtype)


def fold(
  kernel: jax.Array,
  bias: jax.Array | None,
  mean: jax.Array,
  variance: jax.Array,
  gamma: jax.Array,
  beta: jax.Array,
  *,
  epsilon: float,
) -> tuple[jax.Array, jax.Array]:
  """Folds BN's affine map (Algorithm 2, line 11) into the convolution or dense layer in front of it.

  Args:
    kernel: [..., C].
    bias: [C], or None if the layer has no bias.
    mean, variance, gamma, beta: [C].
    epsilon: added to the variance.

  Returns:
    (kernel, bias) of the layer that computes both maps.
  """
  scale = gamma * jax.lax.rsqrt(variance + epsilon)
  return kernel * scale, beta + ((0 if bias is None else bias) - mean) * scale


def update_running_averages(
  running: Any,
  moments: Any,
  *,
  momentum: float,
  step: jax.Array,
  start_counts: Callable[[str], bool] = lambda layer: False,
) -> Any:
  """Moves running averages towards a training step's mean and unbiased variance (§3.1).

  The groups of a step are first merged into the moments of all examples of the step. The merged variance includes the
  variance of the groups' means. In the first steps the average is the plain mean of these steps, so the start value
  never counts.

  Args:
    running: the `batch_stats` collection: {"mean", "var"} [*F] for every BN layer.
    moments: the `batch_moments` collection of the step: {"moments": Moments} for every BN layer. Without BN the
      collection is empty. The averages of a layer that the collection lacks stay.
    momentum: weight of the old average.
    step: how many steps came before.
    start_counts: a function of the name of a layer ("conv1/bn"). True means that the layer's start value is already an
      average, that of a trained network.

  Returns:
    The new `batch_stats`.
  """
  leaves, layout = jax.tree.flatten(moments)
  if not leaves:
    return running
  # Every device merges its own groups, so the communication does not grow with the number of groups.
  groups = leaves[0].shape[0]
  mesh = jax.sharding.get_abstract_mesh()
  devices = 1 if mesh.empty else mesh.size
  if devices > 1 and groups > devices and groups % devices == 0:

    def merge_own(layer: Moments) -> Moments:
      own = (
        leaf.reshape(devices, groups // devices, *leaf.shape[1:]) for leaf in (layer.mean, layer.variance, layer.count)
      )
      return Moments(*_merge(*own, axis=1))

    leaves, layout = jax.tree.flatten(map_layers(lambda layer: {"moments": merge_own(layer)}, moments))
  # All layers travel together: one collective a step, not two a layer.
  moments = jax.tree.unflatten(layout, _together(leaves, 1))
  forgetting = jnp.minimum(momentum, step / (step + 1))

  def moved(layer: Moments, averages: dict[str, jax.Array], decay: dict[str, Any]) -> dict[str, jax.Array]:
    return _moved_averages(layer, averages, decay["moments"])

  decays = jax.tree_util.tree_map_with_path(
    lambda path, _: momentum if start_counts("/".join(entry.key for entry in path[:-1])) else forgetting,
    moments,
    is_leaf=lambda node: isinstance(node, Moments),
  )
  return replaced(running, map_layers(moved, moments, running, decays))


def replaced(batch_stats: Any, new: Any) -> Any:
  """`batch_stats` with the statistics of `new` in place of its own. Layers that `new` lacks (frozen layers) stay."""
  flatten = flax.traverse_util.flatten_dict
  return flax.traverse_util.unflatten_dict(flatten(batch_stats) | flatten(new))


def _moved_averages(moments: Moments, running: dict[str, jax.Array], decay: jax.Array | float) -> dict[str, jax.Array]:
  """{"mean", "var"} of a layer, moved towards the mean and the unbiased variance of all examples of the groups."""
  mean, variance, count = _merge(moments.mean, moments.variance, moments.count, axis=0)
  unbiased = variance * count / jnp.maximum(count - 1, 1)
  return {"mean": decay * running["mean"] + (1 - decay) * mean, "var": decay * running["var"] + (1 - decay) * unbiased}


def map_layers(f: Any, moments: Any, *rest: Any) -> Any:
  """Applies f to the Moments of every layer and to the layer's node in `rest`. The nesting of layers stays."""
  if "moments" in moments:
    return f(moments["moments"], *rest)
  return {name: map_layers(f, node, *(other[name] for other in rest)) for name, node in moments.items()}


class BatchNorm(nn.Module):
  """Algorithm 1 in training, one affine map at inference, as a Flax layer for any network.

  The layer has parameters `gamma` (ones) and `beta` (zeros) of shape [*F], and the collection `batch_stats` with `mean`
  and `var`, which inference reads. In training the caller's `mutable` decides what the layer does with the moments of
  the step:

  - `mutable=["batch_stats"]`, Flax's convention: `batch_stats` move to the mean and unbiased variance of all examples
    of the step, as in `nn.BatchNorm` (whose variance is biased). Steps without examples (`mask`) leave `batch_stats`.
  - `mutable=["batch_moments"]`: this collection receives the `Moments` of each group, and `batch_stats` stay. The
    training step of this project makes running averages of these moments (`update_running_averages`), population.py
    makes population statistics.

  Initializing does neither. Results do not depend on the devices of a mesh. The module's docstring says which meshes
  are possible.

  Attributes:
    epsilon: added to the variance.
    group_size: examples normalized together in training; None: the whole global batch.
    use_gamma: False fixes gamma to 1.
    per_activation: one gamma, beta and statistic for every activation, not for every feature map (§3.2).
    momentum: weight of the old running averages if the layer moves them itself.
    frozen: patterns of parameters (parameter_names.py). A layer is frozen if the patterns name all its parameters. In
      training a frozen layer is in inference mode too: it normalizes with its running averages, does not move these
      averages, and writes no moments.

  Raises:
    ValueError: in training, if neither collection is mutable, group_size does not divide the batch, or the layer is
      inside `shard_map` or `pmap`.
  """

  epsilon: float
  group_size: int | None = None
  use_gamma: bool = True
  per_activation: bool = False
  momentum: float = 0.99
  frozen: tuple[str, ...] = ()

  @property
  def is_frozen(self) -> bool:
    own = ("gamma", "beta") if self.use_gamma else ("beta",)
    return all(parameter_names.matches("/".join((*self.path, name)), self.frozen) for name in own)

  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
    return normalize_layers([self], [x], train=train, mask=mask)[0]

  @nn.compact
  def variables_for(self, x: jax.Array) -> "Variables":
    """The layer's variables for an input like x. If gamma is no parameter, gamma is ones."""
    features = x.shape[1:] if self.per_activation else x.shape[-1:]
    gamma = (
      self.param("gamma", nn.initializers.ones, features)
      if self.use_gamma
      else jnp.ones(features, statistics_dtype(x.dtype))
    )
    beta = self.param("beta", nn.initializers.zeros, features)
    mean = self.variable("batch_stats", "mean", jnp.zeros, features)
    variance = self.variable("batch_stats", "var", jnp.ones, features)
    return Variables(gamma, beta, mean.value, variance.value)

  def keep(self, moments: Moments) -> None:
    """Writes the moments of a training step, or moves the running averages, as the caller's `mutable` says."""
    if self.is_initializing():
      return
    # A caller that makes everything mutable has not asked for moments.
    names_collections = self.scope.mutable is not True and not isinstance(self.scope.mutable, nn.DenyList)
    if names_collections and self.is_mutable_collection("batch_moments"):
      self.put_variable("batch_moments", "moments", moments)
    elif self.is_mutable_collection("batch_stats"):
      running = {name: self.get_variable("batch_stats", name) for name in ("mean", "var")}
      has_examples = jnp.sum(moments.count) > 0
      for name, moved in _moved_averages(moments, running, self.momentum).items():
        kept = running[name]
        self.put_variable("batch_stats", name, jnp.where(has_examples, moved, kept).astype(kept.dtype))
    else:
      raise ValueError(
        f"The BN layer {'/'.join(self.path) or type(self).__name__} trains, but may not write its running averages: "
        "call apply(..., train=True, mutable=['batch_stats']) and keep the returned batch_stats, or say train=False."
      )


class SingleValueError(UserError, ValueError):
  """A BN group has a single value. The text is one sentence that says where, and what to do."""


class Variables(NamedTuple):
  """The variables of a `BatchNorm`: parameters gamma and beta, running mean and variance, each [*F]."""

  gamma: jax.Array
  beta: jax.Array
  mean: jax.Array
  variance: jax.Array


def normalize_layers(
  layers: Sequence[BatchNorm], xs: Sequence[jax.Array], *, train: bool, mask: jax.Array | None = None
) -> list[jax.Array]:
  """Applies each layer to its own input (`batch_norms`). The layers are independent and configured alike.

  Args:
    layers: bound layers of one network.
    xs: the input of each layer, [B, ..., C] with the same B.
    train, mask: as of `BatchNorm`.

  Raises:
    SingleValueError: in training, if a group of a layer has one value. This value is its own mean, so every output
      would be beta.
  """
  variables = [layer.variables_for(x) for layer, x in zip(layers, xs, strict=True)]
  first = layers[0]
  with_batch = [train and not layer.is_frozen for layer in layers]
  if not all(with_batch):
    ys = [
      None if trains else normalize_with(x, own.mean, own.variance, own.gamma, own.beta, epsilon=first.epsilon)
      for x, own, trains in zip(xs, variables, with_batch)
    ]
    rest = [place for place, trains in enumerate(with_batch) if trains]
    if rest:
      of_rest = normalize_layers(
        [layers[place] for place in rest], [xs[place] for place in rest], train=True, mask=mask
      )
      for place, y in zip(rest, of_rest):
        ys[place] = y
    return ys
  for layer, x in zip(layers, xs):
    values = (layer.group_size or x.shape[0]) * (1 if layer.per_activation else math.prod(x.shape[1:-1]))
    if values == 1 and not layer.is_initializing():
      raise SingleValueError(
        f"BN in {'/'.join(layer.path)} would normalize a single value, as its groups are of one example and its map "
        f"is {'x'.join(map(str, x.shape[1:-1])) or 'one value'}: choose a larger batch_norm.group_size or image."
      )
  results = batch_norms(
    xs,
    [own.gamma for own in variables],
    [own.beta for own in variables],
    epsilon=first.epsilon,
    group_size=first.group_size,
    mask=mask,
    per_activation=first.per_activation,
  )
  for layer, (_, moments) in zip(layers, results):
    layer.keep(moments)
  return [y for y, _ in results]
