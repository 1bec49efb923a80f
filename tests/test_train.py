"""Whole runs of a small network on the embedded digits: resume, checkpoints, processes, what a run leaves behind."""

import errno
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from array_record.python import array_record_module
from ml_collections import ConfigDict
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.plugins.hparams import metadata
from tensorboard.util import tensor_util

from bn_inception import (
  checkpoint,
  config_checks,
  evaluate,
  folder_lock,
  hosts,
  run_directory,
  step as step_lib,
  tables,
  train,
)
from bn_inception.configs import mnist, versions
from bn_inception.data import datasets, digits, pipeline, stream
from bn_inception.data.datasets import DataError
from bn_inception.errors import StartAgainError, StorageError
from bn_inception.evaluators import classification

BATCH, STEPS = 32, 20


def make_config(digits_dir: str, group_size: int = 8, **overrides) -> ConfigDict:
  """MNIST network, 20 steps of 32 with distortions, in BN groups; every event at another step."""
  config = mnist.get_config("bn,quickstart")
  config.data.dir = digits_dir
  config.data.crop_area, config.data.interpolation, config.data.photometric_strength = (0.6, 1.0), "random", 0.3
  config.batch_size = config.eval.batch_size = BATCH
  config.batch_norm.group_size = group_size
  config.steps_per_call, config.data.cache, config.eval.sigmoid_input_units = 1, False, (0, 99)
  config.num_steps, config.log_every, config.eval_every, config.checkpoint_every = STEPS, 1, 10, 5
  config.eval.population_batches = 2
  config.learning_rate, config.momentum = 0.1, 0.9
  for name, value in overrides.items():
    setattr(config, name, value)
  return config


def losses(workdir: pathlib.Path) -> list[float]:
  return [line["train/loss"] for line in run_directory.read_metrics(workdir) if "train/loss" in line]


def reproducible(workdir: pathlib.Path) -> list[dict]:
  """metrics.jsonl without times and speeds."""
  return [
    {name: value for name, value in line.items() if not name.startswith(("train/images_per_second", "time/"))}
    for line in run_directory.read_metrics(workdir)
  ]


def final_state(workdir: pathlib.Path, step: int = STEPS) -> dict:
  with ocp.StandardCheckpointer() as checkpointer:
    return jax.tree.map(np.asarray, checkpointer.restore((workdir / "checkpoints" / str(step) / "state").absolute()))


def assert_bit_identical(a: pathlib.Path, b: pathlib.Path, step: int = STEPS) -> None:
  assert reproducible(a) == reproducible(b)
  leaves_a, leaves_b = (jax.tree.leaves_with_path(final_state(path, step)) for path in (a, b))
  assert len(leaves_a) == len(leaves_b) > 20
  for (path, x), (_, y) in zip(leaves_a, leaves_b):
    assert x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def finished(digits_dir, tmp_path_factory) -> pathlib.Path:
  """An uninterrupted run on one device."""
  workdir = tmp_path_factory.mktemp("finished")
  summary = train.train_and_evaluate(make_config(digits_dir), workdir, jax.devices()[:1])
  assert summary["status"] == "done"
  return workdir


def test_tensorboard_has_the_config_as_text_and_as_hyper_parameters(finished):
  """Read back from the event file, as TensorBoard reads it."""
  config = run_directory.read_config(finished)
  texts, hparams = [], {}
  for path in finished.glob("events.out.tfevents.*"):
    for event in event_file_loader.EventFileLoader(str(path)).Load():
      for value in event.summary.value:
        if value.metadata.plugin_data.plugin_name == "text":
          texts += [value.tag, tensor_util.make_ndarray(value.tensor).item().decode()]
        if value.tag == metadata.SESSION_START_INFO_TAG:
          content = value.metadata.plugin_data.content
          hparams |= {
            key: entry for key, entry in metadata.parse_session_start_info_plugin_data(content).hparams.items()
          }
  tag, text = texts
  assert tag == "config" and f"| learning_rate | {config.learning_rate} |" in text.splitlines()
  assert hparams["learning_rate"].number_value == config.learning_rate
  assert hparams["data.name"].string_value == config.data.name and hparams["batch_norm.enabled"].bool_value is True
  assert set(hparams) == set(versions.flatten(json.loads(config.to_json())))


def test_a_run_leaves_what_a_reader_looks_for(finished):
  status = json.loads((finished / "status.json").read_text())
  assert (status["status"], status["step"], status["paper_steps"]) == ("done", STEPS, STEPS * BATCH / 32)
  assert status["packages"]["jax"] == jax.__version__
  config = json.loads((finished / "config.json").read_text())
  assert config["num_steps"] == STEPS and config["batch_norm"]["group_size"] == 8
  lines = run_directory.read_metrics(finished)
  assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, STEPS + 1))
  evaluations = [line for line in lines if "eval/count" in line]
  assert [line["step"] for line in evaluations] == [10, 20]
  for line in evaluations:
    assert line["eval/count"] == 1000
    for kind in ("running", "population", "batch"):
      assert 0 <= line[f"eval/{kind}/top1"] <= line[f"eval/{kind}/top5"] <= 1
      assert line[f"eval/{kind}/top1"] * 1000 == pytest.approx(round(line[f"eval/{kind}/top1"] * 1000), abs=1e-9)
  assert (finished / "curve.png").read_bytes().startswith(b"\x89PNG")
  assert list(finished.glob("events.out.tfevents*"))


