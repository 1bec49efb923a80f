"""What every reader of this folder returns."""

from typing import Any, NamedTuple

from bn_inception.config_dict import ConfigDict


class TorchTensor(NamedTuple):
  """A row of the state dict that a release was imported from.

  Attributes:
    name, shape: as there.
    dtype: NumPy's name of its type.
    count: the value of a `num_batches_tracked`, which no variable holds; None for others.
  """

  name: str
  dtype: str
  shape: tuple[int, ...]
  count: int | None = None


class Release(NamedTuple):
  """A network that can be evaluated.

  Attributes:
    config: in the shape of configs/common.py, and `release`: where the network comes from (`source`, `published`
      accuracy, what is known of the `classes`; of a peer's also `base_model`, its repository on GitHub; the `license`
      and the `note` for the card, where they are stated) and which BN `statistics` it has: running | population | none.
    variables: {"params", "batch_stats"}, nested, float32 arrays; without BN only the first.
    labels: the name of each output in order; () where not known.
    metrics: what was measured with these weights and statistics, see `folder`; None if nothing was.
    torch_layout: how the state dict that it was imported from names, orders and shapes its tensors, so that exporting
      gives that state dict again; () for a release of another kind.
  """

  config: ConfigDict
  variables: dict[str, Any]
  labels: tuple[str, ...] = ()
  metrics: dict[str, Any] | None = None
  torch_layout: tuple[TorchTensor, ...] = ()
