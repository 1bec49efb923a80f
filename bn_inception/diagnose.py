"""Why is a network good in training and bad in evaluation? Its BN statistics, three kinds side by side.

For any Flax Linen network with `nn.BatchNorm` or this project's `BatchNorm` (Flax NNX is not covered). The network
runs in evaluation mode; `nn.intercept_methods` puts other statistics into its BN layers: `running`, which it holds;
`population`, Algorithm 2's over the given batches; `batch`, each batch's own, as in training. Weights stay as they are.

With one kind good and another bad, the statistics are at fault and the layers below say where; with all alike, they are
not, and what differs between training and evaluation is something else (data, preprocessing, overfitting).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bn_inception import batch_norm, population
from bn_inception.errors import UserError

KINDS = ("running", "population", "batch")
# From how many standard errors of the mean difference between batches, and from which part of the value, on two kinds
# of statistics are said to differ in a metric: what is surely there, and worth to be spoken of.
_SIGNIFICANT, _MATERIAL = 3.0, 0.05
_START_LEFT = 0.1  # Share of the start values, zeros and ones, from which on it is remarked.

Batch = Any
Evaluate = Callable[[Any, Batch], Mapping[str, jax.Array]]


class DiagnosisError(UserError, ValueError):
  """A network that cannot be diagnosed; the text is one sentence that says what is wrong and what to do."""


class Layer(NamedTuple):
  """A BN layer. Distances are root mean squares over its features with a variance, whose number is not 0.

  Attributes:
    path: "inception_3a/1x1/bn".
    shift: [F], running mean - population mean, in standard deviations of the population.
    ratio: [F], running variance / population variance.
    mean_distance: of `shift`.
    variance_distance: of ln `ratio`.
    batch_mean_distance: of a single batch's mean from the population's, for comparison.
    start_left: the share of the start values (mean 0, variance 1) that running averages still hold, if the rest is the
      population's: momentum to the power of the updates; NaN where this does not describe them.
    never_updated: running averages are the start values.
    zero_variance: how many features have the same value everywhere, in the population.
    own_statistics: the layer normalizes with the batch's own statistics in evaluation too.
  """

  path: str
  shift: np.ndarray
  ratio: np.ndarray
  mean_distance: float
  variance_distance: float
  batch_mean_distance: float
  start_left: float
  never_updated: bool
  zero_variance: int
  own_statistics: bool

  @property
  def distance(self) -> float:
    """What layers are ranked by."""
    return self.mean_distance + self.variance_distance


class Diagnosis(NamedTuple):
  """What was found.

  Attributes:
    metrics: {"training": {"running": {metric: its mean over batches}, ...}}, and "evaluation" if there were such.
    layers: the farthest from the population first; `network_order` has their places in the network.
    network_order: paths, from input to output.
    findings: sentences, the gravest first; never empty.
  """

  metrics: dict[str, dict[str, dict[str, float]]]
  layers: list[Layer]
  network_order: list[str]
  findings: list[str]


def diagnose(
  evaluate: Evaluate, variables: Mapping[str, Any], batches: Sequence[Batch], evaluation_batches: Sequence[Batch] = ()
) -> Diagnosis:
  """Compares a network's running averages with the statistics of batches.

  Args:
    evaluate: runs the network as it is evaluated and returns means over the examples of a batch, {"loss": scalar,
      "accuracy": ...}: `lambda variables, batch: {"loss": loss(model.apply(variables, batch["image"], train=False),
      batch["label"])}`. Not jit-compiled: that is done here.
    variables: {"params", "batch_stats", ...}.
    batches: of training, two or more, each of the size that training normalizes together (a layer with `group_size`
      splits them itself), with the distortions of training.
    evaluation_batches: of the evaluation; whole ones.

  Raises:
    DiagnosisError: if there are fewer than two batches, or no BN layer is seen.
  """
  batches, evaluation_batches = list(batches), list(evaluation_batches)
  if len(batches) < 2:
    raise DiagnosisError(f"A diagnosis needs two training batches at least, and {len(batches)} came: give more.")
  runs = {kind: _make_run(evaluate, kind) for kind in KINDS}
  values = {"training": {}} | ({"evaluation": {}} if evaluation_batches else {})
  of_batch = [jax.device_get(runs["batch"](variables, {}, batch)) for batch in batches]
  moments = [seen.moments for _, seen in of_batch]
  if not moments[0]:
    raise DiagnosisError(
      "No BN layer was seen: the network has neither nn.BatchNorm nor BatchNorm, or was jit-compiled "
      "before, and then give the function that is not."
    )
  statistics = population.population_statistics(
    {path: {"moments": layer} for path, layer in of_one.items()} for of_one in moments
  )
  values["training"]["batch"] = [metrics for metrics, _ in of_batch]
  for name, some in (("training", batches), ("evaluation", evaluation_batches)):
    for kind in KINDS:
      if some and kind not in values[name]:
        values[name][kind] = [jax.device_get(runs[kind](variables, statistics, batch)[0]) for batch in some]
  layers = [
    _layer(path, statistics[path], of_batch[0][1].running[path], [of_one[path] for of_one in moments], trains)
    for path, trains in of_batch[0][1].trains.items()
  ]
  metrics = {
    name: {
      kind: {metric: float(np.mean([value[metric] for value in of_kind[kind]])) for metric in of_kind[kind][0]}
      for kind in KINDS
    }
    for name, of_kind in values.items()
  }
  ranked = sorted(layers, key=lambda layer: -layer.distance)
  return Diagnosis(metrics, ranked, [layer.path for layer in layers], _findings(values, ranked))


@flax.struct.dataclass
class _Seen:
  """Of each layer: moments of the batch's groups, running averages, whether it trains though it should evaluate."""

  moments: dict[str, batch_norm.Moments]
  running: dict[str, dict[str, jax.Array]]
  trains: dict[str, bool] = flax.struct.field(pytree_node=False)  # In the order of the network.


