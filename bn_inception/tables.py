"""What a run says on the terminal: what will run, how far it is, what came out."""

import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bn_inception import paper
from bn_inception.data.datasets import Split
from bn_inception.state import TrainState

_IMAGENET_VALIDATION = 50_000  # Images behind every number that the paper and the releases state.


def duration(seconds: float) -> str:
  """ "40 s", "12 min", "3.5 h"."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  if seconds < 5400:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:.1f} h"


def plan(
  config: ConfigDict,
  mesh: Mesh,
  state: TrainState,
  lowered: jax.stages.Lowered,
  compiled: jax.stages.Compiled,
  train_split: Split,
  eval_split: Split,
  first_step: int,
) -> str:
  """States what will run, with XLA's own count of operations and memory."""
  parameters = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(state.params))
  # Before partitioning the count is that of the whole step; a loop's body is counted once.
  gflops = lowered.cost_analysis()["flops"] * config.gradient_accumulation / 1e9
  memory = compiled.memory_analysis()
  gibibytes = (
    memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  ) / 2**30
  evaluations = math.ceil(config.num_steps / config.eval_every) - first_step // config.eval_every
  group_size = config.batch_norm.group_size or config.batch_size
  rows = {
    "Network": f"{config.model.name}, {parameters:,} parameters, {config.dtype}",
    "Data": f"{train_split.name}: {train_split.num_examples:,} {train_split.split}, "
    f"{eval_split.num_examples:,} {eval_split.split}, {config.data.image_size} px",
    "Batch": f"{config.batch_size} over {mesh.size} x {mesh.devices.flat[0].device_kind}"
    + (f", BN groups of {group_size}" if config.batch_norm.enabled else ", no BN"),
    "Step": f"{gflops:.2f} GFLOP, {gibibytes:.2f} GiB on each device",
    "Steps": f"{first_step:,} to {config.num_steps:,} "
    f"({config.num_steps * config.batch_size / train_split.num_examples:.1f} epochs)",
    "Evaluations": f"{evaluations}, a checkpoint every {config.checkpoint_every:,} steps",
  }
  return "What will run:\n" + "\n".join(f"  {name + ':':13}{text}" for name, text in rows.items())


def progress(config: ConfigDict, step: int, metrics: dict[str, float]) -> str:
  """One line: how far, how good, how fast, how long still (without evaluations)."""
  speed = metrics["train/images_per_second"]
  left = (config.num_steps - step) * config.batch_size / speed
  return (
    f"step {step:,}/{config.num_steps:,}  loss {metrics['train/loss']:.4f}  top-1 {metrics['train/top1']:.1%}  "
    f"{speed:,.0f} images/s  {duration(left)} left"
    + (f"  {waiting:.0%} of it waiting for input" if (waiting := _share(metrics, "time/input")) > 0.1 else "")
    + (f"  {skipped:,.0f} examples skipped" if (skipped := metrics["train/skipped_examples"]) else "")
  )


def evaluation(step: int, metrics: dict[str, float]) -> str:
  """A table of the metrics `eval/KIND/top1` and so on, a row for each kind of statistics."""
  skipped = metrics["eval/skipped_examples"]
  lines = [
    f"Evaluation at step {step:,} on {metrics['eval/count']:,.0f} examples"
    + (f" ({skipped:,.0f} bad ones skipped):" if skipped else ":"),
    "  statistics   top-1     top-5     loss",
  ]
  for kind in ("running", "population", "batch"):
    if f"eval/{kind}/top1" in metrics:
      top1, top5, loss = (metrics[f"eval/{kind}/{name}"] for name in ("top1", "top5", "loss"))
      lines.append(f"  {kind:11}{top1:8.2%}  {top5:8.2%}  {loss:7.4f}")
  return "\n".join(lines)


def _share(metrics: dict[str, float], name: str) -> float:
  """How much of the time since the last line went into `name`."""
  return metrics[name] / max(1e-9, sum(value for key, value in metrics.items() if key.startswith("time/")))


