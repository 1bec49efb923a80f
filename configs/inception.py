"""Inception (§4.2.2): no BN; local response normalization, dropout 40%, learning rate 0.0015. The paper: 72.2%."""

from bn_inception.configs import common


def get_config(argument: str = "imagenet"):
  return common.inception(**common.parse_argument(argument, scale=common.SCALES))