def _make_run(evaluate: Evaluate, kind: str) -> Callable[[Any, Any, Batch], tuple[Mapping[str, jax.Array], _Seen]]:
  """Compiles `evaluate` with a kind of statistics, given variables, population statistics and a batch."""
  trains: dict[str, bool] = {}  # Known once the program is traced.

  def run(variables: Any, statistics: Any, batch: Batch):
    moments, running = {}, {}

    def statistics_of(
      path: str, x: jax.Array, mean: jax.Array, variance: jax.Array, group_size: int | None, per_activation: bool
    ) -> tuple[jax.Array, jax.Array]:
      trains.setdefault(path, False)
      of_groups = batch_norm.group_moments(x, group_size=group_size, per_activation=per_activation)
      if path in moments:  # A layer that is called twice has both inputs in its averages.
        of_groups_before = moments[path]
        moments[path] = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), of_groups_before, of_groups)
      else:
        moments[path], running[path] = of_groups, {"mean": mean, "var": variance}
      if kind == "batch" or trains.get(path):
        features = of_groups.mean.shape[1:]
        spread = lambda leaf: jnp.repeat(leaf, x.shape[0] // leaf.shape[0], 0).reshape(
          x.shape[0], *(1,) * (x.ndim - 1 - len(features)), *features
        )
        return spread(of_groups.mean), spread(of_groups.variance)
      if kind == "population":
        return statistics[path]["mean"], statistics[path]["var"]
      return mean, variance

    def intercept(function, args, kwargs, context):
      layer, method = context.module, context.method_name
      path = "/".join(layer.path)
      if isinstance(layer, batch_norm.BatchNorm):
        if method == "keep":  # Called in training alone; there is nowhere to keep anything.
          trains[path] = True
          return None
        result = function(*args, **kwargs)
        if method == "variables_for":
          mean, variance = statistics_of(
            path, args[0], result.mean, result.variance, layer.group_size, layer.per_activation
          )
          result = result._replace(mean=mean, variance=variance)
        return result
      if isinstance(layer, nn.BatchNorm) and method == "__call__":
        return _flax_batch_norm(layer, path, trains, statistics_of, *args, **kwargs)
      return function(*args, **kwargs)

    with nn.intercept_methods(intercept):
      metrics = evaluate(variables, batch)
    return metrics, moments, running

  compiled = jax.jit(run)

  def call(variables: Any, statistics: Any, batch: Batch):
    try:
      metrics, moments, running = compiled(variables, statistics, batch)
    except jax.errors.UnexpectedTracerError as error:
      raise DiagnosisError(
        "The network is jit-compiled inside `evaluate`, where no other statistics can be put into "
        "its layers: give the function that is not."
      ) from error
    return metrics, _Seen(moments, running, trains)

  return call


