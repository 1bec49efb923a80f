"""The paper's figures from run directories, in the paper's layout; matplotlib without a display.

Each function returns a figure, or None where it has no runs. `narrow` is for a page as wide as a phone: the panels
stand below each other.
"""

import itertools
import math
import statistics
from collections.abc import Sequence

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bn_inception import curves, paper
from bn_inception.reproduction import measured, speedup, wording
from bn_inception.reproduction.measured import Result

Experiments = dict[str, list[Result]]
LineStyle = str | tuple[int, tuple[int, ...]]  # matplotlib's name, or (offset, lengths in points of dashes and gaps).

_NAMES = {name: row.name for name, row in paper.FIGURE_3.items()}
_COLOURS = dict(zip(paper.FIGURE_3, curves.RUN_COLOURS))
_STYLES: dict[str, LineStyle] = {"inception": "--", "inception_x5": ":", "inception_sigmoid": ":"}
# Of BN-x5 annealed over more steps, which has the colour of BN-x5: the shortest first.
_LONGER_STYLES: tuple[LineStyle, ...] = ("-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
_NARROW = 4.4  # Inches.


def _panels(rows: int, columns: int, narrow: bool, width: float, height: float) -> tuple[Figure, list[list[Axes]]]:
  """A figure of `rows` x `columns` panels of this width and height in inches; `narrow`: all in one column."""
  if narrow:
    figure = curves.new_figure(_NARROW, height * rows * columns)
    figure.get_layout_engine().set(h_pad=0.12)  # Inches, so that a title stands clear of the axis above.
    below = figure.subplots(rows * columns, 1, squeeze=False)[:, 0]
    return figure, [list(below[row * columns : (row + 1) * columns]) for row in range(rows)]
  figure = curves.new_figure(width * columns, height * rows)
  return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False)]


def _legend(figure: Figure, axes: Axes, narrow: bool) -> None:
  """Below the axes: many curves leave no free corner."""
  handles, labels = axes.get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside lower center", ncols=2 if narrow else 4, frameon=False, fontsize=8)


def _steps_axis(axes: Axes) -> None:
  """Few short numbers: 10k."""
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
  axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))


def _mean_curve(runs: Sequence[Result]) -> tuple[list[float], list[float], list[float], list[float]]:
  """(steps, mean, least, greatest accuracy) over seeds, of finished runs if there are any."""
  runs = [run for run in runs if run.accuracy]
  runs = [run for run in runs if run.finished] or runs
  by_step: dict[float, list[float]] = {}
  for run in runs:
    for step, top1 in run.accuracy:
      by_step.setdefault(step, []).append(top1)
  steps = sorted(step for step, values in by_step.items() if len(values) == len(runs))
  values = [by_step[step] for step in steps]
  return steps, list(map(statistics.fmean, values)), list(map(min, values)), list(map(max, values))


def _draw(
  axes: Axes,
  runs: Sequence[Result],
  label: str,
  colour: str,
  style: LineStyle = "-",
  units: tuple[float, float] = (1.0, 1.0),
) -> None:
  """The mean over seeds, and the range of the seeds as a band; steps and accuracy in these units."""
  steps, *values = _mean_curve(runs)
  steps = [step / units[0] for step in steps]
  mean, least, greatest = ([value / units[1] for value in of_steps] for of_steps in values)
  axes.plot(steps, mean, linestyle=style, color=colour, linewidth=1.3, label=label)
  if len(runs) > 1:
    axes.fill_between(steps, least, greatest, color=colour, alpha=0.15, linewidth=0)


