"""Inception without BN at BN-x5's learning rate (§4.2.2). The paper: the parameters reach machine infinity."""

from bn_inception.configs import common


def get_config(argument: str = "imagenet"):
  config = common.inception(**common.parse_argument(argument, scale=common.SCALES))
  config.learning_rate *= 5
  return config
