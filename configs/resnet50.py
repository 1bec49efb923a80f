"""ResNet-50 (He et al., 2016; here v1.5), which the paper does not have: another architecture in the same loop.

The recipe is the usual one of 90 epochs: batches of 256 at a rate of 0.1 with BN over 32 examples and a warm-up of 5
epochs (Goyal et al., 2017), a cosine (Loshchilov and Hutter, 2017), label smoothing of 0.1 (Szegedy et al., 2016). At
the small scales width, stem and length are a [choice].
"""

from ml_collections import ConfigDict

from bn_inception.configs import common

SCALES = ("imagenet", "cifar10", "quickstart")


def get_config(argument: str = "imagenet"):
  scale = common.parse_argument(argument, scale=SCALES)["scale"]
  config = common.with_batch_norm(common.base(scale))
  config.model = ConfigDict()
  config.model.name = "resnet"
  config.model.stage_sizes = (3, 4, 6, 3)  # Blocks of each stage: 50 layers.
  config.model.width = 1.0 if scale == "imagenet" else 0.25
  config.model.stem = "plain" if scale == "imagenet" else "small"  # plain | small (for small images).
  config.batch_norm.epsilon = 1e-5
  config.batch_norm.momentum = 0.9
  config.learning_rate = 0.1 * 32 / 256  # Of a batch of 32: 0.1 for 256.
  config.learning_rate_schedule = "cosine"
  config.label_smoothing = 0.1
  config.weight_decay = 1e-4
  config.data.shuffle = "global"
  config.data.interpolation = "bilinear"
  config.data.photometric_strength = 0.0
  if scale == "imagenet":
    config.batch_size = 256
    config.learning_rate_scaling, config.learning_rate_warmup_epochs = "linear", 5.0
    config.data.mean, config.data.std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
  common.set_length(config, scale, paper_steps=90 * 1_281_167 // 32)
  return config
