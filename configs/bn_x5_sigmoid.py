"""BN-x5-Sigmoid (§4.2.2): BN-x5 with sigmoid in place of ReLU. The paper: 69.8%."""

from bn_inception.configs import common


def get_config(argument: str = "imagenet"):
  config = common.accelerated(**common.parse_argument(argument, scale=common.SCALES), factor=5)
  config.model.nonlinearity = "sigmoid"
  return config
