"""The base config that all rows of the paper share, and the two changes that turn the base into a row.

`inception(scale)` is the network without batch normalization (§4.2). `with_batch_norm` adds BN before every
nonlinearity and changes nothing else (BN-Baseline). `accelerated` makes the changes of §4.2.1 that go with a higher
learning rate. Every other file in this folder is a few lines over these functions. This file imports only
ml_collections, so that a config can be read without JAX.

A step of the paper is a mini-batch of 32. Lengths are stated in such steps and follow `batch_size`: with
`--config.batch_size=256` the run sees the same examples in an eighth of the steps, unless `num_steps` is given too.
"""

from ml_collections import ConfigDict

from bn_inception.configs import versions

# cifar10 is a quick trial, in which all networks have the same steps. At cifar10_full each network has as many steps as
# its own recipe needs: as in the paper, the networks of the lower rate have 5 times the steps, 31e6 to 6e6. gpu8 and
# pod are imagenet with the batches of a machine with 8 GPUs, and of a cluster or pod.
LARGE_BATCHES = {"gpu8": 512, "pod": 1024}
SCALES = ("imagenet", *LARGE_BATCHES, "cifar10", "cifar10_full", "quickstart")

# Steps of 32 at the small scales, in place of the 6e6 of BN-x30 (Figure 3), and the training examples there.
_SMALL_STEPS = {"cifar10": 1_000, "cifar10_full": 8_000, "quickstart": 800}
_SMALL_EXAMPLES = {"cifar10": 50_000, "cifar10_full": 50_000, "quickstart": 4_000}


def parse_argument(argument: str, **choices: tuple[str, ...]) -> dict[str, str]:
  """Splits a config file's argument: `bn_x5.py:cifar10`, `ensemble.py:cifar10,3`.

  Args:
    argument: the text behind the colon: words separated by commas, in any order; may be empty.
    **choices: for each name the possible words; the first word is the default.

  Returns:
    {name: word}.

  Raises:
    ValueError: for a word that is none of the choices, or two words for one name; the error lists the choices.
  """
  values = {}
  for word in filter(None, argument.split(",")):
    name = next((name for name, words in choices.items() if word in words), None)
    if name is None or name in values:
      known = " and ".join(f"one of {', '.join(words)}" for words in choices.values())
      problem = "is not known" if name is None else f"is a second {name}"
      raise ValueError(f"'{word}' in the config argument '{argument}' {problem}: give {known}.")
    values[name] = word
  return {name: values.get(name, words[0]) for name, words in choices.items()}