def test_it_learns(finished):
  assert np.mean(losses(finished)[-5:]) < 0.85 * losses(finished)[0]


def test_latest_and_best_are_kept(finished):
  steps = sorted(int(path.name) for path in (finished / "checkpoints").iterdir())
  evaluations = {
    line["step"]: line["eval/running/top1"] for line in run_directory.read_metrics(finished) if "eval/count" in line
  }
  best = max(evaluations, key=evaluations.get)
  assert steps == sorted({15, 20} | {best})


def test_a_finished_run_says_so_and_changes_nothing(finished, digits_dir):
  before = (finished / "metrics.jsonl").read_bytes()
  summary = train.train_and_evaluate(make_config(digits_dir), finished, jax.devices()[:1])
  assert (summary["status"], summary["step"]) == ("done", STEPS)
  assert summary["metrics"]["eval/count"] == 1000
  assert (finished / "metrics.jsonl").read_bytes() == before


def test_evaluation_alone_repeats_the_run_s_own(finished):
  last = run_directory.read_metrics(finished)[-1]
  alone = evaluate.evaluate_run(finished, devices=jax.devices()[:1])
  assert alone == {name: value for name, value in last.items() if name != "paper_steps" and "sigmoid" not in name}


def test_the_newest_checkpoint_is_the_newest_that_process_0_finds(finished, monkeypatch):
  monkeypatch.setattr(hosts, "of_first", lambda value: {20: 15}[value])
  assert evaluate.evaluate_run(finished, devices=jax.devices()[:1])["step"] == 15


def test_evaluation_leaves_out_what_is_not_asked_for(digits_dir, tmp_path, finished):
  config = make_config(digits_dir)
  config.eval.statistics = ("running",)
  metrics = train.train_and_evaluate(config, tmp_path, jax.devices()[:1])["metrics"]
  reference = run_directory.read_metrics(finished)[-1]
  assert metrics == {name: value for name, value in reference.items() if not name.startswith(("eval/pop", "eval/bat"))}


