"""The networks in released/: what their cards state is what their runs measured, and an evaluation repeats it."""

import json
import pathlib

import pytest

from bn_inception import evaluate, release
from bn_inception.release import card

RELEASED = pathlib.Path(__file__).resolve().parents[2] / "released"
NETWORKS = sorted(path.parent.relative_to(RELEASED).as_posix() for path in RELEASED.rglob("model.safetensors"))
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SEED = 0  # Fixed before the runs were made.


def test_there_are_networks_and_they_are_small():
  assert NETWORKS
  assert sum(path.stat().st_size for path in RELEASED.rglob("*") if path.is_file()) < 20e6


@pytest.mark.parametrize("name", NETWORKS)
def test_a_card_states_what_the_run_measured(name, repository):
  released = release.read(RELEASED / name)
  run = repository / "results" / "figure3" / name / f"seed{SEED}"
  last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
  status = json.loads((run / "status.json").read_text())
  config = json.loads((run / "config.json").read_text())
  assert released.config.release.step == config["num_steps"] == status["step"] == last["step"]
  assert released.config.seed == config["seed"] == SEED
  assert released.config.release.revision == status["git_revision"]
  assert released.config.learning_rate == config["learning_rate"]
  assert released.metrics["top1"] == pytest.approx(last["eval/running/top1"], abs=1e-9)
  assert released.metrics["count"] == last["eval/count"] == 10_000
  assert released.labels == CLASSES and "JPEG-compressed copies" in released.config.release.note
  text = (RELEASED / name / "README.md").read_text()
  assert text == card.card(released.config, released.labels, released.metrics)
  assert f"top-1 {last['eval/running/top1']:.2%}" in text
  assert f"(released/{name})" in (repository / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_an_evaluation_repeats_the_number(name, shared, tmp_path):
  """Another machine may round otherwise: 3 of 10,000 images may change sides."""
  folder = RELEASED / name
  found = evaluate.evaluate_checkpoints([str(folder)], str(tmp_path / "out"), data_dir=str(shared / "data" / "tfds"))
  assert found["count"] == 10_000
  assert abs(1 - found["top1_error"] - release.read(folder).metrics["top1"]) <= 3e-4 + 1e-9
