"""Run directories written by hand."""

import json
import pathlib
from collections.abc import Callable

import pytest


@pytest.fixture
def write_run(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
  """A function that writes the run SCALE/EXPERIMENT/SEED with given accuracies, and returns the folder of all runs."""

  def write(
    name: str,
    top1: list[float],
    *,
    every: int = 100,
    status: str = "done",
    population: float | None = None,
    time: str | None = None,
    units: dict[int, list[tuple[float, float, float]]] | None = None,
    **config,
  ) -> pathlib.Path:
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    mnist = "mnist_" in name
    units = units or {}
    settings = {
      "learning_rate": 0.1,
      "batch_size": 60 if mnist else 64,
      "num_steps": every * len(top1),
      "model": {"name": "mnist_mlp" if mnist else "inception"},
      "eval": {"sigmoid_input_units": list(units)},
      "data": {"name": "pictures", "num_classes": 10, "eval_split": "test", "dir": "/secret"},
    } | config
    (folder / "config.json").write_text(json.dumps(settings))
    step = every * len(top1)
    (folder / "status.json").write_text(
      json.dumps(
        {
          "status": status,
          "step": step,
          "git_revision": "0123456789abcdef",
          "devices": "1 abacus",
          "packages": {"jax": "0.0.1"},
        }
        | ({"time": time} if time else {})
      )
    )
    lines = []
    for number, accuracy in enumerate(top1, start=1):
      line = {
        "step": every * number,
        "paper_steps": every * number * settings["batch_size"] / 32,
        "eval/running/top1": accuracy,
        "eval/count": 1000,
      }
      for unit, series in units.items():
        line |= {f"eval/sigmoid_input/{unit}/p{p}": series[number - 1][place] for place, p in enumerate((15, 50, 85))}
      lines.append(line)
    if population is not None:
      lines[-1] |= {"eval/population/top1": population, "eval/batch/top1": population}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "runs"

  return write


@pytest.fixture
def write_evaluation(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
  """A function that writes an evaluation of Figure 4 at the scale cifar10, and returns the folder of all runs."""

  def write(name: str, networks: int, crops: int, top1_error: float, statistics: str = "running") -> pathlib.Path:
    folder = tmp_path / "runs" / "cifar10" / "figure4" / name
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(
      json.dumps({"networks": [{}] * networks, "crops": crops, "statistics": statistics})
    )
    (folder / "metrics.json").write_text(
      json.dumps({"top1_error": top1_error, "top5_error": top1_error / 2, "count": 10_000})
    )
    return tmp_path / "runs"

  return write