def test_evaluation_does_not_depend_on_batch_size_or_devices(finished):
  """1,000 is no multiple of 24, 64 or 248; groups of 8 examples stay the same groups."""
  reference = evaluate.evaluate_run(finished, devices=jax.devices()[:1])
  for batch_size, devices in ((24, 1), (64, 8), (248, 1)):
    other = evaluate.evaluate_run(finished, batch_size=batch_size, devices=jax.devices()[:devices])
    for name, value in reference.items():
      if name.endswith(("top1", "top5", "count")):
        assert other[name] == value, name
      else:
        assert other[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_do_not_change_the_losses(finished, digits_dir, tmp_path, devices):
  """Groups of 8 are smaller than, equal to and larger than the share of 16, 8 and 4."""
  train.train_and_evaluate(make_config(digits_dir), tmp_path, jax.devices()[:devices])
  np.testing.assert_allclose(losses(tmp_path), losses(finished), rtol=1e-4)


@pytest.mark.parametrize(
  "micro_batches, logged, stopped", [pytest.param(1, "train/loss", 10, marks=pytest.mark.slow), (2, "eval/count", 15)]
)
def test_many_steps_a_call_are_the_same_steps(digits_dir, tmp_path, monkeypatch, micro_batches, logged, stopped):
  """State and evaluations are those of single steps, bit for bit, also when the run is stopped and resumes."""
  single, many, cut = tmp_path / "single", tmp_path / "many", tmp_path / "cut"
  options = dict(gradient_accumulation=micro_batches)
  train.train_and_evaluate(make_config(digits_dir, **options), single, jax.devices()[:1])
  config = make_config(digits_dir, steps_per_call=5, log_every=5, **options)
  train.train_and_evaluate(config, many, jax.devices()[:1])
  for a, b in zip(jax.tree.leaves(final_state(single)), jax.tree.leaves(final_state(many)), strict=True):
    assert a.tobytes() == b.tobytes()
  evaluations = [[line for line in run_directory.read_metrics(run) if "eval/count" in line] for run in (single, many)]
  assert evaluations[0] == evaluations[1] and [line["step"] for line in evaluations[0]] == [10, 20]
  lines = [line for line in run_directory.read_metrics(many) if "train/loss" in line]
  assert [line["step"] for line in lines] == [5, 10, 15, 20]
  np.testing.assert_allclose(losses(many), np.mean(np.reshape(losses(single), (4, 5)), axis=1), rtol=1e-6)

  with monkeypatch.context() as patch:
    # Asked to stop within the evaluation of step 10, or after it.
    patch.setattr(
      hosts,
      "poll",
      lambda: hosts.Due(
        stop=any(logged in line for line in run_directory.read_metrics(cut) if line["step"] == 10), save=False
      ),
    )
    summary = train.train_and_evaluate(config, cut, jax.devices()[:1])
  assert (summary["status"], summary["step"]) == ("preempted", stopped)
  train.train_and_evaluate(config, cut, jax.devices()[:1])
  assert_bit_identical(cut, many)


def test_a_run_between_two_calls_does_not_resume(copy, digits_dir):
  config = make_config(digits_dir, steps_per_call=3, num_steps=30, log_every=3, eval_every=15, checkpoint_every=15)
  with pytest.raises(config_checks.ConfigError, match="stands at step 20, .* no multiple of steps_per_call=3"):
    train.train_and_evaluate(config, copy, jax.devices()[:1], allow_config_change=True)


def test_percentiles_of_sigmoid_inputs_are_those_of_the_network_s_formulas(finished, digits_dir):
  """Against the network written out in NumPy, over all test images."""
  state = final_state(finished)
  data = make_config(digits_dir).data
  batches = list(pipeline.eval_batches(data, pipeline.open_source(data, "test"), batch_size=1000))
  x = (batches[0]["image"].reshape(1000, -1) >= 128).astype(np.float64)
  for layer in (1, 2, 3):
    statistics, bn = state["batch_stats"][f"bn{layer}"], state["params"][f"bn{layer}"]
    x = x @ state["params"][f"hidden{layer}"]["kernel"].astype(np.float64)
    x = bn["gamma"] * (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-3) + bn["beta"]
    before, x = x, 1 / (1 + np.exp(-x))
  last = run_directory.read_metrics(finished)[-1]
  for unit in (0, 99):
    values = np.sort(before[:, unit])
    for percentile in (15, 50, 85):
      place = percentile / 100 * 999
      expected = values[int(place)] + (place - int(place)) * (values[int(place) + 1] - values[int(place)])
      assert last[f"eval/sigmoid_input/{unit}/p{percentile}"] == pytest.approx(expected, rel=1e-4, abs=1e-4)


# ---------------------------------------------------------------------------------------------- kills and processes

_RUN = """
import sys
from tests.test_train import make_config
from bn_inception import hosts, train
import jax, json
digits_dir, workdir, group_size, process, processes, port = sys.argv[1:]
if int(processes) > 1:
  hosts.join(lambda: jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process)), 60)
devices = None if int(processes) > 1 else jax.devices()[:1]
summary = train.train_and_evaluate(make_config(digits_dir, int(group_size)), workdir, devices)
print("SUMMARY", json.dumps(summary["status"]))
"""


def start(
  repository: pathlib.Path,
  digits_dir: str,
  workdir: pathlib.Path,
  *,
  group_size: int = 8,
  process: int = 0,
  processes: int = 1,
  port: int = 0,
  devices: int = 1,
) -> subprocess.Popen:
  """A run in a process of its own, on all its `devices` where there are several `processes`."""
  environment = os.environ | {"PYTHONPATH": str(repository)}
  if processes > 1:
    # A run alone is compared bit for bit with a run of this process. It has the same virtual devices, because XLA's
    # threads are as many as these on a machine with few cores, and a norm is summed in as many parts.
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
  arguments = [digits_dir, workdir, group_size, process, processes, port]
  return subprocess.Popen(
    [sys.executable, "-c", _RUN, *map(str, arguments)],
    env=environment,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    cwd=repository,
  )


def wait_for_step(workdir: pathlib.Path, step: int, process: subprocess.Popen) -> None:
  """Until the run has logged `step` (or ended)."""
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline and process.poll() is None:
    lines = run_directory.read_metrics(workdir)
    if lines and lines[-1]["step"] >= step:
      return
    time.sleep(0.005)
  assert process.poll() is None, process.communicate()[0]
  raise AssertionError(f"no step {step} within the time")


def test_killed_and_resumed_is_bit_identical(finished, digits_dir, tmp_path, repository):
  """SIGKILL before the first checkpoint, between checkpoints, and while a checkpoint may be under way."""
  for step in (3, 8, 15):
    process = start(repository, digits_dir, tmp_path)
    wait_for_step(tmp_path, step, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
  output, _ = (process := start(repository, digits_dir, tmp_path)).communicate(timeout=240)
  assert process.returncode == 0, output
  assert_bit_identical(tmp_path, finished)


def test_sigterm_saves_and_stops_and_the_resumed_run_is_bit_identical(finished, digits_dir, tmp_path, repository):
  process = start(repository, digits_dir, tmp_path)
  wait_for_step(tmp_path, 7, process)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=240)
  assert 'SUMMARY "preempted"' in output, output
  status = json.loads((tmp_path / "status.json").read_text())
  assert status["status"] == "preempted" and 7 <= status["step"] < STEPS
  assert str(status["step"]) in {path.name for path in (tmp_path / "checkpoints").iterdir()}
  output, _ = (process := start(repository, digits_dir, tmp_path)).communicate(timeout=240)
  assert process.returncode == 0, output
  assert_bit_identical(tmp_path, finished)


@pytest.mark.parametrize(
  "group_size", [8, pytest.param(4, marks=pytest.mark.slow), pytest.param(32, marks=pytest.mark.slow)]
)
def test_two_processes_of_two_devices_are_one_run(digits_dir, tmp_path, repository, group_size):
  """The share of a device is 8: groups equal to it, smaller, and the whole batch of all processes."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  together, alone = tmp_path / "together", tmp_path / "alone"
  processes = [
    start(repository, digits_dir, together, group_size=group_size, process=index, processes=2, port=port, devices=2)
    for index in range(2)
  ]
  train.train_and_evaluate(make_config(digits_dir, group_size), alone, jax.devices()[:1])
  for process in processes:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
  np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-4)
  lines = [line for line in run_directory.read_metrics(together) if "eval/count" in line]
  assert [line["eval/count"] for line in lines] == [1000, 1000]
  assert json.loads((together / "status.json").read_text())["processes"] == 2


# ------------------------------------------------------------------------------------------------------------ input


def reading_threads() -> list[str]:
  return [thread.name for thread in threading.enumerate() if thread.name.startswith(("to_device", "decode"))]


def assert_no_thread_reads() -> None:
  deadline = time.monotonic() + 300  # A thread that was told to end makes its part of a batch first.
  while reading_threads() and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not reading_threads()


@pytest.fixture
def openings(monkeypatch) -> list[str]:
  """What was found and opened, in order."""
  made = []
  for module, name, describe in (
    (datasets, "open_split", lambda data, split: f"found {split}"),
    (pipeline, "open_records", lambda split: f"opened {split.split}"),
  ):
    function = getattr(module, name)
    monkeypatch.setattr(
      module,
      name,
      lambda *arguments, function=function, describe=describe: (
        made.append(describe(*arguments)) or function(*arguments)
      ),
    )
  return made


ONCE = ["found train", "opened train", "found test", "opened test"]


@pytest.mark.parametrize("cache", [False, True])
def test_a_run_opens_its_splits_once(digits_dir, tmp_path, openings, cache):
  """Two evaluations with Algorithm 2 and percentiles; then evaluation alone."""
  config = make_config(digits_dir, num_steps=4, eval_every=2, checkpoint_every=4)
  config.data.update({"cache": cache, "crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "flip": False})
  train.train_and_evaluate(config, tmp_path, jax.devices()[:1])
  assert openings == ONCE
  openings.clear()
  evaluate.evaluate_run(tmp_path, devices=jax.devices()[:1])
  assert sorted(openings) == sorted(ONCE)
  assert_no_thread_reads()


def test_evaluation_opens_training_data_for_algorithm_2_alone(finished, openings, monkeypatch):
  monkeypatch.setattr(classification, "statistics_of", lambda config: ("running",))
  evaluate.evaluate_run(finished, devices=jax.devices()[:1])
  assert openings == ["found test", "opened test"]


def test_evaluation_of_a_checkpoint_opens_its_split_once(finished, tmp_path, openings):
  evaluate.evaluate_checkpoints([str(finished)], str(tmp_path / "evaluation"), devices=jax.devices()[:1])
  assert [opening for opening in openings if opening.startswith("opened")] == ["opened test"]


def test_input_is_read_while_programs_compile_and_steps_run(digits_dir, tmp_path, monkeypatch):
  """The step is not compiled before a training batch waits, an evaluation not made before its own input does."""
  waiting, events = {"train": threading.Event(), "eval": threading.Event()}, []

  def announced(kind, function):
    def batches(*arguments, **options):
      for batch in function(*arguments, **options):
        waiting[kind].set()
        yield batch

    return batches

  def make_train_step(*arguments, function=step_lib.make_train_step):
    assert waiting["train"].wait(300)
    events.append("compiles")
    return function(*arguments)

  def progress(config, step, metrics, function=tables.progress):
    if step == 10:  # After the step, before its evaluation.
      assert waiting["eval"].wait(300)
      events.append("evaluates")
    elif step < 10:
      assert not waiting["eval"].is_set()
    return function(config, step, metrics)

  monkeypatch.setattr(pipeline, "train_batches", announced("train", pipeline.train_batches))
  monkeypatch.setattr(pipeline, "eval_batches", announced("eval", pipeline.eval_batches))
  monkeypatch.setattr(step_lib, "make_train_step", make_train_step)
  monkeypatch.setattr(tables, "progress", progress)
  train.train_and_evaluate(make_config(digits_dir), tmp_path, jax.devices()[:1])
  assert events == ["compiles", "evaluates"]
  assert_no_thread_reads()


class _Failure(Exception):
  pass


@pytest.mark.parametrize(
  "module, name",
  [
    (step_lib, "make_train_call"),
    (tables, "plan"),
    (tables, "progress"),
    (checkpoint, "save"),
    (classification, "_metrics"),
  ],
)
def test_no_thread_stays_behind_a_failure(digits_dir, tmp_path, monkeypatch, module, name):
  """While the step is compiled, in the loop with an evaluation's input being read, within the evaluation."""

  def fail(*arguments):
    assert "to_device" in reading_threads()
    raise _Failure

  monkeypatch.setattr(module, name, fail)
  config = make_config(digits_dir, num_steps=2, eval_every=1, checkpoint_every=1)
  with pytest.raises(_Failure) as failure:
    train.train_and_evaluate(config, tmp_path, jax.devices()[:1])
  assert failure.traceback  # Its frames are alive: nothing ends because it is dropped.
  assert_no_thread_reads()


def test_no_thread_stays_behind_a_run_that_is_refused_done_or_diverged(copy, digits_dir, tmp_path, monkeypatch):
  train.train_and_evaluate(make_config(digits_dir), copy, jax.devices()[:1])
  with pytest.raises(config_checks.ConfigError):
    train.train_and_evaluate(make_config(digits_dir, seed=5), copy, jax.devices()[:1])
  config = make_config(digits_dir, learning_rate=1e30, eval_every=2, checkpoint_every=2)
  assert train.train_and_evaluate(config, tmp_path / "diverges", jax.devices()[:1])["status"] == "diverged"
  assert_no_thread_reads()


# ------------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def copy(finished, tmp_path) -> pathlib.Path:
  """A copy of the finished run as if it had been killed before it said that it is done."""
  workdir = pathlib.Path(shutil.copytree(finished, tmp_path / "copy"))
  edit_status(workdir, status="running")
  return workdir


def edit_status(workdir: pathlib.Path, **changes) -> None:
  path = workdir / "status.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def largest_file(directory: pathlib.Path) -> pathlib.Path:
  return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_bit(path: pathlib.Path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  "damage",
  [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:99]), flip_a_bit],
  ids=["missing", "cut", "flipped bit"],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(copy, finished, digits_dir, caplog, damage):
  damage(largest_file(copy / "checkpoints" / "20" / "state"))
  summary = train.train_and_evaluate(make_config(digits_dir), copy, jax.devices()[:1])
  assert summary["status"] == "done"
  messages = " ".join(record.getMessage() for record in caplog.records if record.levelname == "ERROR")
  assert str(copy / "checkpoints" / "20") in messages and "damaged" in messages
  assert len(list((copy / "damaged_checkpoints").iterdir())) == 1
  assert_bit_identical(copy, finished)  # Steps 16 to 20 were made again.