def _flax_batch_norm(
  layer: nn.BatchNorm,
  path: str,
  trains: dict[str, bool],
  statistics_of: Callable[..., Any],
  x: jax.Array,
  use_running_average: bool | None = None,
  *,
  mask: jax.Array | None = None,
) -> jax.Array:
  """`nn.BatchNorm.__call__` with other statistics."""
  if layer.axis not in (-1, x.ndim - 1) or mask is not None:
    raise DiagnosisError(
      f"The BN layer {path} is over axis {layer.axis} or has a mask, and only one over the last axis "
      "without a mask can be diagnosed."
    )
  trains[path] = not nn.merge_param("use_running_average", layer.use_running_average, use_running_average)
  held = layer.variables
  averages, params = held["batch_stats"], held.get("params", {})
  features = x.shape[-1:]
  mean, variance = statistics_of(path, x, averages["mean"], averages["var"], None, False)
  y = batch_norm.normalize_with(
    x.astype(batch_norm.statistics_dtype(x.dtype)),
    mean,
    variance,
    params.get("scale", jnp.ones(features)),
    params.get("bias", jnp.zeros(features)),
    epsilon=layer.epsilon,
  )
  return y.astype(layer.dtype or x.dtype)


def _layer(
  path: str,
  statistics: dict[str, np.ndarray],
  running: dict[str, np.ndarray],
  moments: Iterable[batch_norm.Moments],
  own_statistics: bool,
) -> Layer:
  """Compares a layer's running averages with its population statistics, in float64."""
  mean, variance = (np.float64(statistics[name]).ravel() for name in ("mean", "var"))
  running_mean, running_variance = (np.float64(running[name]).ravel() for name in ("mean", "var"))
  batch_means = np.concatenate([np.float64(of_batch.mean).reshape(len(of_batch.mean), -1) for of_batch in moments])
  # Rounding leaves a constant feature a little variance.
  alive = variance > 1e-12 * (1 + mean**2)
  std = np.sqrt(variance[alive])
  shift = (running_mean - mean)[alive] / std
  ratio = running_variance[alive] / variance[alive]
  rms = lambda x: math.sqrt(np.mean(np.square(x))) if x.size else 0.0
  with np.errstate(divide="ignore"):
    logarithms = np.clip(np.log(ratio), -50, 50)  # Of a running variance of 0 too.
  return Layer(
    path,
    shift,
    ratio,
    rms(shift),
    rms(logarithms),
    rms((batch_means - mean)[:, alive] / std),
    _start_left(
      np.concatenate([mean[alive], variance[alive] - 1]),
      np.concatenate([running_mean[alive], running_variance[alive] - 1]),
    ),
    bool(np.all(running_mean == 0) and np.all(running_variance == 1)),
    int(np.sum(~alive)),
    own_statistics,
  )


def _start_left(population_part: np.ndarray, running_part: np.ndarray) -> float:
  """The s of running = (1 - s) population, both without the start values; NaN if it explains less than 90%."""
  scale = np.sum(population_part**2)
  if not scale or not np.sum(running_part**2):
    return math.nan
  slope = np.sum(running_part * population_part) / scale
  explained = 1 - np.sum((running_part - slope * population_part) ** 2) / np.sum(running_part**2)
  return float(1 - slope) if explained > 0.9 and 0 <= 1 - slope <= 1 else math.nan


def _differ(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], metric: str) -> bool:
  """Whether a metric's mean differs between two kinds of statistics on the same batches, surely and by enough."""
  values = np.array([[float(of_batch[metric]) for of_batch in kind] for kind in (first, second)])
  if values.shape[1] < 2:
    return False
  finite = np.isfinite(values).all(1)
  if not finite.all():
    return bool(finite.any())
  differences = values[0] - values[1]
  error = differences.std(ddof=1) / math.sqrt(len(differences))
  return bool(abs(differences.mean()) > max(_SIGNIFICANT * error, _MATERIAL * np.abs(values.mean(1)).max()))


