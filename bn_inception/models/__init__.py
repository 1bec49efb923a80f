"""The networks by the name that a config gives them. docs/extending.md has what a network must be."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from bn_inception.config_keys import Config
from bn_inception.models import inception, layers, mnist_mlp, resnet


class Architecture(NamedTuple):
  """A kind of network.

  Attributes:
    from_config: makes the network of a whole config.
    title: what a reader calls it, on the card of a release.
  """

  from_config: Callable[[Config], nn.Module]
  title: str


MODELS = {
  "inception": Architecture(inception.from_config, "Inception-BN"),  # §4.2
  "mnist_mlp": Architecture(mnist_mlp.from_config, "The MNIST network of the paper's §4.1"),
  "resnet": Architecture(resnet.from_config, "ResNet"),  # He et al. (2016)
}


def build(config: Config) -> nn.Module:
  """The network of a whole config: `model(images, train=...)` are float32 logits [B, num_classes]."""
  return MODELS[config.model.name].from_config(config)


def features(
  model: nn.Module, variables: dict[str, Any], x: jax.Array, names: Sequence[str] | None = None
) -> dict[str, jax.Array]:
  """Intermediate activations at inference; their names are the same for a network and its folded form.

  Args:
    model: a network as `build` or `fold` make it.
    variables: the network's own.
    x: the network's input, [B, H, W, C].
    names: of Inception "conv1", "conv2_reduce", "conv2" (before the pool that follows), "inception_3a" to
      "inception_5b" ([B, height, width, channels], after the nonlinearity) and "pooled" ([B, channels], what the
      softmax layer receives); of the MNIST network "hidden" ([B, units]); of each
      network its `feature_names`. None: the last of these.

  Returns:
    {name: activations}, in the network's type.

  Raises:
    ValueError: for a name that the network does not have.
  """
  known = model.feature_names
  names = known[-1:] if names is None else names
  if unknown := [name for name in names if name not in known]:
    raise ValueError(f"The network has no features {unknown[0]!r}: choose from {', '.join(known)}.")
  wanted = lambda module, method: method == "__call__" and module.path in {(name,) for name in names}
  _, state = model.apply(variables, x, train=False, capture_intermediates=wanted, mutable=["intermediates"])
  found = {name: state["intermediates"][name] for name in names}
  return {name: (value["__call__"] if isinstance(value, Mapping) else value)[0] for name, value in found.items()}


def headless(model: nn.Module, variables: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
  """A network that ends with the last of its `features`, [B, units] float32, not with logits."""
  params = {name: node for name, node in variables["params"].items() if name != "logits"}
  return model.clone(num_classes=0), variables | {"params": params}


def fold(model: nn.Module, variables: dict[str, Any], *, epsilon: float) -> tuple[nn.Module, dict[str, Any]]:
  """A network and its variables in the form for inference: BN folded into the layers before it (Algorithm 2, line 11).

  Args:
    model: with BN.
    variables: {"params", "batch_stats"}.
    epsilon: of its BN layers.

  Returns:
    (model, {"params"}) with the same logits to float32 rounding, in less time. They cannot be trained.

  Raises:
    ValueError: for BN per activation, which cannot be folded.
  """
  folded = layers.fold_batch_norm(variables, epsilon=epsilon)
  model = model.clone(norm=None)
  if isinstance(model, inception.Inception):
    model, params = inception.merge(model, folded["params"])
    folded = {"params": params}
  return model, folded