def base(scale: str) -> ConfigDict:
  """The fields that do not depend on the model, at the size of one data set."""
  config = ConfigDict()
  config.version = versions.VERSION  # The version of the set of keys. A change of the set adds a line to versions.py.
  config.seed = 0  # Of initial values, of the order of the examples, of distortions and of dropout.
  config.batch_size = 32  # Examples of a step, on all devices together. §4.2: mini-batch size of 32.
  config.gradient_accumulation = 1  # Micro-batches a step; their BN groups are those of the whole batch.
  config.steps_per_call = 1  # Steps of one call of the compiled program: many if a step is short (§4.1).
  config.dtype = "float32"  # Compute type: float32 or bfloat16. Parameters and statistics are always float32.
  config.momentum = 0.9  # Of SGD. §4.2 says "momentum"; 0.9 is the public GoogLeNet recipe [choice].
  config.weight_decay = 2e-4  # L2 on the weights, the public GoogLeNet recipe [choice].
  # exponential: multiplied by learning_rate_decay every learning_rate_decay_epochs, in stairs (GoogLeNet paper).
  # cosine: half a cosine from the end of the warm-up to 0 at num_steps (Loshchilov and Hutter, 2017).
  config.learning_rate_schedule = "exponential"
  # linear: learning_rate is the rate of a batch of 32, and is multiplied by batch_size / 32 (Goyal et al., 2017).
  # none: learning_rate is the rate of every batch size.
  config.learning_rate_scaling = "none"
  config.learning_rate_warmup_epochs = 0.0  # Epochs in which the rate rises from 32 / batch_size of its value.
  config.learning_rate_factors = ()  # Factors by pattern of parameter names: ("logits=10",). The first match counts.
  config.learning_rate_decay = 0.96  # The rate's factor at every decay. GoogLeNet paper: 4% every 8 epochs.
  config.learning_rate_decay_epochs = 8.0  # Epochs between two decays; they follow the length at small scales.
  config.label_smoothing = 0.0  # Share of the label that is spread over all classes (Szegedy et al., 2016: 0.1).
  config.ema_decay = 0.0  # Polyak averaging of the weights for evaluation (GoogLeNet paper); 0 evaluates the weights.
  config.auxiliary_loss_weight = 0.3  # Of auxiliary losses. GoogLeNet paper; counts only with model.auxiliary_heads.
  config.checkpoint_every_minutes = 0.0  # Writes a checkpoint also when the newest is so old; 0: never for its age.
  config.keep_latest = 2  # Newest checkpoints that are kept.
  config.keep_best = 1  # Checkpoints with the best top-1 that are kept too.
  config.stall_minutes = 10.0  # The log says what the run waits for when nothing has moved for so long; 0: never.
  config.stall_limit_minutes = 60.0  # The run ends with exit code 75 when nothing has moved for so long; 0: never.
  config.profile_at_step = 0  # The run writes a profile of 5 steps from this step on; 0: no profile.

  config.batch_norm = ConfigDict()
  config.batch_norm.enabled = False  # BN before each nonlinearity.
  config.batch_norm.group_size = 32  # Examples normalized together (the paper's m); 0: the whole global batch.
  config.batch_norm.epsilon = 1e-3  # Added to the variance. Not in the paper; Google's released Inception-BN [choice].
  config.batch_norm.momentum = 0.99 if scale == "imagenet" else 0.9  # Of the running averages [choice].
  config.batch_norm.use_gamma = True  # A learned scale of each channel.
  config.batch_norm.in_stem = True  # False: the first convolution has bias and ReLU, as Google's release.
  config.batch_norm.per_activation = ()  # Modules with one gamma, beta per activation (§4.2.3): ("5a", "5b").

  config.init = ConfigDict()
  config.init.checkpoint = ""  # The run, release folder or peer's file to start from (configs/finetune.py); "": none.
  config.init.skip = ()  # Patterns of parameters that begin anew all the same. Logits of other classes always do.
  config.init.freeze = ()  # Patterns of the parameters that keep their values: ("conv*", "inception_3*").
  config.init.freeze_statistics = False  # The BN of what is frozen is in inference mode.

  config.data = ConfigDict()
  config.data.dir = ""  # TFDS data_dir; "": $TFDS_DATA_DIR, else ~/tensorflow_datasets.
  config.data.shuffle = "none"  # Order of the training examples: none | within_shard | global.
  config.data.cache = False  # Decodes every image once and keeps it in memory: small sets, without crops and flips.
  config.data.on_error = "fail"  # At a damaged record: fail | skip.
  config.data.crop_area = (0.08, 1.0)  # Share of the area in a training crop; GoogLeNet paper: 8% to 100%.
  config.data.crop_aspect = (3 / 4, 4 / 3)  # Aspect ratio of a training crop; GoogLeNet paper.
  config.data.flip = True  # Half of the training crops are mirrored.
  config.data.interpolation = "random"  # Of training crops, one of four methods: random | bilinear.
  # Photometric distortions: 1 has Google's published ranges (data/color_distortions.py), 0 none.
  config.data.photometric_strength = 1.0
  config.data.mean = (127.5, 127.5, 127.5)  # Input is (pixel - mean) / std, RGB, pixels 0..255: to [-1, 1] [choice].
  config.data.std = (127.5, 127.5, 127.5)  # As mean, for each channel.
  config.data.channel_order = "rgb"  # Of the network's input: rgb | bgr. mean and std are always RGB.
  config.data.binary = False  # True: pixel >= 128 instead, 0 or 1 (§4.1).

  config.eval = ConfigDict()
  config.eval.population_batches = 32  # Training mini-batches of batch_size behind Algorithm 2's statistics.
  # BN's statistics in evaluations; each takes an evaluation's time.
  config.eval.statistics = ("running", "population", "batch")
  config.eval.sigmoid_input_units = ()  # Units of the last hidden layer whose input is followed (§4.1): (0, 1).

  if scale == "imagenet":
    config.data.name = "imagenet2012:5.*.*"  # Data set of TFDS: NAME[/CONFIG][:VERSION].
    config.data.train_split, config.data.eval_split = "train", "validation"  # Splits, or slices: "train[:90%]".
    config.data.num_classes = 1000  # Outputs of the network.
    config.data.image_size = 224  # Pixels, height and width of what the network sees.
    config.data.eval_resize = 256  # Shorter side before the centre crop of an evaluation [choice].
    config.eval.batch_size = 128  # Examples of a batch of an evaluation.
  elif scale in ("cifar10", "cifar10_full"):
    config.data.name = "cifar10:3.*.*"
    config.data.train_split, config.data.eval_split = "train", "test"
    config.data.num_classes = 10
    config.data.image_size = config.data.eval_resize = 32
    config.data.crop_area = (0.25, 1.0)  # 8% of 32x32 is 9x9 pixels: too few to tell a cat.
    config.eval.batch_size = 256
    if scale == "cifar10_full":
      config.eval.statistics = ("running",)  # Each further kind would take as long as the whole evaluation.
  elif scale == "quickstart":
    config.data.name = "digits"  # 5,000 real MNIST digits, which the dependencies bring.
    config.data.train_split, config.data.eval_split = "train", "test"
    config.data.num_classes = 10
    config.data.image_size = config.data.eval_resize = 28
    config.data.crop_area, config.data.flip = (0.6, 1.0), False  # A mirrored 2 is not a 2.
    config.data.interpolation, config.data.photometric_strength = "bilinear", 0.0
    config.data.mean, config.data.std = (127.5,), (127.5,)
    config.eval.batch_size = 256
  if scale != "imagenet":
    # The decay is shortened with the length of the run: the rate falls as far as in the paper's first 6 million steps.
    epochs, paper_epochs = _SMALL_STEPS[scale] * 32 / _SMALL_EXAMPLES[scale], 6_000_000 * 32 / 1_281_167
    config.learning_rate_decay_epochs *= epochs / paper_epochs
  return config


