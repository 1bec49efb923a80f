"""BN-x5 (§4.2.2): BN, the changes of §4.2.1, 5 times the learning rate: 0.0075. The paper: 73.0%."""

from bn_inception.configs import common


def get_config(argument: str = "imagenet"):
  return common.accelerated(**common.parse_argument(argument, scale=common.SCALES), factor=5)
