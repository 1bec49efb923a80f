"""The learning curve of a run, from its metrics.jsonl."""

import pathlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bn_inception import run_directory

# Colour-blind safe (Okabe and Ito); one colour a kind of statistics, everywhere.
_COLOURS = {"train": "#999999", "running": "#0072B2", "population": "#D55E00", "batch": "#009E73"}


def draw(workdir: pathlib.Path) -> pathlib.Path | None:
  """Draws accuracy and loss against steps into curve.png; returns its path, or None if there is nothing to draw."""
  lines = run_directory.read_metrics(workdir)
  if not lines:
    return None
  name = run_directory.read_config(workdir).get("name", workdir.name)
  # Not pyplot: a figure of its own needs no display and no global state.
  figure = Figure(figsize=(9, 3.6), layout="constrained")
  FigureCanvasAgg(figure)
  for axes, metric, label in zip(figure.subplots(1, 2), ("top1", "loss"), ("top-1 accuracy", "cross-entropy (nats)")):
    for kind, colour in _COLOURS.items():
      key = f"train/{metric}" if kind == "train" else f"eval/{kind}/{metric}"
      points = [(line["step"], line[key]) for line in lines if key in line]
      if points:
        marker = None if kind == "train" or len(points) > 50 else "o"
        axes.plot(*zip(*points), color=colour, marker=marker, markersize=3, linewidth=1.2,
                  label="training batches" if kind == "train" else f"{kind} statistics")
    axes.set(xlabel="step", ylabel=label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
  figure.suptitle(name)
  path = workdir / "curve.png"
  temporary = path.with_suffix(".partial.png")
  figure.savefig(temporary, dpi=130)
  temporary.replace(path)
  return path