def figure1(experiments: Experiments, narrow: bool = False) -> Figure | None:
  """(a) test accuracy with and without BN; (b, c) the percentiles of a typical sigmoid's input, without and with BN.

  The first row has both networks at the best rate without BN, the second both at a low one.
  """
  rows = {}
  for suffix, text in (("", "best rate without BN"), ("_low_rate", "low rate")):
    both = [experiments.get(f"mnist_{network}{suffix}", []) for network in ("bn", "plain")]
    both = [
      [run for run in runs if run.accuracy and measured.has_spread(measured.sigmoid_inputs(run))] for runs in both
    ]
    if all(both):
      rows[text] = both
  if not rows:
    return None
  figure, panels = _panels(len(rows), 3, narrow, 3.7, 3.4)
  for axes, (text, (with_bn, without)) in zip(panels, rows.items()):
    _figure1_row(axes, text, with_bn, without)
  return figure


def _figure1_row(row: Sequence[Axes], text: str, with_bn: Sequence[Result], without: Sequence[Result]) -> None:
  accuracy, plain, bn = row
  _draw(accuracy, with_bn, "with BN", "#0072B2")
  _draw(accuracy, without, "without BN", "#000000", "--")
  curves.finish_axes(accuracy, "test accuracy")
  accuracy.set(title=f"(a) {text}", ylim=(0.7, 1.0))
  accuracy.legend(frameon=False, fontsize=8, loc="lower right")
  for axes, runs, title in ((plain, without, f"(b) without BN, {text}"), (bn, with_bn, f"(c) with BN, {text}")):
    unit = measured.typical_unit(runs[0])
    series = measured.sigmoid_inputs(runs[0])[unit]
    for place, percentile in enumerate((15, 50, 85)):
      axes.plot(
        [step for step, _ in series],
        [values[place] for _, values in series],
        color=("#999999", "#D55E00", "#999999")[place],
        linewidth=1.2,
        label=f"{percentile}th percentile",
      )
    curves.finish_axes(axes, f"input of sigmoid {unit}, last hidden layer")
    axes.set_title(title)
  for axes in row:
    axes.set_xlabel("steps of 60 examples")
    axes.title.set_fontsize(10)
    _steps_axis(axes)
  limits = [*plain.get_ylim(), *bn.get_ylim()]
  for axes in (plain, bn):
    axes.set_ylim(min(limits), max(limits))
  plain.legend(frameon=False, fontsize=8)


def _longer_styles(experiments: Experiments) -> dict[str, LineStyle]:
  """The line of each experiment of BN-x5 annealed over more steps, the same in every figure."""
  longer = [name for name in experiments if name.startswith(speedup.LONGER)]
  longer.sort(key=lambda name: int(name.removeprefix(speedup.LONGER)))
  return dict(zip(longer, itertools.cycle(_LONGER_STYLES)))


def figure2(experiments: Experiments, narrow: bool = False) -> Figure | None:
  """Validation accuracy of the variants against steps; the runs that fail are dotted.

  Inception of the length that sets the plateau is dash-dotted; each length of BN-x5 has a line of its own.
  """
  names = [name for name in paper.FIGURE_3 if any(run.accuracy for run in experiments.get(name, []))]
  if not names:
    return None
  figure, [[axes]] = _panels(1, 1, narrow, 7.5, 4.4)
  for name in names:
    _draw(axes, experiments[name], _NAMES[name], _COLOURS[name], _STYLES.get(name, "-"))
  finished = measured.finished(experiments)  # Curves may be of runs under way, numbers may not.
  plateau = speedup.plateau(finished)
  others = {name: ("bn_x5", style) for name, style in _longer_styles(finished).items()}
  if plateau is not None and plateau.name not in names:
    others[plateau.name] = ("inception", "-.")
  for name, (like, style) in others.items():
    if runs := [run for run in finished[name] if run.accuracy]:
      _draw(axes, runs, wording.name_of(name), _COLOURS[like], style)
  if plateau is not None:
    axes.axhline(plateau.level.mean, color="#999999", linewidth=0.8, label="plateau of Inception")
  curves.finish_axes(axes, "validation top-1 accuracy")
  _steps_axis(axes)
  _legend(figure, axes, narrow)
  return figure