def test_all_damaged_is_an_error_and_not_a_new_start(copy, digits_dir):
  for step in (copy / "checkpoints").iterdir():
    largest_file(step / "state").unlink()
  with pytest.raises(checkpoint.CheckpointError, match="None of the checkpoints"):
    train.train_and_evaluate(make_config(digits_dir), copy, jax.devices()[:1])


def test_restores_onto_more_devices(copy, digits_dir):
  config = make_config(digits_dir, num_steps=25)
  train.train_and_evaluate(config, copy, jax.devices()[:8], allow_config_change=True)
  assert [line["step"] for line in run_directory.read_metrics(copy) if "train/loss" in line] == list(range(1, 26))


@pytest.mark.parametrize("change", [{"batch_size": 64}, {"seed": 5}])
def test_another_seed_or_batch_size_does_not_resume(copy, digits_dir, change):
  before = (copy / "config.json").read_bytes()
  with pytest.raises(config_checks.ConfigError, match=next(iter(change))):
    train.train_and_evaluate(make_config(digits_dir, num_steps=25, **change), copy, jax.devices()[:1])
  assert (copy / "config.json").read_bytes() == before


def test_a_run_whose_checkpoints_are_gone_is_refused_and_keeps_its_metrics(copy, digits_dir):
  shutil.rmtree(copy / "checkpoints")
  before = (copy / "metrics.jsonl").read_bytes()
  edit_status(copy, status="done")
  assert train.train_and_evaluate(make_config(digits_dir), copy, jax.devices()[:1])["status"] == "done"
  edit_status(copy, status="running", step=STEPS - 3)
  with pytest.raises(checkpoint.CheckpointError, match="records a checkpoint of step 20, but .* holds none"):
    train.train_and_evaluate(make_config(digits_dir), copy, jax.devices()[:1])
  assert (copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
  "old, new", [(b"examples_seen", b"examples_sewn"), (b'": 640', b'": 641'), (b'"seed": 0', b'"seed": 1')]
)
def test_a_damaged_description_means_the_checkpoint_before(copy, finished, digits_dir, old, new):
  path = copy / "checkpoints" / "20" / "description" / "metadata"
  content = path.read_bytes()
  assert content.count(old) == 1
  path.write_bytes(content.replace(old, new))
  train.train_and_evaluate(make_config(digits_dir), copy, jax.devices()[:1])
  assert [path.name[:2] for path in (copy / "damaged_checkpoints").iterdir()] == ["20"]
  assert_bit_identical(copy, finished)


