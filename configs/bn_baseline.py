"""BN-Baseline (§4.2.2): Inception with BN before each nonlinearity, nothing else changed. The paper: 72.7%."""

from bn_inception.configs import common


def get_config(argument: str = "imagenet"):
  return common.with_batch_norm(common.inception(**common.parse_argument(argument, scale=common.SCALES)))
