"""Making, cutting, splitting and resuming a plan of tiny runs."""

import json

import jax
import pytest

from bn_inception import config_checks, evaluate, folder_lock, hosts, run_directory, train
from bn_inception.data import datasets
from bn_inception.reproduction import archive, execution, plans

TINY = {
  "num_steps": 4,
  "log_every": 2,
  "eval_every": 2,
  "checkpoint_every": 2,
  "steps_per_call": 2,
  "eval.population_batches": 1,
}


@pytest.fixture(autouse=True)
def tiny_figure(monkeypatch):
  """A figure 'tiny' of four runs of four steps."""

  def tiny(scale, seeds):
    return plans.Plan(
      [
        plans._run(scale, f"mnist_{network}", seed, "mnist", f"{network},{scale}", extra=TINY)
        for seed in range(seeds)
        for network in plans.MNIST_NETWORKS
      ]
    )

  monkeypatch.setitem(plans.FIGURES, "tiny", (tiny, ("quickstart",), 2))
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  monkeypatch.setattr(execution, "measure", lambda config: (1.0, 1e12))


@pytest.fixture
def on_one_device(monkeypatch):
  """Counts the runs; they are real, on one device."""
  made = []
  real = train.train_and_evaluate

  def run(config, workdir, **options):
    made.append(workdir.relative_to(workdir.parents[2]).as_posix())
    return real(config, workdir, jax.devices()[:1], **options)

  monkeypatch.setattr(train, "train_and_evaluate", run)
  return made


NAMES = [f"quickstart/mnist_{network}/seed{seed}" for seed in (0, 1) for network in ("bn", "plain")]


def test_a_cut_plan_continues_and_a_finished_one_does_nothing(digits_dir, tmp_path, on_one_device, monkeypatch):
  make = lambda: execution.reproduce("tiny", str(tmp_path), data_dir=digits_dir)
  with monkeypatch.context() as patch:  # SIGTERM in the second run, after its first call.
    patch.setattr(hosts, "poll", lambda: hosts.Due(stop=len(on_one_device) == 2, save=False))
    assert make() == "preempted"
  assert run_directory.read_status(tmp_path / NAMES[0])["status"] == "done"
  assert run_directory.read_status(tmp_path / NAMES[1])["step"] == 2
  assert make() == "done" and on_one_device == [NAMES[0], NAMES[1], *NAMES[1:]]
  assert make() == "done" and len(on_one_device) == 5
  lines = run_directory.read_metrics(tmp_path / NAMES[1])
  assert [line["step"] for line in lines if "eval/count" in line] == [2, 4]

  written = archive.archive(str(tmp_path), str(tmp_path / "archive"))
  assert written == [str(tmp_path / "archive" / "figure1" / name) for name in sorted(NAMES)]
  for name in NAMES:
    kept = tmp_path / "archive" / "figure1" / name
    assert sorted(path.name for path in kept.iterdir()) == ["config.json", "metrics.jsonl", "status.json"]
    assert json.loads((kept / "config.json").read_text())["data"]["dir"] == ""
    for old, new in zip(run_directory.read_metrics(tmp_path / name), run_directory.read_metrics(kept), strict=True):
      assert new == pytest.approx(old, rel=1e-4)
      assert new["paper_steps"] == old["paper_steps"]


def test_machines_share_the_runs_without_overlap(monkeypatch, digits_dir, tmp_path):
  made = []
  monkeypatch.setattr(
    train,
    "train_and_evaluate",
    lambda config, workdir, **_: made.append(workdir.parent.name + workdir.name) or {"status": "done"},
  )
  for index in range(3):
    execution.reproduce("tiny", str(tmp_path), data_dir=digits_dir, index=index, count=3)
  assert sorted(made) == sorted(name.replace("quickstart/", "").replace("/", "") for name in NAMES)
  runs = plans.figure3("cifar10", 3).runs
  parts = [execution.part(runs, index, 4) for index in range(4)]
  assert sorted(run.name for part in parts for run in part) == sorted(run.name for run in runs)
  assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.fixture
def evaluations(monkeypatch, tmp_path, digits_dir):
  """Three evaluations of two runs; returns a function that makes the plan's part, and what was evaluated so far."""
  names = NAMES[:2]
  made = []

  def figure(scale, seeds):
    runs = plans.FIGURES["tiny"][0](scale, 1).runs
    return plans.Plan(
      runs,
      [
        plans.Evaluation(f"quickstart/figure4/{name}", tuple(of), 1, "running")
        for name, of in (("one", names[:1]), ("two", names[1:]), ("both", names))
      ],
    )

  def evaluate_checkpoints(paths, output, **arguments):
    made.append(output.rpartition("/")[2])
    assert [path.removeprefix(f"{tmp_path}/") for path in paths] in (names[:1], names[1:], names)
    (tmp_path / "quickstart/figure4" / made[-1]).mkdir(parents=True)
    (tmp_path / "quickstart/figure4" / made[-1] / "metrics.json").write_text("{}")

  monkeypatch.setitem(plans.FIGURES, "evaluated", (figure, ("quickstart",), 1))
  monkeypatch.setattr(evaluate, "evaluate_checkpoints", evaluate_checkpoints)
  monkeypatch.setattr(train, "train_and_evaluate", lambda config, workdir, **_: {"status": "done"})
  return lambda **arguments: execution.reproduce("evaluated", str(tmp_path), data_dir=digits_dir, **arguments), made


def set_status(root, name, status, step):
  (root / name).mkdir(parents=True, exist_ok=True)
  (root / name / "status.json").write_text(json.dumps({"status": status, "step": step}))