def relative(experiments: Experiments, narrow: bool = False) -> Figure | None:
  """Figure 2 with the paper's five points in the same axes: accuracy and steps relative to Inception's.

  A filled mark is at a network's steps to Inception's plateau and at its accuracy in the end, with the deviations over
  seeds; a hollow one is the paper's. A network that does not come to the plateau with all seeds stands at the right.
  Inception is that of the length that sets the plateau; each length of BN-x5 has a line of its own.
  """
  finished = measured.finished(experiments)
  plateau = speedup.plateau(finished)
  if plateau is None:
    return None
  steps = speedup.geometric_mean(plateau.steps(plateau.name, finished[plateau.name]))
  accuracy = plateau.level.mean
  figure, [[axes]] = _panels(1, 1, narrow, 7.5, 4.8)
  never, lowest = 2.2, 0.6
  for name, row in list(paper.FIGURE_3.items())[:5]:
    colour = _COLOURS[name]
    longer = _longer_styles(finished) if name == "bn_x5" else {}
    shown = {plateau.name if name == "inception" else name: _STYLES.get(name, "-"), **longer}
    shown = {of: style for of, style in shown.items() if any(run.accuracy for run in finished.get(of, []))}
    for of, style in shown.items():
      runs = [run for run in finished[of] if run.accuracy]
      _draw(axes, runs, wording.name_of(of), colour, style, (steps, accuracy))
      to_plateau = plateau.steps(of, runs) if len(runs) == len(finished[of]) else (None,)
      end = measured.over_seeds(runs, lambda run: measured.level(run) / accuracy)
      lowest = min(lowest, end.mean - (end.deviation or 0) - 0.05)
      reached = measured.Spread(tuple(value / steps for value in to_plateau)) if None not in to_plateau else None
      axes.errorbar(
        reached.mean if reached else never,
        end.mean,
        yerr=end.deviation,
        xerr=reached.deviation if reached else None,
        fmt="o",
        color=colour,
        markersize=6,
        capsize=3,
      )
    paper_steps = row.steps / paper.FIGURE_3["inception"].steps if row.steps else never
    axes.plot(
      paper_steps,
      row.top1 / paper.FIGURE_3["inception"].top1,
      "D",
      markerfacecolor="none",
      markeredgewidth=1.6,
      color=colour,
      markersize=9,
      label=None if shown else row.name,
    )
  axes.plot([], [], "o", color="#999999", label="measured")
  axes.plot([], [], "D", color="#999999", markerfacecolor="none", label="the paper")
  axes.axhline(1, color="#999999", linewidth=0.8, zorder=0)
  axes.axvline(1.5, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
  curves.finish_axes(axes, "accuracy relative to Inception's")
  axes.set(
    xscale="log",
    xlim=(0.02, 3),
    xlabel="steps relative to Inception's to its plateau",
    ylim=(lowest, max(1.08, axes.get_ylim()[1])),
  )
  ticks = (0.02, 1 / 14, 0.2, 0.5, 1)
  axes.set_xticks((*ticks, never), ("1/50", "1/14", "1/5", "1/2", "1", "not all\nseeds"))
  axes.minorticks_off()
  _legend(figure, axes, True)
  return figure


def ratio(experiments: Experiments, narrow: bool = False) -> Figure | None:
  """How many times fewer steps than the fastest Inception each BN network needs, over levels of accuracy.

  Bands are 95% intervals over seeds, where both sides have several. At the right are the paper's own, which are of its
  Inception's maximum. Networks at the best rate of their own sweep are dashed.
  """
  finished = measured.finished(experiments)
  curves_by_network = {name: speedup.curve(finished, name) for name in speedup.networks(finished)}
  if not any(point.ratio for points in curves_by_network.values() for point in points):
    return None
  figure, [[axes]] = _panels(1, 1, narrow, 7.5, 4.2)
  inception = paper.FIGURE_3["inception"].steps
  styles = _longer_styles(finished) | {name: "--" for name in finished if name.startswith(speedup.BEST_RATE)}
  for name, points in curves_by_network.items():
    points = [point for point in points if point.ratio]
    if name in styles and not points:
      continue  # A line in the legend alone; the paper's mark of the others needs its line there.
    percents = [100 * point.fraction for point in points]
    colour = _COLOURS["bn_x5" if name.startswith(speedup.LONGER) else name.removeprefix(speedup.BEST_RATE)]
    axes.plot(
      percents,
      [point.ratio for point in points],
      linestyle=styles.get(name, "-"),
      color=colour,
      linewidth=1.5,
      label=wording.name_of(name),
    )
    if points:
      limits = zip(*(point.interval or (math.nan, math.nan) for point in points))
      axes.fill_between(percents, *limits, color=colour, alpha=0.15, linewidth=0)
    if name in styles:
      continue
    axes.plot(
      101,
      inception / paper.FIGURE_3[name].steps,
      "D",
      markerfacecolor="none",
      markeredgewidth=1.6,
      color=colour,
      markersize=9,
    )
  axes.plot([], [], "D", color="#999999", markerfacecolor="none", label="the paper, to 72.2%")
  axes.axhline(
    paper.SPEEDUP, color="#999999", linewidth=0.8, linestyle="--", label=f"the paper: {paper.SPEEDUP} times fewer"
  )
  axes.axhline(1, color="#999999", linewidth=0.8)
  curves.finish_axes(axes, "times fewer steps")
  axes.set(xlabel="level, % of Inception's plateau", yscale="log", xlim=(79.5, 102))
  low, high = axes.get_ylim()
  axes.set_ylim(max(low, 0.5), min(high, 100))
  axes.set_xticks(range(80, 101, 5))
  low, high = axes.get_ylim()
  axes.set_yticks([tick for tick in (0.5, 1, 2, 3, 5, 7, 10, 14, 20, 40, 100) if low <= tick <= high])
  axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
  axes.minorticks_off()
  _legend(figure, axes, True)
  return figure


def ablation(
  experiments: Experiments, changes: Sequence[str], group_sizes: Sequence[int], narrow: bool = False
) -> Figure | None:
  """§4.2.1: accuracy at the end with each change alone, with all up to each, and for each size of the BN groups.

  Only what there are runs of has a panel; None without any.

  Args:
    experiments: the runs of one scale, as `measured.for_ablation` gives them.
    changes: their names, in the paper's order.
    group_sizes: m.
    narrow: see above.
  """
  alone = {"BN-Baseline": "bn_baseline", **{name: f"alone/{name}" for name in changes}, "all = BN-x5": "bn_x5"}
  up_to = {
    "BN-Baseline": "bn_baseline",
    changes[0]: f"alone/{changes[0]}",
    **{f"+ {name}": f"up_to/{name}" for name in changes[1:-1]},
    f"+ {changes[-1]} = BN-x5": "bn_x5",
  }
  groups = {f"m = {size}": f"group/{size}" for size in group_sizes}
  drawn = [
    (title, rows)
    for prefix, title, rows in (
      ("alone/", "each change alone", alone),
      ("up_to/", "one after the other", up_to),
      ("group/", "size of the BN groups", groups),
    )
    if any(name.startswith(prefix) for name in experiments)
  ]
  if not drawn:
    return None
  figure, [panels] = _panels(1, len(drawn), narrow, 4.4, 3.6)
  for axes, (title, rows) in zip(panels, drawn, strict=True):
    _dots(
      axes,
      {
        label.replace("_", " "): measured.over_seeds(experiments.get(name, []), measured.level)
        for label, name in rows.items()
      },
      "validation accuracy at the end",
    )
    axes.set_title(title, fontsize=10)
    if rows is not groups and (baseline := measured.over_seeds(experiments.get("bn_baseline", []), measured.level)):
      axes.axvline(baseline.mean, color="#999999", linewidth=0.8, zorder=0)
  limits = [limit for axes in panels if axes.get_lines() for limit in axes.get_xlim()]
  for axes in panels:
    axes.set_xlim(min(limits), max(limits))
  return figure


def _dots(axes: Axes, rows: dict[str, measured.Spread | None], label: str) -> None:
  """A row for each label: every value as a small dot, the mean as a large one with the deviation, and as a number."""
  for place, spread in enumerate(rows.values()):
    if spread is not None:
      axes.plot(spread.values, [place] * len(spread.values), "o", color="#56B4E9", markersize=3.5)
      axes.errorbar(spread.mean, place, xerr=spread.deviation, fmt="o", color="#0072B2", markersize=6, capsize=3)
      axes.text(1.02, place, f"{spread.mean:.1%}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
  axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
  axes.set_ylim(len(rows) - 0.5, -0.5)
  curves.finish_axes(axes, "")
  axes.set_xlabel(label)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(4))
  axes.xaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=None))


