"""The claims of the abstract and of §4 as one table.

Each claim names its statistic, one of `judging.STATISTICS`, and a threshold that is the same at every scale. The
thresholds are older than the runs of cifar10_full (those of other scales are older than the thresholds). What the paper
does not claim has a statistic that shows it and judges nothing.
"""

from typing import NamedTuple

from bn_inception import paper

NO_WORSE = -0.01  # Non-inferiority: less than a point of top-1 accuracy, about what the paper's single changes gain.
MANY = 2.0  # "Many times" fewer steps are more than so many [choice]; the paper has 14.


class Claim(NamedTuple):
  """A row of the table.

  Attributes:
    key: its anchor on the page.
    text, section, paper: what the paper claims, where, and its numbers.
    figure: the word of scripts/reproduce.py that makes its runs.
    statistic: of `judging.STATISTICS`.
    of, beside: the experiments compared; `beside` may be empty.
    threshold: that the statistic must exceed, in its own unit.
    own_plateau: whether steps are counted to the plateau of `beside`, and `beside` is of its own length. If not, it is
      the best of Inception's, and Inception itself stands for the fastest of its lengths, or for the highest where
      accuracies are compared. (BN-Baseline differs from Inception by BN alone, its length is Inception's.)
  """

  key: str
  text: str
  section: str
  paper: str
  figure: str
  statistic: str
  of: str
  beside: str = ""
  threshold: float = 0.0
  own_plateau: bool = False


_FIGURE_1 = "§4.1, Figure 1(a)"
_FIGURE_3 = "§4.2.2, Figure 3"
_WORDS = "in words only"