def test_evaluations_wait_for_the_whole_length_of_their_runs_and_are_made_once(evaluations, tmp_path, caplog):
  make, made = evaluations
  caplog.set_level("INFO")
  set_status(tmp_path, NAMES[0], "done", 4)
  set_status(tmp_path, NAMES[1], "done", 2)  # Tried out with --num_steps=2.
  assert make() == "done" and made == ["one"]
  assert f"quickstart/figure4/both waits for all steps of {NAMES[1]}: the same command" in caplog.text
  set_status(tmp_path, NAMES[1], "done", 4)
  make()
  make()
  assert made == ["one", "two", "both"]


def test_what_process_0_sees_as_made_is_made_for_all(evaluations, tmp_path, monkeypatch):
  """This process sees neither the evaluations nor the last run: its view of the shared file system is older."""
  make, made = evaluations
  set_status(tmp_path, NAMES[0], "done", 4)
  trained = []
  monkeypatch.setattr(train, "train_and_evaluate", lambda config, workdir, **_: trained.append(workdir))
  monkeypatch.setattr(execution.hosts, "of_first", lambda value: ([], [], True) if isinstance(value, tuple) else [])
  assert make() == "done" and not trained and not made


def test_an_evaluation_that_another_process_makes_stops_no_other(evaluations, tmp_path, caplog, monkeypatch):
  make, made = evaluations
  for name in NAMES[:2]:
    set_status(tmp_path, name, "done", 4)
  make_one = evaluate.evaluate_checkpoints

  def in_use(paths, output, **arguments):
    if output.endswith("one"):
      raise folder_lock.FolderInUseError(f"{output} is in use.")
    make_one(paths, output, **arguments)

  monkeypatch.setattr(evaluate, "evaluate_checkpoints", in_use)
  assert make() == "done" and made == ["two", "both"]
  assert "figure4/one is in use. It is left out here." in caplog.text


def test_an_evaluation_of_a_diverged_run_is_not_waited_for(evaluations, tmp_path, caplog):
  make, made = evaluations
  set_status(tmp_path, NAMES[0], "done", 4)
  set_status(tmp_path, NAMES[1], "diverged", 3)
  make()
  assert made == ["one"] and f"quickstart/figure4/both cannot be made: {NAMES[1]} diverged." in caplog.text


def test_machines_share_the_evaluations_without_overlap(evaluations, tmp_path):
  make, made = evaluations
  for name in NAMES[:2]:
    set_status(tmp_path, name, "done", 4)
  make(index=1, count=2)
  assert made == ["two"]
  make(index=0, count=2)
  assert sorted(made) == ["both", "one", "two"]


def test_diverged_runs_are_results_and_longer_ones_go_on(tmp_path):
  config = plans.Run("x", "mnist", "bn", TINY).config()
  assert not execution.finished(tmp_path, config)
  for status, step, expected in (
    ("diverged", 1, True),
    ("done", 4, True),
    ("done", 2, False),
    ("running", 2, False),
    ("preempted", 2, False),
  ):
    (tmp_path / "status.json").write_text(json.dumps({"status": status, "step": step}))
    assert execution.finished(tmp_path, config) == expected


def test_a_dry_run_makes_nothing_and_says_how_long(digits_dir, tmp_path, caplog):
  caplog.set_level("INFO")
  assert execution.reproduce("tiny", str(tmp_path / "runs"), data_dir=digits_dir, dry_run=True) == "planned"
  assert not (tmp_path / "runs").exists()
  text = caplog.messages[-1]
  assert "4 runs, 0 of them finished" in text and all(name in text for name in NAMES)
  assert "It takes about 4 s, at the 1000 GFLOP/s" in text  # Almost all of it to compile.


def test_the_embedded_digits_serve_where_the_data_set_is_absent(digits_dir, tmp_path, monkeypatch, caplog):
  monkeypatch.setenv("TFDS_DATA_DIR", digits_dir)  # It holds no MNIST.
  make = lambda **arguments: execution.reproduce("figure1", str(tmp_path), seeds=1, dry_run=True, **arguments)
  caplog.set_level("INFO")
  assert make() == "planned"
  assert "'mnist' is not prepared" in caplog.messages[0] and "--scale=quickstart" in caplog.messages[0]
  assert "figure1 at the scale quickstart: 4 runs" in caplog.messages[-1]
  # Whoever names the data set or its folder wants it and no other.
  for arguments in ({"scale": "mnist"}, {"data_dir": digits_dir}):
    with pytest.raises(datasets.DataError, match="'mnist' is not prepared"):
      make(**arguments)


@pytest.mark.parametrize(
  "arguments,message",
  [
    ({"scale": "imagenet"}, "tiny has no scale 'imagenet': choose one of quickstart"),
    ({"index": 2, "count": 2}, "Part 2 of 2 does not exist"),
    ({"num_steps": 3}, "num_steps is 3, but steps_per_call"),
  ],
)
def test_what_cannot_be_made_is_said_before_anything_starts(digits_dir, tmp_path, arguments, message):
  with pytest.raises(config_checks.ConfigError, match=message):
    execution.reproduce("tiny", str(tmp_path / "runs"), data_dir=digits_dir, **arguments)
  assert not (tmp_path / "runs").exists()


def test_a_run_of_another_config_is_not_mixed_in(digits_dir, tmp_path):
  folder = tmp_path / NAMES[1]
  folder.mkdir(parents=True)
  config = plans.FIGURES["tiny"][0]("quickstart", 1).runs[1].config()
  config.data.dir, config.learning_rate = digits_dir, 7.0
  run_directory.write_config(folder, config)
  with pytest.raises(config_checks.ConfigError, match=r"seed0 was run with another config .* learning_rate\):"):
    execution.reproduce("tiny", str(tmp_path), data_dir=digits_dir)