def test_a_passing_read_error_renames_nothing(copy, digits_dir, monkeypatch):
  def fail(*_):
    raise OSError(errno.EIO, "Input/output error")

  monkeypatch.setattr(checkpoint, "_read_step", fail)
  with pytest.raises(StartAgainError, match="20 cannot be read now .*Input/output error"):
    train.train_and_evaluate(make_config(digits_dir), copy, jax.devices()[:1])
  assert {"15", "20"} <= {path.name for path in (copy / "checkpoints").iterdir()}
  assert not (copy / "damaged_checkpoints").exists()


def test_a_run_that_was_taken_over_writes_no_more(copy, digits_dir, monkeypatch):
  """Neither metrics nor a status: they are of the process that goes on."""
  before = (copy / "metrics.jsonl").read_bytes()
  log = train._log_training

  def taken_over(run, *rest):
    run.lock.lost.set()
    edit_status(copy, status="done", step=23)
    log(run, *rest)

  monkeypatch.setattr(train, "_log_training", taken_over)
  config = make_config(digits_dir, num_steps=25)
  with pytest.raises(folder_lock.FolderInUseError, match="taken over by another process"):
    train.train_and_evaluate(config, copy, jax.devices()[:1], allow_config_change=True)
  assert (copy / "metrics.jsonl").read_bytes() == before
  assert (run_directory.read_status(copy)["status"], run_directory.read_status(copy)["step"]) == ("done", 23)


