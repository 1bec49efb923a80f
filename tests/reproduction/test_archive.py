"""What is kept of runs and evaluations, and where."""

import json

from bn_inception.reproduction import archive, measured


def write(folder, **files):
  folder.mkdir(parents=True)
  for name, content in files.items():
    (folder / name.replace("_json", ".json")).write_text(json.dumps(content))


def test_evaluations_are_kept_without_the_paths_of_this_machine(tmp_path):
  root, output = tmp_path / "runs", tmp_path / "results"
  write(
    root / "cifar10/figure4/member0_1crop_running",
    request_json={
      "networks": [{"path": f"{root}/cifar10/ensemble/member0", "sha256": "ab"}],
      "crops": 1,
      "statistics": "running",
    },
    metrics_json={"top1_error": 0.123456789, "count": 10_000},
  )
  write(
    root / "cifar10/figure4/ensemble_10crop_running",  # Under way: it has no metrics.
    request_json={"networks": [], "crops": 10, "statistics": "running"},
  )
  write(root / "cifar10/ensemble/member0", status_json={"status": "running"}, config_json={"data": {"dir": "/here"}})
  write(
    root / "cifar10/ensemble/member1",
    status_json={"status": "diverged", "step": 7},
    config_json={"data": {"dir": "/here"}, "num_steps": 9},
  )
  written = archive.archive(str(root), str(output))
  assert sorted(written) == [
    str(output / "figure4/cifar10/ensemble/member1"),
    str(output / "figure4/cifar10/figure4/member0_1crop_running"),
  ]
  assert str(tmp_path) not in "".join(path.read_text() for path in output.rglob("*.json"))
  # An archive is read as the runs are.
  kept = measured.evaluations(output, "cifar10")
  assert list(kept) == ["member0_1crop_running"]
  request, metrics = kept["member0_1crop_running"]
  assert request["networks"] == [{"path": "cifar10/ensemble/member0", "sha256": "ab"}]
  assert metrics == {"top1_error": 0.123456789, "count": 10_000}
  assert measured.collect(output)["cifar10"]["ensemble"][0].diverged


def test_controls_are_kept_with_what_they_control():
  assert archive.figure_of("controls/inception_8000") == archive.figure_of("inception") == "figure3"
