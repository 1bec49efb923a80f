"""Learning curves from the metrics.jsonl of runs: of one run, and of several side by side."""

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


def compare(workdirs: list[pathlib.Path], output: pathlib.Path) -> pathlib.Path:
  """Draws several runs into one picture: validation accuracy with running averages, and training loss.

  Args:
    workdirs: run directories; their last parts are the names in the legend.
    output: the picture to write.

  Raises:
    FileNotFoundError: if one of them holds no metrics.
  """
  figure = new_figure(10.5)
  left, right = figure.subplots(1, 2)
  for workdir, colour in zip(workdirs, RUN_COLOURS * (1 + len(workdirs) // len(RUN_COLOURS))):
    if not (lines := run_directory.read_metrics(workdir)):
      raise FileNotFoundError(f"{workdir} has no metrics.jsonl with anything in it: give the directory of a run.")
    _plot(left, lines, "eval/running/top1", colour, workdir.name)
    _plot(right, lines, "train/loss", colour, workdir.name)
  finish_axes(left, "validation top-1 accuracy")
  finish_axes(right, "training cross-entropy (nats)")
  # Beside the axes: many curves leave no free corner.
  figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
  return save(figure, output)


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
  axes.set(xlabel="steps of 32 examples", ylabel=label)
  axes.grid(alpha=0.3)
  axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
  temporary = path.with_suffix(".partial.png")
  figure.savefig(temporary, dpi=130)
  temporary.replace(path)
  return path
