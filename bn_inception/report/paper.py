"""The numbers of the paper (arXiv 1502.03167) that results are set beside."""

from typing import NamedTuple


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
