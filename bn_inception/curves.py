"""The learning curve of a run, from its metrics.jsonl, and what all pictures share."""

import pathlib

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bn_inception import run_directory

# Colour-blind safe (Okabe and Ito); one colour a kind of statistics, everywhere.
_COLOURS = {"train": "#999999", "running": "#0072B2", "population": "#D55E00", "batch": "#009E73"}
RUN_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")

Lines = list[dict[str, float]]


def draw(workdir: pathlib.Path) -> pathlib.Path | None:
  """Draws a run's accuracy and loss into its curve.png; returns the path, or None if there is nothing to draw."""
  lines = run_directory.read_metrics(workdir)
  if not lines:
    return None
  figure = new_figure()
  for axes, metric, label in zip(figure.subplots(1, 2), ("top1", "loss"), ("top-1 accuracy", "cross-entropy (nats)")):
    for kind, colour in _COLOURS.items():
      key = f"train/{metric}" if kind == "train" else f"eval/{kind}/{metric}"
      _plot(axes, lines, key, colour, "training batches" if kind == "train" else f"{kind} statistics")
    finish_axes(axes, label)
    axes.legend(frameon=False, fontsize=8)
  figure.suptitle(workdir.name)
  return save(figure, workdir / "curve.png")


def new_figure(width: float = 9, height: float = 3.6) -> Figure:
  """A figure of this size in inches, of its own: unlike pyplot's it needs no display and no global state."""
  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  return figure


def _plot(axes: Axes, lines: Lines, key: str, colour: str, label: str) -> None:
  points = [(line["paper_steps"], line[key]) for line in lines if key in line]
  if points:
    marker = None if key.startswith("train") or len(points) > 50 else "o"
    axes.plot(*zip(*points), color=colour, marker=marker, markersize=3, linewidth=1.2, label=label)


def finish_axes(axes: Axes, label: str) -> None:
  """The look that all axes share: steps along x, `label` along y, a grid."""
  axes.set(xlabel="steps of 32 examples", ylabel=label)
  axes.grid(alpha=0.3)
  axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
  """Writes a PNG file, whole or not at all; returns its path."""
  temporary = path.with_suffix(".partial.png")
  figure.savefig(temporary, dpi=130)
  temporary.replace(path)
  return path