def figure4(evaluations: dict[str, tuple[dict, dict[str, float]]], narrow: bool = False) -> Figure | None:
  """§4.2.3: top-1 errors of single networks and of the ensemble, with one crop and with many, beside the paper's."""
  kinds = {
    (networks, crops): metrics
    for (networks, crops, kind), metrics in measured.metrics_by_kind(evaluations).items()
    if kind == "running"
  }
  if not kinds:
    return None
  figure, [[ours, theirs]] = _panels(1, 2, narrow, 5, 2.6)

  def name(networks: int, crops: int) -> str:
    return ("one network" if networks == 1 else f"ensemble of {networks}") + f", {crops} crop{'s' if crops > 1 else ''}"

  _dots(
    ours,
    {
      name(*kind): measured.Spread(tuple(metrics["top1_error"] for metrics in kinds[kind].values()))
      for kind in sorted(kinds)
    },
    "top-1 error",
  )
  ours.set_title("measured", fontsize=10)
  _dots(
    theirs,
    {
      name(row.networks, row.crops): measured.Spread((row.top1_error,))
      for row in paper.FIGURE_4
      if row.name.startswith("BN-Inception")
    },
    "top-1 error",
  )
  theirs.set_title("the paper, on ImageNet", fontsize=10)
  return figure


