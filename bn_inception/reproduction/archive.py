"""Keeps what is worth keeping of finished runs: their small files, by figure, to commit or to send."""

import json
import pathlib
from typing import Any

from bn_inception import run_directory
from bn_inception.reproduction import measured, plans, speedup

_DIGITS = 5  # Enough for the accuracy over any of the test sets.


def figure_of(experiment: str) -> str:
  """The figure whose folder an experiment is kept in; several figures may use it."""
  if experiment.startswith("sweep/"):
    return "sweep"
  if experiment.startswith(speedup.BEST_RATE):
    return "best_rate"
  if experiment.startswith("precision/"):
    return "precision"
  if experiment.startswith("mnist_"):
    return "figure1"
  if experiment in plans.VARIANTS + plans.FAILING or experiment.startswith((speedup.CONTROLS, speedup.LONGER)):
    return "figure3"
  return "figure4" if experiment == "ensemble" else "ablation"


def archive(workdir: str, output: str) -> list[str]:
  """Copies config.json (without data.dir), status.json and metrics.jsonl of every finished run, and the metrics of
  evaluations, to OUTPUT/FIGURE/SCALE/...

  Returns:
    The folders written.

  Raises:
    FileNotFoundError: if there is no such `workdir`.
  """
  root, written = pathlib.Path(workdir), []
  for scale, experiments in measured.collect(root).items():
    for experiment, runs in experiments.items():
      for run in filter(lambda run: run.finished, runs):
        name = f"{scale}/{experiment}/{run.seed}"
        folder = pathlib.Path(output) / figure_of(experiment) / name
        folder.mkdir(parents=True, exist_ok=True)
        # As it ran: what an older config means to later code is for later code to say.
        config = json.loads(run_directory.config_path(run.folder).read_text())
        config["data"]["dir"] = ""
        run_directory.replace_file(run_directory.config_path(folder), json.dumps(config, indent=2) + "\n")
        run_directory.replace_file(folder / "status.json", json.dumps(_rounded(run.status), indent=2) + "\n")
        run_directory.replace_file(
          run_directory.metrics_path(folder), "".join(json.dumps(_rounded(line)) + "\n" for line in run.lines)
        )
        written.append(str(folder))
    for name, (request, metrics) in measured.evaluations(root, scale).items():
      folder = pathlib.Path(output) / "figure4" / scale / "figure4" / name
      folder.mkdir(parents=True, exist_ok=True)
      networks = [
        network | {"path": "/".join(pathlib.Path(network["path"]).parts[-3:])}  # SCALE/EXPERIMENT/SEED
        for network in request["networks"]
      ]
      run_directory.replace_file(folder / "request.json", json.dumps(request | {"networks": networks}, indent=2) + "\n")
      run_directory.replace_file(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
      written.append(str(folder))
  return written


def _rounded(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: entry if name == "paper_steps" else _rounded(entry) for name, entry in value.items()}
  if isinstance(value, float):
    # JSON has no numbers that are not finite; they are strings, as in the run's own file.
    return float(f"{value:.{_DIGITS}g}") if value - value == 0 else str(value)
  return value