def inception(scale: str) -> ConfigDict:
  """Inception without batch normalization: §4.2's first row, at one of SCALES."""
  if scale in LARGE_BATCHES:
    return large_batch(inception("imagenet"), LARGE_BATCHES[scale])
  config = base(scale)
  # Before decay and scaling, §4.2.2.
  # Small scales [choice]: the best rate of runs so short is higher (results/sweep).
  config.learning_rate = {"imagenet": 0.0015, "cifar10": 0.01, "cifar10_full": 0.01, "quickstart": 0.04}[scale]

  config.model = ConfigDict()
  config.model.name = "inception"  # Architecture; it has keys of its own in this section.
  # Factor on all numbers of channels.
  # cifar10_full: an eighth of the width [choice]. A step takes half the time of a quarter, so runs are twice as long.
  config.model.width = {"imagenet": 1.0, "cifar10": 0.25, "cifar10_full": 0.125, "quickstart": 0.25}[scale]
  config.model.stem = "separable" if scale == "imagenet" else "small"  # First layers: separable | plain | small.
  # Channels behind the pooling of 4c and 4d. 96: 576 in all as Figure 5 states; 128: its literal widths, 608 in all.
  config.model.pool_proj_4cd = 96
  config.model.padding = "same"  # Stride-2 convolutions: same | symmetric.
  config.model.stem_pool = "same"  # Padding of the pooling in the first layers: same | ceil | floor.
  config.model.reduction_pool = "same"  # Padding of the pooling in 3c and 4e: same | ceil | floor_pad1.
  config.model.avg_pool_include_pad = False  # Average pooling counts the padding's zeros.
  # Convolutions with BN have a bias too. §3.2: beta takes its role. Without BN a convolution always has its bias.
  config.model.conv_bias = False
  config.model.nonlinearity = "relu"  # Behind each convolution: relu | sigmoid.
  config.model.local_response_norm = True  # In the first layers. §4.2.1 removes it.
  config.model.dropout_rate = 0.4  # Share of dropped features before the logits. GoogLeNet paper; §4.2.1 removes it.
  config.model.auxiliary_heads = ()  # Modules with a classifier in training. GoogLeNet paper: ("4a", "4d").
  config.model.init_scale = 1.0  # Factor on the initial convolution weights (§4.2.3: larger ones).

  set_length(config, scale, paper_steps=31_000_000)  # §4.2.2: 72.2% after 31.0e6 steps.
  return config


