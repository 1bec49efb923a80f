"""The numbers of the paper (arXiv 1502.03167) that results are set beside, each with its section.

Accuracies and errors are of the ImageNet validation set and in [0, 1]; steps are mini-batches of 32.
"""

from typing import NamedTuple

SPEEDUP = 14  # Abstract: "the same accuracy with 14 times fewer training steps".
HUMAN_TOP5_ERROR = 0.051  # §4.2.3 names the estimate of Russakovsky et al. (2014) ...
HUMAN_IMAGES = 1_500  # ... who had an annotator label so many test images.
VALIDATION_IMAGES = 50_000  # LSVRC2012


class VariantRow(NamedTuple):
  """A row of Figure 3 or a run that §4.2.2 only tells of; None where the paper gives no number.

  Attributes:
    name: the paper's.
    steps: to the maximum of Inception, 72.2%.
    top1: maximum validation accuracy.
    remark: what the text says of it.
  """

  name: str
  steps: float | None
  top1: float | None
  remark: str = ""


# Figure 3 and §4.2.2, by config file.
FIGURE_3 = {
  "inception": VariantRow("Inception", 31.0e6, 0.722),
  "bn_baseline": VariantRow("BN-Baseline", 13.3e6, 0.727),
  "bn_x5": VariantRow("BN-x5", 2.1e6, 0.730),
  "bn_x30": VariantRow("BN-x30", 2.7e6, 0.748, "after 6e6 steps"),
  "bn_x5_sigmoid": VariantRow("BN-x5-Sigmoid", None, 0.698),
  "inception_x5": VariantRow("Inception at the rate of BN-x5", None, None, "parameters reach machine infinity"),
  "inception_sigmoid": VariantRow("Inception-Sigmoid", None, 0.001, "never better than chance, 1/1000"),
}


class ErrorRow(NamedTuple):
  """A row of Figure 4: errors on the ImageNet validation set, in [0, 1]; None where the paper gives none."""

  name: str
  crops: int | None
  networks: int | None
  top1_error: float | None
  top5_error: float | None


# Figure 4 (§4.2.3).
FIGURE_4 = (
  ErrorRow("GoogLeNet ensemble", 144, 7, None, 0.0667),
  ErrorRow("Deep Image low-res", None, 1, None, 0.0796),
  ErrorRow("Deep Image high-res", None, 1, 0.2488, 0.0742),
  ErrorRow("Deep Image ensemble", None, None, None, 0.0598),
  ErrorRow("BN-Inception single crop", 1, 1, 0.252, 0.0782),
  ErrorRow("BN-Inception multicrop", 144, 1, 0.2199, 0.0582),
  ErrorRow("BN-Inception ensemble", 144, 6, 0.201, 0.049),
)

# Figure 4 (§4.2.3): what the ensemble improves upon.
BEST_PUBLISHED = min(row.top5_error for row in FIGURE_4 if "BN-Inception" not in row.name)
