"""The networks of the paper, by the name a config gives them."""

import flax.linen as nn
from ml_collections import ConfigDict

from bn_inception.models import inception, mnist_mlp

MODELS = {
    "inception": inception.from_config,  # §4.2
    "mnist_mlp": mnist_mlp.from_config,  # §4.1
}


def build(config: ConfigDict) -> nn.Module:
  """The network of a whole config: `model(images, train=...)` are float32 logits [B, num_classes]."""
  return MODELS[config.model.name](config)