CLAIMS = (
  Claim(
    "mnist_higher",
    "The network with BN has the higher test accuracy, both at the best learning rate without BN",
    _FIGURE_1,
    "a curve",
    "figure1",
    "level",
    "mnist_bn",
    "mnist_plain",
  ),
  Claim(
    "mnist_faster",
    "The network with BN trains faster, both at the best learning rate without BN",
    _FIGURE_1,
    "a curve",
    "figure1",
    "steps",
    "mnist_bn",
    "mnist_plain",
    1.0,
    own_plateau=True,
  ),
  Claim(
    "mnist_mean",
    "With BN the mean of a sigmoid's input is more stable, both at the best rate without BN",
    "§4.1, Figure 1(b, c)",
    "curves",
    "figure1",
    "movement",
    "mnist_bn",
    "mnist_plain",
  ),
  Claim(
    "mnist_variance",
    "With BN the variance of a sigmoid's input is more stable, both at the best rate without BN",
    "§4.1, Figure 1(b, c)",
    "curves",
    "figure1",
    "widening",
    "mnist_bn",
    "mnist_plain",
  ),
  Claim(
    "mnist_low_higher",
    "The same at a low learning rate: a higher test accuracy",
    _FIGURE_1,
    "a curve",
    "figure1",
    "level",
    "mnist_bn_low_rate",
    "mnist_plain_low_rate",
  ),
  Claim(
    "mnist_low_faster",
    "... training faster",
    _FIGURE_1,
    "a curve",
    "figure1",
    "steps",
    "mnist_bn_low_rate",
    "mnist_plain_low_rate",
    1.0,
    own_plateau=True,
  ),
  Claim(
    "mnist_low_mean",
    "... a more stable mean of a sigmoid's input",
    "§4.1, Figure 1(b, c)",
    "curves",
    "figure1",
    "movement",
    "mnist_bn_low_rate",
    "mnist_plain_low_rate",
  ),
  Claim(
    "mnist_low_variance",
    "... a more stable variance of a sigmoid's input",
    "§4.1, Figure 1(b, c)",
    "curves",
    "figure1",
    "widening",
    "mnist_bn_low_rate",
    "mnist_plain_low_rate",
  ),
  Claim(
    "speedup",
    "BN-x5 comes to Inception's accuracy in many times fewer steps",
    "abstract, §4.2.2",
    f"{paper.SPEEDUP} times: 2.1M against 31.0M",
    "figure3",
    "steps",
    "bn_x5",
    "inception",
    MANY,
  ),
  Claim(
    "bn_alone",
    "BN alone, at the same learning rate, trains faster than Inception",
    _FIGURE_3,
    "13.3M against 31.0M",
    "figure3",
    "steps",
    "bn_baseline",
    "inception",
    1.0,
    own_plateau=True,
  ),
  Claim(
    "baseline_higher",
    "BN-Baseline ends higher than Inception",
    _FIGURE_3,
    "72.7% against 72.2%",
    "figure3",
    "level",
    "bn_baseline",
    "inception",
    own_plateau=True,
  ),
  Claim(
    "changes_faster",
    "The changes of §4.2.1 speed BN up further: BN-x5 against BN-Baseline",
    _FIGURE_3,
    "2.1M against 13.3M",
    "figure3",
    "steps",
    "bn_x5",
    "bn_baseline",
    1.0,
  ),
  Claim(
    "x5_higher",
    "BN-x5 ends higher than Inception",
    _FIGURE_3,
    "73.0% against 72.2%",
    "figure3",
    "level",
    "bn_x5",
    "inception",
  ),
  Claim(
    "x5_same_steps",
    "BN-x5 is higher than Inception after as many steps, each annealed over them",
    "§4.2.2, Figure 2",
    "curves: higher at every step",
    "figure3",
    "level_after_same_steps",
    "bn_x5",
    "inception",
  ),
  Claim(
    "x30_slower",
    "BN-x30 is slower than BN-x5 at first",
    "§4.2.2",
    "2.7M against 2.1M steps to 72.2%",
    "figure3",
    "early",
    "bn_x5",
    "bn_x30",
  ),
  Claim(
    "x30_higher",
    "BN-x30 ends higher than BN-x5",
    _FIGURE_3,
    "74.8% against 73.0%",
    "figure3",
    "level",
    "bn_x30",
    "bn_x5",
  ),
  Claim(
    "x30_speedup",
    "BN-x30, too, comes to Inception's accuracy in many times fewer steps",
    _FIGURE_3,
    "2.7M against 31.0M",
    "figure3",
    "steps",
    "bn_x30",
    "inception",
    MANY,
  ),
  Claim(
    "x30_both",
    "BN-x30 ends higher than Inception, and comes to Inception's accuracy in fewer steps",
    "§4.2.2",
    "74.8% after 6M steps against 72.2% after 31.0M",
    "figure3",
    "level_and_steps",
    "bn_x30",
    "inception",
  ),
  Claim(
    "x30_trains",
    "BN allows much higher learning rates: a network with BN trains at 30 times Inception's",
    "abstract, §4.2.2",
    "74.8%",
    "figure3",
    "trains",
    "bn_x30",
  ),
  Claim(
    "x5_breaks",
    "5 times its learning rate breaks Inception without BN",
    "§4.2.2",
    "parameters reach machine infinity",
    "figure3",
    "fails",
    "inception_x5",
    "inception",
  ),
  Claim(
    "sigmoid_trains", "With BN the network with sigmoid trains", "§4.2.2", "69.8%", "figure3", "trains", "bn_x5_sigmoid"
  ),
  Claim(
    "sigmoid_fails",
    "Inception with sigmoid does not train without BN: it stays at chance",
    "§4.2.2",
    "at most 0.1%",
    "figure3",
    "fails",
    "inception_sigmoid",
  ),
  Claim(
    "sigmoid_lower",
    "BN-x5 with sigmoid for ReLU ends lower than with ReLU",
    _FIGURE_3,
    "69.8% against 73.0%",
    "figure3",
    "level",
    "bn_x5",
    "bn_x5_sigmoid",
  ),
  Claim(
    "rate",
    "5 times the learning rate has no ill effect on a network with BN",
    "§4.2.1",
    _WORDS,
    "ablation",
    "level",
    "alone/learning_rate",
    "bn_baseline",
    NO_WORSE,
  ),
  Claim(
    "dropout_faster",
    "Without dropout the network with BN trains faster",
    "§4.2.1",
    _WORDS,
    "ablation",
    "steps",
    "alone/no_dropout",
    "bn_baseline",
    1.0,
    own_plateau=True,
  ),
  Claim(
    "dropout",
    "BN regularizes: without dropout it generalizes no worse",
    "abstract, §3.4, §4.2.1",
    _WORDS,
    "ablation",
    "level",
    "alone/no_dropout",
    "bn_baseline",
    NO_WORSE,
  ),
  Claim(
    "weight_decay",
    "A fifth of the L2 weight improves validation accuracy",
    "§4.2.1",
    _WORDS,
    "ablation",
    "level",
    "alone/weight_decay",
    "bn_baseline",
  ),
  Claim(
    "lrn",
    "With BN local response normalization is not necessary: no worse without",
    "§4.2.1",
    _WORDS,
    "ablation",
    "level",
    "alone/no_lrn",
    "bn_baseline",
    NO_WORSE,
  ),
  Claim(
    "shuffling",
    "Within-shard shuffling improves validation accuracy",
    "§4.2.1",
    "about 1%",
    "ablation",
    "level",
    "alone/shuffling",
    "bn_baseline",
  ),
  Claim(
    "initialization",
    "With BN the network is less sensitive to its initialization: larger initial weights do no harm",
    "abstract, §4.2.3",
    _WORDS,
    "figure4",
    "initialization",
    "ensemble",
    threshold=NO_WORSE,
  ),
  Claim(
    "crops",
    "Many crops of an image have a smaller error than one",
    "§4.2.3",
    "25.2% to 21.99% top-1",
    "figure4",
    "crops",
    "ensemble",
  ),
  Claim(
    "ensemble",
    "The ensemble of six networks has a smaller error than one of them",
    "§4.2.3",
    "21.99% to 20.1% top-1",
    "figure4",
    "together",
    "ensemble",
  ),
  Claim(
    "population",
    "Population statistics (Algorithm 2) beside moving averages",
    "§3.1",
    "both are used",
    "figure4",
    "population",
    "",
  ),
  Claim(
    "precision",
    "BN-x5 in bfloat16 beside float32, annealed over a quarter of its steps",
    "not of the paper",
    "says nothing of it",
    "precision",
    "shown_level",
    "precision/bfloat16",
    "precision/float32",
  ),
  Claim(
    "best_rate",
    "BN-x5 at the best rate of its own sweep beside its own rate, five times Inception's",
    "not of the paper",
    "says nothing of it",
    "best_rate",
    "shown_level",
    "best_rate/bn_x5",
    "bn_x5",
  ),
  Claim(
    "best_rates_x5",
    "BN-x5 beside Inception after as many steps, both at the best rate of their own sweep",
    "not of the paper",
    "says nothing of it",
    "best_rate",
    "shown_level",
    "best_rate/bn_x5",
    "controls/inception_8000",
  ),
  Claim(
    "best_rates_baseline",
    "BN-Baseline beside Inception after as many steps, both at the best rate of their own sweep",
    "not of the paper",
    "says nothing of it",
    "best_rate",
    "shown_level",
    "best_rate/bn_baseline",
    "controls/inception_8000",
  ),
  Claim(
    "published",
    "The ensemble improves upon the best published result",
    "abstract, §4.2.3",
    f"4.9% against {paper.BEST_PUBLISHED:.2%} top-5 error",
    "figure4",
    "published",
    "ensemble",
  ),
  Claim(
    "human",
    "The ensemble's top-5 error is below that of human raters",
    "abstract, §4.2.3",
    "4.9% (test 4.82%) against 5.1%",
    "figure4",
    "human",
    "ensemble",
  ),
)
IMAGENET = ("published", "human")  # What only ImageNet can answer.
