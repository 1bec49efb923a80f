"""The network of §4.1: three fully connected layers of 100 sigmoid units and a softmax, with and without BN."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bn_inception import config_keys
from bn_inception.models import layers


class MnistMlp(nn.Module):
  """Three hidden layers of sigmoid units, [B, H, W, 1] to float32 logits [B, num_classes].

  Attributes:
    num_classes: of the softmax; 0: the network ends with its last hidden units.
    hidden_units: of each hidden layer.
    init_std: standard deviation of the Gaussian initial weights ("small random Gaussian values").
    norm: constructor of BN layers (`layers.norm_from_config`), or None.
    dtype: of the computation; parameters and statistics are float32.
  """

  num_classes: int
  hidden_units: int = 100
  init_std: float = 0.1
  norm: Callable[..., nn.Module] | None = None
  dtype: str = "float32"

  @property
  def feature_names(self) -> tuple[str, ...]:
    """What the network can tell beside its logits: its last hidden units."""
    return ("hidden",)

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool | None = None, mask: jax.Array | None = None) -> jax.Array:
    """Logits of images; arguments and errors are those of `inception.Inception`."""
    layers.check_call(x, train)
    initializer = nn.initializers.normal(self.init_std)
    x = x.reshape(x.shape[0], -1).astype(self.dtype)
    for layer in (1, 2, 3):
      # No bias under BN: beta takes its role (§3.2).
      x = layers.Dense(self.hidden_units, use_bias=self.norm is None, kernel_init=initializer, name=f"hidden{layer}")(x)
      if self.norm is not None:
        x = self.norm(name=f"bn{layer}")(x, train=train, mask=mask)
      if layer == 3:
        self.sow("intermediates", "sigmoid_input", x)  # Figure 1(b, c); kept only if the caller asks for it.
      x = jax.nn.sigmoid(x)
    self.sow("intermediates", "hidden", x)  # A feature.
    if not self.num_classes:
      return x.astype(jnp.float32)
    return layers.Dense(self.num_classes, kernel_init=initializer, name="logits")(x).astype(jnp.float32)


def from_config(config: config_keys.Config) -> MnistMlp:
  """The network of a config's `model`, `batch_norm`, `data.num_classes` and `dtype`."""
  settings = {name: getattr(config.model, name) for name in config_keys.names(config_keys.MnistMlp) - {"name"}}
  return MnistMlp(
    num_classes=config.data.num_classes, norm=layers.norm_from_config(config), dtype=config.dtype, **settings
  )
