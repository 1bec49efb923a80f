"""BN-x30 (§4.2.2): BN, the changes of §4.2.1, 30 times the learning rate: 0.045. The paper: 74.8%."""

from bn_inception.configs import common


def get_config(argument: str = "imagenet"):
  return common.accelerated(**common.parse_argument(argument, scale=common.SCALES), factor=30)