def comparison(request: dict[str, Any], metrics: dict[str, float], published: Sequence[str]) -> str:
  """An evaluation of released networks beside the paper's rows (Figure 4) and what is published of the networks.

  Accuracies and errors stand side by side, for ours with the standard error of a binomial proportion of as many
  examples, sqrt(p (1 - p) / n): what another sample of the same kind would differ by.

  Args:
    request: what was evaluated, as in request.json.
    metrics: what came out, as in metrics.json.
    published: for each network, a sentence on its published accuracy; with "top-1 73.5 %, top-5 91.6 %" at its
      beginning it is a row.
  """
  networks, crops, count = request["networks"], request["crops"], metrics["count"]
  name = networks[0]["path"] if len(networks) == 1 else f"ensemble of {len(networks)}"
  rows = [paper.ErrorRow(name, crops, len(networks), metrics["top1_error"], metrics["top5_error"])]
  for network, text in zip(networks, published):
    if numbers := re.match(r"top-1 ([\d.]+) ?%, top-5 ([\d.]+) ?%", text):
      top1, top5 = (1 - float(number) / 100 for number in numbers.groups())
      rows.append(paper.ErrorRow(f"published for {network['path']}", None, 1, top1, top5))
  is_imagenet = request["data"].startswith("imagenet2012:")
  if is_imagenet:
    rows += [row._replace(name=f"the paper: {row.name}") for row in paper.FIGURE_4 if row.crops]
  width = max(len(row.name) for row in rows)

  def cell(error: float | None, ours: bool) -> str:
    if error is None:
      return " " * 26
    spread = f" \N{PLUS-MINUS SIGN}{math.sqrt(error * (1 - error) / count):5.2%}" if ours else ""
    return f"{1 - error:8.2%}{error:8.2%}{spread:8}  "

  lines = [
    f"{request['data']} {request['split']}, {count:,} examples; \N{PLUS-MINUS SIGN}: standard error:",
    f"  {'':{width}}  crops  networks     top-1   error            top-5   error",
  ]
  lines += [
    f"  {row.name:{width}}  {row.crops or '':5}  {row.networks or '':8}  {cell(row.top1_error, row is rows[0])}"
    f"{cell(row.top5_error, row is rows[0])}".rstrip()
    for row in rows
  ]
  if metrics["skipped"]:
    lines.append(f"  {metrics['skipped']:,} examples could not be read and are not counted.")
  if metrics["without_label"]:
    lines.append(f"  {metrics['without_label']:,} examples have no label and are not counted.")
  lines += [f"  Published for {network['path']}: {text}." for network, text in zip(networks, published)]
  if len(rows) > 1 and not (is_imagenet and request["split"] == "validation" and count == _IMAGENET_VALIDATION):
    lines.append(
      f"  Published numbers are of the {_IMAGENET_VALIDATION:,} images of imagenet2012 validation, and this "
      "is another set: what was measured here cannot be compared with them."
    )
  return "\n".join(lines)


def result(
  workdir: pathlib.Path,
  status: str,
  step: int,
  metrics: dict[str, float],
  images_per_second: float | None,
  curve: pathlib.Path | None,
) -> str:
  """How a run ended."""
  lines = [
    {
      "done": f"Done: {step:,} steps.",
      "diverged": f"Diverged at step {step:,}: the loss or the parameters are no longer finite.",
      "preempted": f"Stopped on request at step {step:,}; the same command resumes.",
    }[status]
  ]
  if metrics:
    lines.append(evaluation(int(metrics["step"]), metrics))
  if images_per_second:
    lines.append(f"Training speed: {images_per_second:,.0f} images/s (median).")
  if curve:
    lines.append(f"Curve: {curve}")
  lines.append(f"Run directory: {workdir}")
  return "\n".join(lines)
