"""Which runs make each figure and table of the paper: lists of config files and what differs from them (§4).

A run has the same name and directory in every figure it serves, so it is made once. Values come from configs/: the
steps of the ablation are the differences between the files of BN-Baseline and BN-x5. Only what is swept is named here.
"""

import importlib
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bn_inception.reproduction import speedup

VARIANTS = ("inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid")  # Figures 2 and 3
FAILING = ("inception_x5", "inception_sigmoid")  # §4.2.2: they diverge or stay at chance.
MNIST_NETWORKS = ("bn", "plain")  # Figure 1
MNIST_LOW_RATE = 0.1  # At which the network without BN is slow, as it is in the paper's picture [choice].
MEMBERS = 6  # §4.2.3

# §4.2.1 in its order: what separates BN-Baseline from BN-x5, by the fields of the config.
CHANGES = {
  "learning_rate": ("learning_rate",),
  "no_dropout": ("model.dropout_rate",),
  "weight_decay": ("weight_decay",),
  "rate_decay": ("learning_rate_decay_epochs",),
  "no_lrn": ("model.local_response_norm",),
  "shuffling": ("data.shuffle",),
  "distortions": ("data.photometric_strength",),
}
GROUP_SIZES, GROUP_BATCH = (4, 8, 16, 32, 64), 64  # The same batch for all, so that nothing but m differs.

# Learning rates tried for the networks without a rate of the paper's at that scale; every one for the whole length.
SWEEP_RATES = {
  "mnist": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
  "cifar10": (0.0025, 0.005, 0.01, 0.02, 0.04),
  "quickstart": (0.01, 0.02, 0.04, 0.08, 0.16),
  "imagenet": (0.00075, 0.0015, 0.003),
}
SWEEP_LENGTHS = (0.5, 2.0)  # And the config's own rate at these multiples of the length.
# At the scale of full lengths a baseline has its best rate at every length that it is annealed over: {config file:
# {fraction of the config's length: rates}}. A range is widened when the best rate lies at its edge. BN-Baseline takes
# part at a fifth of its length, that of BN-x5: its whole length would take a third of the machine time of all sweeps.
FULL_SWEEPS: dict[str, dict[float, tuple[float, ...]]] = {
  "inception": {0.2: (0.005, 0.01, 0.02, 0.04), 0.5: (0.01, 0.02, 0.04, 0.08), 1.0: (0.005, 0.01, 0.02)},
  "bn_x5": {1.0: (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)},
  "bn_baseline": {0.2: (0.05, 0.1, 0.2, 0.4)},
}
# The best two of Inception's rates have one seed more.
BEST_TWO_RATES = {"inception": {0.2: (0.01, 0.02), 0.5: (0.02, 0.04), 1.0: (0.01, 0.02)}}
# The networks with BN have the paper's multiples of Inception's rate, which belong to its scale. Besides, each runs at
# the best rate of its own sweep, over the steps of BN-x5. (BN-x30 is BN-x5 at another rate.)
BEST_RATES = {"bn_x5": 0.4, "bn_baseline": 0.2}
# What may keep BN-x5 below the public networks of CIFAR-10, which see the images nearly as they are and are wider:
# each alone, in the sweep too.
FULL_FACTORS: dict[str, dict[str, Any]] = {
  "no_distortions": {"data.crop_area": (1.0, 1.0), "data.crop_aspect": (1.0, 1.0), "data.photometric_strength": 0.0},
  "width_0.25": {"model.width": 0.25},
}
# Figure 2 at that scale has more baselines: Inception annealed over shorter runs, which may be faster, and over twice
# its steps, which says whether it is at its plateau; {fraction of its length: rate}. Rates are the best of the sweeps,
# for twice the steps that of its own length: a sweep would take more than all the other runs of Inception.
CONTROL_RATES = {0.2: 0.02, 0.5: 0.04, 2.0: 0.01}
# And BN-x5 annealed over more steps than its own, by these factors: whether it comes in them to a plateau that is above
# what it ends with in its own.
BN_X5_LENGTHS = (2.5, 5.0)
# There a run without BN that fails is cut after a tenth of its steps, as long as half of BN-x5's.
FAILING_FRACTION = 0.1
# Rates are chosen on examples held out of training; the test split has no part in it.
HELD_OUT = {"data.train_split": "train[:90%]", "data.eval_split": "train[90%:]"}