def large_batch(config: ConfigDict, batch_size: int) -> ConfigDict:
  """Sets the values of a batch of many devices; returns `config`. BN groups stay 32 examples, as in the paper."""
  config.batch_size = config.eval.batch_size = batch_size
  config.learning_rate_scaling = "linear"  # Goyal et al., 2017.
  config.learning_rate_warmup_epochs = 5.0  # Goyal et al., 2017; not tried with these networks at this size [choice].
  config.dtype = "bfloat16"
  config.checkpoint_every_minutes = 10.0  # A lost host costs at most 10 minutes.
  return config


def set_length(config: ConfigDict, scale: str, paper_steps: int) -> None:
  """Sets `num_steps` and the steps between logs, evaluations and checkpoints.

  `paper_steps` is the length at the imagenet scale.
  """
  full = _SMALL_STEPS["cifar10_full"] * round(paper_steps / 6_000_000)
  steps, log_every, eval_every = {
    "imagenet": (paper_steps, 100, 20_000),
    "cifar10": (_SMALL_STEPS["cifar10"], 20, 100),
    "cifar10_full": (full, 100, max(500, full // 40)),
    "quickstart": (_SMALL_STEPS["quickstart"], 20, 200),
  }["imagenet" if scale in LARGE_BATCHES else scale]
  batch_size = config.get_ref("batch_size")
  config.log_every = log_every  # Steps between two lines of the log.
  # These follow batch_size, rounded up.
  config.num_steps = (steps * 32 - 1) // batch_size + 1  # Length of the run; with another batch_size as many examples.
  config.eval_every = (eval_every * 32 - 1) // batch_size + 1  # Steps between two evaluations.
  config.checkpoint_every = (eval_every * 32 - 1) // batch_size + 1  # Steps between two checkpoints.


def with_batch_norm(config: ConfigDict) -> ConfigDict:
  """Adds BN before each nonlinearity and nothing else (BN-Baseline, §4.2.2); returns `config`."""
  config.batch_norm.enabled = True
  return config


def accelerated(scale: str, factor: float) -> ConfigDict:
  """BN with `factor` times the learning rate and the changes of §4.2.1 that go with it."""
  config = with_batch_norm(inception(scale))
  config.learning_rate *= factor
  config.model.dropout_rate = 0.0  # "Remove Dropout."
  config.weight_decay /= 5  # "Reduce the L2 weight regularization": a fifth; 4e-5, the public Inception v2 recipe.
  config.learning_rate_decay_epochs /= 6  # "Accelerate the learning rate decay": 6 times faster.
  config.model.local_response_norm = False  # "Remove Local Response Normalization."
  config.data.shuffle = "within_shard"  # "Shuffle training examples more thoroughly."
  config.data.photometric_strength *= 0.5  # "Reduce the photometric distortions": to half the ranges [choice].
  set_length(config, scale, paper_steps=6_000_000)  # Figure 3: BN-x30 reaches 74.8% after 6e6 steps.
  return config
