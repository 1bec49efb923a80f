"""Fine-tuning of a trained network to other classes: `finetune.py:CHECKPOINT`.

CHECKPOINT is a run directory, a release folder or the file of a peer. The network has the architecture and
preprocessing of the checkpoint. Give the data set and its number of classes: --config.data.name=flowers
--config.data.num_classes=5 (scripts/prepare_data.py makes a data set of a folder of images). The recipe is a [choice]
for some hundred to some thousand images; the paper has no recipe for fine-tuning.
"""

from bn_inception.configs import common


def get_config(argument: str = ""):
  if not argument:
    raise ValueError(
      "finetune needs the network to start from: give --config=finetune:CHECKPOINT, with a run "
      "directory, a release folder or a peer's file."
    )
  from bn_inception import config_keys, initialization  # Only this config reads a file, and needs JAX to read the file.
  from bn_inception.configs import versions
  from bn_inception.errors import UserError
  from bn_inception.release import loading

  try:
    source = loading.read_config(argument)
  except (UserError, versions.VersionError, OSError) as error:
    raise ValueError(str(error)) from error  # To the flags a ValueError is a wrong value, not a bug of this file.
  config = common.accelerated("imagenet", factor=1).copy_and_resolve_references()
  config.model = source.model.copy_and_resolve_references()
  for name, value in initialization.fields(config_keys.parse(source)).items():
    section, key = name.split(".")
    config[section][key] = value
  if config.model.name == "inception":
    config.model.auxiliary_heads = ()
  config.init.checkpoint = argument
  config.learning_rate = 0.005
  config.learning_rate_factors = ("logits=10",)  # The logits begin anew.
  config.learning_rate_decay = 1.0
  config.batch_norm.momentum = 0.9  # The run has only some hundred steps.
  config.data.name = ""
  config.data.train_split, config.data.eval_split = "train", "validation"
  config.data.num_classes = source.data.num_classes
  config.data.shuffle = "global"
  config.data.crop_area = (0.25, 1.0)
  if len(config.data.mean) == 1:
    config.data.photometric_strength = 0.0  # The distortions are for colour images.
  config.eval.batch_size = 64
  config.eval.statistics = ("running",)
  config.num_steps = 500
  config.log_every, config.eval_every, config.checkpoint_every = 20, 100, 100
  return config