# Evaluations of a small network take longer than its training: a fifth of the test split follows the curves, by moving
# averages alone.
_CURVES = {"cifar10": {"data.eval_split": "test[:20%]", "eval.statistics": ("running",)}}
# The members of the ensemble are few: they are evaluated seldom, and with all statistics.
_MEMBERS = {
  "cifar10": {"data.eval_split": "test[:20%]", "eval_every": 250, "checkpoint_every": 250},
  "cifar10_full": {
    "eval.statistics": ("running", "population", "batch"),
    "eval_every": 4_000,
    "checkpoint_every": 1_000,
  },
}
CROPS = {
  "imagenet": 144,
  "cifar10": 10,
  "cifar10_full": 10,
  "quickstart": 10,
}  # §4.2.3: 144, which takes 14 times as long.


class Run(NamedTuple):
  """One training run.

  Attributes:
    name: its directory below the work directory, SCALE/EXPERIMENT/seedN.
    config_file: in configs/, without .py.
    argument: of the config file.
    overrides: {field: value}, as the flags `--config.field=value` of scripts/train.py.
  """

  name: str
  config_file: str
  argument: str
  overrides: dict[str, Any]

  def config(self) -> ConfigDict:
    """The config as it will run."""
    config = importlib.import_module(f"bn_inception.configs.{self.config_file}").get_config(self.argument)
    for path, value in self.overrides.items():
      *parents, field = path.split(".")
      node = config
      for name in parents:
        node = node[name]
      if field not in node:
        raise KeyError(f"{self.name}: configs/{self.config_file}.py has no field {path}.")
      node[field] = value
    return config

  def command(self, workdir: str) -> str:
    """The command that makes this run alone."""
    # With double quotes inside, the shell's quotes of ("running",) are simple.
    values = {path: str(value).replace("'", '"') for path, value in self.overrides.items()}
    flags = "".join(f" --config.{path}={shlex.quote(value)}" for path, value in values.items())
    return (
      f"python scripts/train.py --config=configs/{self.config_file}.py:{self.argument}{flags} "
      f"--workdir={workdir}/{self.name}"
    )


class Evaluation(NamedTuple):
  """An evaluation of finished runs, with `evaluate.evaluate_checkpoints`.

  Attributes:
    name: its directory below the work directory.
    runs: names of the runs whose networks are averaged.
    crops: of each image.
    statistics: "running" or "population".
  """

  name: str
  runs: tuple[str, ...]
  crops: int
  statistics: str


class Plan(NamedTuple):
  """What a figure takes: first its runs, then its evaluations."""

  runs: list[Run]
  evaluations: list[Evaluation] = []


def experiment_of(run: Run) -> str:
  """EXPERIMENT of a run's name, what its seeds have in common: 'bn_x5', 'alone/shuffling'."""
  return run.name.split("/", 1)[1].rpartition("/")[0]


def _run(scale: str, experiment: str, seed: int, config_file: str, argument: str, **overrides: Any) -> Run:
  extra = overrides.pop("extra", {})
  return Run(
    f"{scale}/{experiment}/seed{seed}",
    config_file,
    argument,
    {"seed": seed, **_CURVES.get(scale, {}), **overrides, **extra},
  )


def _variant(scale: str, name: str, seed: int) -> Run:
  return _run(scale, name, seed, name, scale)


def _annealed(config: ConfigDict, fraction: float) -> dict[str, Any]:
  """What differs from `config` when its rate falls as far in a fraction of its steps."""
  return {
    "num_steps": round(fraction * config.num_steps),
    "learning_rate_decay_epochs": fraction * config.learning_rate_decay_epochs,
  }


def figure1(scale: str, seeds: int) -> Plan:
  """§4.1: the MNIST network with and without BN, at the best rate without BN, and at a low one."""
  return Plan(
    [
      _run(scale, f"mnist_{network}{suffix}", seed, "mnist", f"{network},{scale}", **overrides)
      for suffix, overrides in (("", {}), ("_low_rate", {"learning_rate": MNIST_LOW_RATE}))
      for seed in range(seeds)
      for network in MNIST_NETWORKS
    ]
  )