@pytest.mark.parametrize("storage", ["answers with an error", "has lost the file"])
def test_an_error_of_the_storage_where_the_arrays_are_read_renames_nothing(copy, finished, digits_dir, storage):
  """TensorStore reports what the operating system says as a ValueError."""
  arrays = [path for path in (copy / "checkpoints" / "20" / "state").rglob("d/*") if path.is_file()]
  assert arrays
  for path in arrays:
    path.unlink()
    if storage == "answers with an error":
      path.symlink_to(path)  # Too many levels of symbolic links.
  if storage == "has lost the file":
    train.train_and_evaluate(make_config(digits_dir), copy, jax.devices()[:1])
    assert [path.name[:2] for path in (copy / "damaged_checkpoints").iterdir()] == ["20"]
    assert_bit_identical(copy, finished)
  else:
    with pytest.raises(StartAgainError, match="20 cannot be read now .*symbolic links"):
      train.train_and_evaluate(make_config(digits_dir), copy, jax.devices()[:1])
    assert not (copy / "damaged_checkpoints").exists()


@pytest.mark.parametrize(
  "change, allowed, named",
  [
    ({"momentum": 0.0}, True, "momentum"),
    ({"ema_decay": 0.9}, True, "ema_decay"),
    ({"dtype": "bfloat16"}, True, "dtype"),
    ({"learning_rate": 0.2, "num_steps": 25}, False, "learning_rate, num_steps: give --allow_config_change"),
  ],
)
def test_a_changed_config_is_named_and_is_no_damage(copy, digits_dir, change, allowed, named):
  with pytest.raises(config_checks.ConfigError, match=f"differs from that of the run so far in {named}"):
    train.train_and_evaluate(make_config(digits_dir, **change), copy, jax.devices()[:1], allow_config_change=allowed)
  assert not (copy / "damaged_checkpoints").exists()


def test_allowed_changes_are_kept_with_their_step(copy, digits_dir):
  before = json.loads((copy / "config.json").read_text())
  config = make_config(digits_dir, num_steps=21, learning_rate=0.05)
  train.train_and_evaluate(config, copy, jax.devices()[:1], allow_config_change=True)
  after = json.loads((copy / "config.json").read_text())
  assert after.pop("history") == [{"step": 20, "changed": {"learning_rate": [0.1, 0.05], "num_steps": [20, 21]}}]
  assert after == before | {"num_steps": 21, "learning_rate": 0.05}
  assert run_directory.read_config(copy).to_dict() == config.to_dict()


