"""The six networks of the ensemble (§4.2.3), `ensemble.py:imagenet,0` to `,5`. The paper: 4.9% top-5 error together.

Each network is BN-x30 with some of these changes: larger initial weights in the convolutions, dropout of 5% or 10%, BN
per activation in the last hidden layers. The paper does not say which network has which changes [choice].
"""

from bn_inception.configs import common

# Member: (factor on the initial weights, dropout, modules with BN per activation).
MEMBERS = {
  "0": (1.0, 0.05, ()),
  "1": (1.0, 0.10, ()),
  "2": (1.5, 0.00, ()),
  "3": (1.5, 0.05, ()),
  "4": (1.0, 0.05, ("5b",)),
  "5": (1.5, 0.10, ("5b",)),
}


def get_config(argument: str = "imagenet"):
  words = common.parse_argument(argument, scale=common.SCALES, member=tuple(MEMBERS))
  config = common.accelerated(words["scale"], factor=30)
  config.model.init_scale, config.model.dropout_rate, config.batch_norm.per_activation = MEMBERS[words["member"]]
  config.seed = int(words["member"])
  return config