def sweep(experiments: Experiments, narrow: bool = False) -> Figure | None:
  """Accuracy on held-out training examples, at the end of the runs, against the learning rate."""
  rates = {network: points for network, points in sweep_points(experiments).items() if len(points) > 1}
  if not rates:
    return None
  figure, [[axes]] = _panels(1, 1, narrow, 6, 3.8)
  for (network, points), colour in zip(sorted(rates.items()), curves.RUN_COLOURS * math.ceil(len(rates) / 8)):
    means = [spread.mean for spread in points.values()]
    deviations = [spread.deviation or 0 for spread in points.values()]
    axes.errorbar(
      list(points),
      means,
      yerr=deviations if any(deviations) else None,
      fmt="o-",
      color=colour,
      linewidth=1.2,
      markersize=4,
      capsize=3,
      label=network,
    )
  curves.finish_axes(axes, "held-out accuracy at the end")
  axes.set(xscale="log", xlabel="learning rate")
  axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
  axes.minorticks_off()
  _legend(figure, axes, True)
  return figure


def sweep_points(experiments: Experiments) -> dict[str, dict[float, measured.Spread]]:
  """{network: {learning rate: accuracy at the end over seeds}} of the sweeps, rates ascending."""
  rates: dict[str, dict[float, measured.Spread]] = {}
  for name, runs in experiments.items():
    network, _, point = name.removeprefix("sweep/").partition("/")
    end = measured.over_seeds(runs, measured.level)
    if name.startswith("sweep/") and point.startswith("rate_") and end is not None:
      rates.setdefault(network, {})[runs[0].config["learning_rate"]] = end
  return {network: dict(sorted(points.items())) for network, points in rates.items()}