def test_a_run_that_dies_in_an_evaluation_makes_it_when_it_resumes(finished, digits_dir, tmp_path, monkeypatch):
  """The checkpoint of its step stands already, and no step is made again."""
  with monkeypatch.context() as patch:
    patch.setattr(classification, "_metrics", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      train.train_and_evaluate(make_config(digits_dir), tmp_path, jax.devices()[:1])
  status = run_directory.read_status(tmp_path)
  assert (status["status"], status["step"], status["saved_step"]) == ("failed", 10, 10)
  assert status["error"] == "ZeroDivisionError: division by zero"
  assert not (tmp_path / ".lock").exists()
  train.train_and_evaluate(make_config(digits_dir), tmp_path, jax.devices()[:1])
  assert_bit_identical(tmp_path, finished)


def test_a_second_error_does_not_hide_the_first(digits_dir, tmp_path, monkeypatch):
  """What ends the run stands in its status also where the checkpoint under way fails because of it."""

  def fail(*_):
    monkeypatch.setattr(train.checkpoint, "finish", lambda manager: raise_(jax.errors.JaxRuntimeError("broken too")))
    raise ZeroDivisionError("the first")

  def raise_(error):
    raise error

  monkeypatch.setattr(classification, "_metrics", fail)
  with pytest.raises(ZeroDivisionError):
    train.train_and_evaluate(make_config(digits_dir), tmp_path, jax.devices()[:1])
  status = run_directory.read_status(tmp_path)
  assert (status["status"], status["error"]) == ("failed", "ZeroDivisionError: the first")


def test_a_status_names_only_checkpoints_that_are_written(digits_dir, tmp_path, monkeypatch):
  """At every heartbeat; what a checkpoint's last files wait for here is a slow disk."""
  named, write = [], run_directory.Status.write
  rename = ocp.path.atomicity.AtomicRenameTemporaryPath.finalize

  def slow(self, *args, **kwargs):
    time.sleep(0.3)
    return rename(self, *args, **kwargs)

  def watched(self, status, **details):
    if self.saved_step is not None:
      named.append(self.saved_step)
      assert (tmp_path / "checkpoints" / str(self.saved_step)).is_dir(), self.saved_step
    write(self, status, **details)

  monkeypatch.setattr(ocp.path.atomicity.AtomicRenameTemporaryPath, "finalize", slow)
  monkeypatch.setattr(run_directory.Status, "write", watched)
  monkeypatch.setattr(train, "_HEARTBEAT_SECONDS", -1.0)
  train.train_and_evaluate(make_config(digits_dir), tmp_path, jax.devices()[:1])
  assert sorted(set(named)) == [0, 5, 10, 15, 20]


def test_two_runs_in_one_folder_are_refused(copy, digits_dir):
  with folder_lock.hold(copy), pytest.raises(folder_lock.FolderInUseError, match="is written to by process"):
    train.train_and_evaluate(make_config(digits_dir), copy, jax.devices()[:1])
  assert evaluate.evaluate_run(copy, devices=jax.devices()[:1])["eval/count"] == 1000


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(
  finished, digits_dir, tmp_path, monkeypatch
):
  def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    append = run_directory.append_metrics
    patch.setattr(
      run_directory,
      "append_metrics",
      lambda workdir, step, *rest: full() if step == 7 else append(workdir, step, *rest),
    )
    with pytest.raises(StorageError, match="cannot be written .No space left on device.: make room"):
      train.train_and_evaluate(make_config(digits_dir), tmp_path, jax.devices()[:1])
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
    with pytest.raises(StorageError, match="No checkpoint can be written into .*No space left on device"):
      train.train_and_evaluate(make_config(digits_dir), tmp_path, jax.devices()[:1])
  train.train_and_evaluate(make_config(digits_dir), tmp_path, jax.devices()[:1])
  assert_bit_identical(tmp_path, finished)


def test_a_checkpoint_is_saved_by_the_clock(digits_dir, tmp_path, monkeypatch):
  saved = []
  save = checkpoint.save
  monkeypatch.setattr(
    checkpoint, "save", lambda manager, state, *rest: saved.append(int(state.step)) or save(manager, state, *rest)
  )
  config = make_config(digits_dir, num_steps=6, eval_every=100, checkpoint_every=100, checkpoint_every_minutes=1e-9)
  train.train_and_evaluate(config, tmp_path, jax.devices()[:1])
  assert saved == [0, 1, 2, 3, 4, 5, 6]


def test_a_step_that_is_not_there_is_named(finished):
  with pytest.raises(checkpoint.CheckpointError, match="no checkpoint of step 7"):
    evaluate.evaluate_run(finished, 7, devices=jax.devices()[:1])


# ------------------------------------------------------------------------------------------- divergence, bad configs


def test_divergence_is_a_result_and_keeps_the_last_good_checkpoint(digits_dir, tmp_path):
  config = make_config(digits_dir, weight_decay=1.0)
  config.learning_rate = 4.0
  config.log_every = 3
  # L2 this strong at this rate multiplies the weights by -3 or more a step.
  config.num_steps = 400
  summary = train.train_and_evaluate(config, tmp_path, jax.devices()[:1])
  assert summary["status"] == "diverged" and summary["step"] < 400
  assert run_directory.read_status(tmp_path)["status"] == "diverged"
  before = (tmp_path / "metrics.jsonl").read_bytes()
  again = train.train_and_evaluate(config, tmp_path, jax.devices()[:1])  # It says so, and does not try again.
  assert (again["status"], again["step"]) == ("diverged", summary["step"])
  config.keep_latest = 5  # It changes no number, so another try would diverge again.
  assert train.train_and_evaluate(config, tmp_path, jax.devices()[:1])["step"] == summary["step"]
  assert (tmp_path / "metrics.jsonl").read_bytes() == before
  for step in (tmp_path / "checkpoints").iterdir():
    with ocp.StandardCheckpointer() as checkpointer:
      restored = checkpointer.restore((step / "state").absolute())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored["params"]))