def _findings(values: dict[str, dict[str, list[Mapping[str, Any]]]], layers: list[Layer]) -> list[str]:
  findings = []
  names = lambda some: ", ".join(layer.path for layer in some[:5]) + (f" and {len(some) - 5} more" if some[5:] else "")
  if own := [layer for layer in layers if layer.own_statistics]:
    findings.append(
      f"{len(own)} of {len(layers)} BN layers normalize with the batch's own statistics in evaluation, so a "
      f"prediction depends on what else is in its batch ({names(own)}): evaluate and export the network in evaluation "
      "mode."
    )
  if never := [layer for layer in layers if layer.never_updated]:
    findings.append(
      f"{len(never)} of {len(layers)} BN layers were never updated, their mean is 0 and their variance 1 "
      f"({names(never)}): train with mutable=['batch_stats'] and keep what it returns, or unfreeze them."
    )
  started = [layer for layer in layers if not layer.never_updated and layer.start_left > _START_LEFT]
  if 2 * len(started) > len(layers):
    share = float(np.median([layer.start_left for layer in started]))
    findings.append(
      f"The running averages still hold {share:.0%} of their start values, 0 and 1, in {len(started)} of "
      f"{len(layers)} layers: the momentum is too slow for the number of updates; lower it, train longer, or use "
      "population statistics."
    )
  rest = [layer for layer in layers if not layer.never_updated and layer not in started]
  differing = [
    name
    for name, of_kind in values.items()
    for metric in of_kind["running"][0]
    if _differ(of_kind["running"], of_kind["population"], metric)
  ]
  if differing:
    far = [layer for layer in rest if layer.distance > 3 * layer.batch_mean_distance]
    if far:
      findings.append(
        f"{len(far)} of {len(layers)} BN layers have running averages farther from the population than three times a "
        f"single batch is ({names(far)}): they are stale, of other weights or of other data."
      )
    findings.append(
      f"Running averages and population statistics give different results on {' and '.join(dict.fromkeys(differing))} "
      "batches: the averages are at fault where the population's result is the better; export with population "
      "statistics, or run some training batches with the weights frozen."
    )
  if zero := [layer for layer in layers if layer.zero_variance]:
    count = sum(layer.zero_variance for layer in zero)
    findings.append(
      f"{count} feature{'s have' if count > 1 else ' has'} no variance at all ({names(zero)}): what they "
      "are made of is constant, such as a dead nonlinearity."
    )
  between = [
    name
    for name, of_kind in values.items()
    for metric in of_kind["running"][0]
    if _differ(of_kind["population"], of_kind["batch"], metric)
  ]
  if between and not own:
    findings.append(
      f"Population and batch statistics give different results on {' and '.join(dict.fromkeys(between))} batches: "
      "batches are too small for their statistics, or the batches differ from each other in kind."
    )
  return findings or [
    "Running, population and batch statistics agree (no metric differs by 5% and 3 standard errors): "
    "what differs between training and evaluation is not in the BN layers."
  ]


def table(found: Diagnosis, rows: int = 20) -> str:
  """The diagnosis as text, with the `rows` farthest layers."""
  metrics = list(next(iter(found.metrics.values()))["running"])
  lines = [
    f"  {'statistics':12}" + "".join(f"{f'{name} {metric}':>22}" for name in found.metrics for metric in metrics)
  ]
  lines += [
    f"  {kind:12}"
    + "".join(f"{of_kind[kind][metric]:22.4f}" for of_kind in found.metrics.values() for metric in metrics)
    for kind in KINDS
  ]
  width = max(len(layer.path) for layer in found.layers[:rows])
  lines += [
    "",
    "Layers by the distance of their running averages from the population's (mean in standard deviations; "
    "ln of the ratio of variances; root mean squares over features):",
    f"  {'layer':{width}}   mean  (of one batch)   variance  remarks",
  ]
  for layer in found.layers[:rows]:
    remarks = [
      text
      for said, text in (
        (layer.own_statistics, "batch's own in evaluation"),
        (layer.never_updated, "never updated"),
        (not layer.never_updated and layer.start_left > _START_LEFT, f"{layer.start_left:.0%} of the start left"),
        (layer.zero_variance, f"{layer.zero_variance} of {layer.shift.size + layer.zero_variance} without variance"),
      )
      if said
    ]
    lines.append(
      f"  {layer.path:{width}} {layer.mean_distance:6.2f}  {layer.batch_mean_distance:14.2f} "
      f"{layer.variance_distance:10.2f}  {', '.join(remarks)}".rstrip()
    )
  if len(found.layers) > rows:
    lines.append(f"  ... and {len(found.layers) - rows} that are nearer")
  return "\n".join([*lines, "", *(f"- {finding}" for finding in found.findings)])
