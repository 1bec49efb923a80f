"""Inception without BN, with sigmoid in place of ReLU (§4.2.2). The paper: accuracy stays at chance, 1/1000."""

from bn_inception.configs import common


def get_config(argument: str = "imagenet"):
  config = common.inception(**common.parse_argument(argument, scale=common.SCALES))
  config.model.nonlinearity = "sigmoid"
  return config