def test_options_of_the_loop_together(digits_dir, tmp_path):
  """bfloat16, accumulation, Polyak averaging and a profile: the run learns and leaves a profile."""
  config = make_config(digits_dir, dtype="bfloat16", gradient_accumulation=2, ema_decay=0.9, profile_at_step=5)
  metrics = train.train_and_evaluate(config, tmp_path, jax.devices()[:2])["metrics"]
  assert np.mean(losses(tmp_path)[-5:]) < 0.85 * losses(tmp_path)[0] and metrics["eval/count"] == 1000
  assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_bad_config_writes_nothing(digits_dir, tmp_path):
  config = make_config(digits_dir)
  config.batch_norm.group_size = 5
  with pytest.raises(config_checks.ConfigError, match="batch_norm.group_size"):
    train.train_and_evaluate(config, tmp_path / "run", jax.devices()[:1])
  assert not (tmp_path / "run").exists()


def damage(digits_dir: str, root: pathlib.Path) -> dict[str, list[int]]:
  """A copy of the digits in which records of both splits are no images; returns which."""
  damaged = {"train": [7, 8, 1000, 3999], "test": [0, 31, 32]}
  digits.prepare(pathlib.Path(digits_dir))
  for file in (pathlib.Path(digits_dir) / "digits" / "1.0.0").iterdir():
    copied = root / "digits" / "1.0.0" / file.name
    copied.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, copied)
    if ".array_record" in file.name:
      (split,) = (split for split in damaged if f"-{split}." in file.name)
      records = array_record_module.ArrayRecordReader(str(file)).read_all()
      writer = array_record_module.ArrayRecordWriter(str(copied), "group_size:1")
      for row, record in enumerate(records):
        writer.write(b"no example" if row in damaged[split] else record)
      writer.close()
  return damaged


def test_bad_records_end_a_run_or_are_counted_by_it(digits_dir, tmp_path):
  damaged = damage(digits_dir, tmp_path / "data")
  config = make_config(str(tmp_path / "data"), batch_size=250, log_every=5)
  config.batch_norm.group_size = 125
  config.eval.batch_size = 250
  sentence = r"Record \d+ of digits:1.0.0 train \(number \d+ in .*\) cannot be decoded \(it is no tf.train.Example"
  with pytest.raises(DataError, match=sentence):
    train.train_and_evaluate(config, tmp_path / "fails", jax.devices()[:1])
  config.data.on_error = "skip"
  train.train_and_evaluate(config, tmp_path / "straight", jax.devices()[:1])
  lines = run_directory.read_metrics(tmp_path / "straight")
  for line in lines:
    if "train/loss" in line:  # 20 steps of 250 are one epoch and a quarter.
      seen = stream.record_at(np.arange(line["step"] * 250), shard_lengths=[4000], seed=0, shuffle="global")
      assert line["train/skipped_examples"] == np.isin(seen, damaged["train"]).sum()
    else:
      assert (line["eval/count"], line["eval/skipped_examples"]) == (997, 3)
  assert lines[-2]["train/skipped_examples"] >= 4
  # Also where a run goes on.
  config.num_steps = 10
  train.train_and_evaluate(config, tmp_path / "resumed", jax.devices()[:1])
  config.num_steps = STEPS
  train.train_and_evaluate(config, tmp_path / "resumed", jax.devices()[:1], allow_config_change=True)
  later = [line for line in reproducible(tmp_path / "resumed") if line["step"] > 10]
  assert later == [line for line in reproducible(tmp_path / "straight") if line["step"] > 10]


def test_fake_data_needs_no_files(tmp_path):
  config = make_config(str(tmp_path / "nowhere"))
  config.data.name, config.num_steps = "fake", 3
  metrics = train.train_and_evaluate(config, tmp_path / "run", jax.devices()[:2])["metrics"]
  assert metrics["eval/count"] == 1280 and metrics["eval/skipped_examples"] == 0
  assert metrics["eval/running/top1"] < 0.2  # Noise.
  assert not (tmp_path / "nowhere").exists()
