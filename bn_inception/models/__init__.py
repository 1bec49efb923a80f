"""The networks of the paper, by the name a config gives them."""

from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from bn_inception.models import inception, layers, mnist_mlp

MODELS = {
    "inception": inception.from_config,  # §4.2
    "mnist_mlp": mnist_mlp.from_config,  # §4.1
}


def build(config: ConfigDict) -> nn.Module:
  """The network of a whole config: `model(images, train=...)` are float32 logits [B, num_classes]."""
  return MODELS[config.model.name](config)


def fold(model: nn.Module, variables: dict[str, Any], *, epsilon: float) -> tuple[nn.Module, dict[str, Any]]:
  """A network and its variables in the form for inference: BN folded into the layers before it (Algorithm 2, line 11).

  Args:
    model: with BN.
    variables: {"params", "batch_stats"}.
    epsilon: of its BN layers.

  Returns:
    (model, {"params"}) with the same logits to float32 rounding, in less time; in training they are of no use.

  Raises:
    ValueError: for BN per activation, which cannot be folded.
  """
  folded = layers.fold_batch_norm(variables, epsilon=epsilon)
  model = model.clone(norm=None)
  if isinstance(model, inception.Inception):
    model, params = inception.merge(model, folded["params"])
    folded = {"params": params}
  return model, folded