def figure2(scale: str, seeds: int) -> Plan:
  """§4.2.2: validation accuracy against steps; at cifar10_full also annealed over other lengths."""
  runs = [_variant(scale, name, seed) for seed in range(seeds) for name in VARIANTS]
  if scale != "cifar10_full":
    return Plan(runs)
  runs.sort(key=lambda run: experiment_of(run) not in ("inception", "bn_x5"))  # The headline comes first.

  def annealed(prefix: str, config_file: str, fraction: float, **overrides: Any) -> list[Run]:
    length = _annealed(Run("", config_file, scale, {}).config(), fraction)
    every = max(500, length["num_steps"] // 20)  # Two evaluations in the last tenth.
    length |= {"eval_every": every, "checkpoint_every": every}
    name = f"{prefix}{length['num_steps']}"
    return [_run(scale, name, seed, config_file, scale, extra=length, **overrides) for seed in range(seeds)]

  for fraction, rate in CONTROL_RATES.items():
    runs += annealed(speedup.CONTROLS, "inception", fraction, learning_rate=rate)
  for fraction in BN_X5_LENGTHS:
    runs += annealed(speedup.LONGER, "bn_x5", fraction)
  return Plan(runs)


def figure3(scale: str, seeds: int) -> Plan:
  """§4.2.2: the table, and the two networks that fail."""
  failing = [_variant(scale, name, seed) for seed in range(seeds) for name in FAILING]
  if scale == "cifar10_full":
    failing = [
      run._replace(overrides=run.overrides | {"num_steps": round(FAILING_FRACTION * run.config().num_steps)})
      for run in failing
    ]
  return Plan(figure2(scale, seeds).runs + failing)


def changes(scale: str) -> dict[str, dict[str, Any]]:
  """For each of CHANGES the values that BN-x5 has there."""
  new = Run("", "bn_x5", scale, {}).config()

  def value(path: str) -> Any:
    node = new
    for name in path.split("."):
      node = node[name]
    return node

  return {name: {path: value(path) for path in paths} for name, paths in CHANGES.items()}


def ablation(scale: str, seeds: int) -> Plan:
  """§4.2.1: each change alone, all up to each in the paper's order, and the size of the BN groups.

  At cifar10_full it is each change alone, for half the steps of BN-x5.
  """
  steps = Run("", "bn_x5", scale, {}).config().num_steps
  by_change = changes(scale)
  runs = []
  if scale == "cifar10_full":
    return Plan(
      [_variant(scale, "bn_baseline", seed) for seed in range(seeds)]
      + [
        _run(scale, f"alone/{name}", seed, "bn_baseline", scale, extra=values | {"num_steps": steps // 2})
        for name, values in by_change.items()
        for seed in range(seeds)
      ]
    )
  for seed in range(seeds):
    runs.append(_variant(scale, "bn_baseline", seed))
    runs += [
      _run(scale, f"alone/{name}", seed, "bn_baseline", scale, extra=values | {"num_steps": steps})
      for name, values in by_change.items()
    ]
    so_far = {}
    for number, (name, values) in enumerate(by_change.items(), start=1):
      so_far |= values
      if 1 < number < len(by_change):  # The first is alone above, all together are BN-x5.
        runs.append(_run(scale, f"up_to/{name}", seed, "bn_baseline", scale, extra=so_far | {"num_steps": steps}))
    runs.append(_variant(scale, "bn_x5", seed))
    runs += [
      _run(
        scale, f"group/{size}", seed, "bn_x5", scale, extra={"batch_size": GROUP_BATCH, "batch_norm.group_size": size}
      )
      for size in GROUP_SIZES
    ]
  return Plan(runs)


def figure4(scale: str, seeds: int) -> Plan:
  """§4.2.3: six networks, one crop, many crops and all together; running and population statistics."""
  del seeds  # Each member has its own.
  runs = [
    Run(f"{scale}/ensemble/member{member}", "ensemble", f"{scale},{member}", _MEMBERS.get(scale, {}))
    for member in range(MEMBERS)
  ]
  names, many = [run.name for run in runs], CROPS[scale]
  evaluations = [
    Evaluation(f"{scale}/figure4/member{member}_{crops}crop_running", (name,), crops, "running")
    for crops in (1, many)
    for member, name in enumerate(names)
  ]
  evaluations += [
    Evaluation(f"{scale}/figure4/ensemble_{crops}crop_running", tuple(names), crops, "running") for crops in (1, many)
  ]
  evaluations += [Evaluation(f"{scale}/figure4/ensemble_1crop_population", tuple(names), 1, "population")]
  return Plan(runs, evaluations)


def precision(scale: str, seeds: int) -> Plan:
  """BN-x5, annealed over a quarter of its length, in both types that a config may compute in; not of the paper."""
  length = _annealed(Run("", "bn_x5", scale, {}).config(), 0.25)
  return Plan(
    [
      _run(scale, f"precision/{dtype}", seed, "bn_x5", scale, extra=length | {"dtype": dtype})
      for seed in range(seeds)
      for dtype in ("float32", "bfloat16")
    ]
  )


def best_rate(scale: str, seeds: int) -> Plan:
  """Networks with BN at the best rates of their own sweeps, over the steps of BN-x5; not of the paper."""
  like = Run("", "bn_x5", scale, {}).config()
  runs = []
  for name, rate in BEST_RATES.items():
    config = Run("", name, scale, {}).config()
    length = _annealed(config, like.num_steps / config.num_steps)
    length |= {field: like[field] for field in ("eval_every", "checkpoint_every")}
    length = {field: value for field, value in length.items() if value != config[field]}
    runs += [
      _run(scale, f"{speedup.BEST_RATE}{name}", seed, name, scale, learning_rate=rate, extra=length)
      for seed in range(seeds)
    ]
  return Plan(runs)


def sweep(scale: str, seeds: int) -> Plan:
  """Learning rates that the configs' own were chosen from, and lengths, on held-out training examples.

  At cifar10_full also BN-x5 with each of FULL_FACTORS.
  """
  if scale == "cifar10_full":
    return _full_sweep(scale, seeds)
  runs = []
  if scale == "mnist":
    networks = [(f"mnist_{network}", "mnist", f"{network},mnist") for network in MNIST_NETWORKS]
  else:
    networks = [("inception", "inception", scale)]
  for seed in range(seeds):
    for experiment, config_file, argument in networks:
      config = Run("", config_file, argument, {}).config()
      steps = config.num_steps
      # A few evaluations, of a tenth of the training set, are enough to find the best of a few.
      extra = HELD_OUT | {"eval_every": steps // (10 if scale == "mnist" else 5)}
      runs += [
        _run(scale, f"sweep/{experiment}/rate_{rate:g}", seed, config_file, argument, learning_rate=rate, extra=extra)
        for rate in SWEEP_RATES[scale]
      ]
      if scale != "mnist":  # Figure 1 says how many steps.
        runs += [
          _run(
            scale,
            f"sweep/{experiment}/length_{factor:g}",
            seed,
            config_file,
            argument,
            num_steps=int(steps * factor),
            extra=extra,
          )
          for factor in SWEEP_LENGTHS
        ]
  return Plan(runs)


def _full_sweep(scale: str, seeds: int) -> Plan:
  runs = []
  for config_file, lengths in FULL_SWEEPS.items():
    config = Run("", config_file, scale, {}).config()
    for fraction, rates in lengths.items():
      extra = HELD_OUT | ({} if fraction == 1 else _annealed(config, fraction))
      steps = extra.get("num_steps", config.num_steps)
      best_two = BEST_TWO_RATES.get(config_file, {}).get(fraction, ())
      runs += [
        _run(
          scale, f"sweep/{config_file}_{steps}/rate_{rate:g}", seed, config_file, scale, learning_rate=rate, extra=extra
        )
        for rate in rates
        for seed in range(seeds + (rate in best_two))
      ]
  steps = Run("", "bn_x5", scale, {}).config().num_steps
  runs += [
    _run(scale, f"sweep/bn_x5_{steps}/{factor}", seed, "bn_x5", scale, extra=HELD_OUT | values)
    for factor, values in FULL_FACTORS.items()
    for seed in range(seeds)
  ]
  return Plan(sorted(runs, key=lambda run: run.config().num_steps))  # The shortest say whether a range must be wider.


# Name on the command line: (plan, its scales, the default first; default number of seeds).
FIGURES: dict[str, tuple[Callable[[str, int], Plan], tuple[str, ...], int]] = {
  "figure1": (figure1, ("mnist", "quickstart"), 3),
  "figure2": (figure2, ("cifar10", "cifar10_full", "imagenet", "quickstart"), 3),
  "figure3": (figure3, ("cifar10", "cifar10_full", "imagenet", "quickstart"), 3),
  "figure4": (figure4, ("cifar10", "cifar10_full", "imagenet", "quickstart"), 1),
  "ablation": (ablation, ("cifar10", "cifar10_full", "imagenet", "quickstart"), 3),
  "best_rate": (best_rate, ("cifar10_full",), 3),
  "precision": (precision, ("cifar10_full",), 3),
  "sweep": (sweep, ("cifar10", "cifar10_full", "mnist", "imagenet", "quickstart"), 1),
}
