"""Training and evaluation of one config, from its first check to its last checkpoint, in the order it happens."""

import contextlib
import logging
import math
import pathlib
import signal
import statistics
import threading
import time
from typing import Any

from clu import metric_writers, parameter_overview, periodic_actions
import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
import optax

from bn_inception import checkpoint, config_checks, models, optim, paths, run_data, run_directory
from bn_inception import sharding, state as state_lib, step as step_lib
from bn_inception.data import device, pipeline
from bn_inception.evaluators import classification, sigmoid_inputs
from bn_inception.report import curves, tables

_log = logging.getLogger(__name__)


def train_and_evaluate(config: ConfigDict, workdir: str, devices: list[jax.Device] | None = None) -> dict[str, Any]:
  """Trains from where the run directory stands to `config.num_steps`.

  Args:
    config: from a file in configs/.
    workdir: run directory; made if missing, continued if it has a checkpoint. All hosts must see the same.
    devices: what to run on; None: all devices of all processes.

  Returns:
    The run's summary, as in status.json: {"status": "done" | "diverged" | "preempted", "step", "metrics": those of the
    last evaluation or {}}.

  Raises:
    PathError, ConfigError, VersionError, DataError, CheckpointError, DamagedFileError: one sentence on what cannot be used, before
      anything is compiled.
  """
  workdir = pathlib.Path(paths.local(workdir, "--workdir")).absolute()
  mesh = sharding.make_mesh(devices)
  with jax.set_mesh(mesh), contextlib.ExitStack() as cleanup:
    return _train_and_evaluate(config, workdir, mesh, cleanup)


def _train_and_evaluate(config: ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh,
                        cleanup: contextlib.ExitStack) -> dict[str, Any]:
  # What can be wrong is found first.
  config_checks.check_config(config, mesh.size)
  data = run_data.held(config.data, workdir)
  train_source, eval_source = (pipeline.open_source(data, name)
                               for name in (config.data.train_split, config.data.eval_split))
  train_split, eval_split = train_source.split, eval_source.split
  for split in (train_split, eval_split):
    config_checks.check_data(config, split)
  run_data.check(config.data, workdir, train_split=train_split, eval_split=eval_split)
  changed = run_directory.changed_fields(workdir, config)
  writes = jax.process_index() == 0
  if writes:
    workdir.mkdir(parents=True, exist_ok=True)
  multihost_utils.sync_global_devices("run directory made")

  # Network, optimizer, and the state: an earlier run's, or the one before the first step.
  model = models.build(config)
  schedule = optim.learning_rate_schedule(config, train_split.num_examples)
  optimizer = optim.make_optimizer(config, schedule)
  replicated = sharding.replicated(mesh)
  image_shape = (config.data.image_size, config.data.image_size, train_split.image_channels)
  initialize = lambda: state_lib.create(model, optimizer, config, image_shape)
  manager = checkpoint.open_manager(workdir, config)
  state = checkpoint.restore_latest(manager, state_lib.abstract(initialize, replicated), config)
  if state is None:
    state = jax.jit(initialize, out_shardings=replicated)()
  step = first_step = int(state.step)
  if step % config.steps_per_call:
    raise config_checks.ConfigError(
        f"The run stands at step {step}, which is no multiple of steps_per_call={config.steps_per_call}: resume with "
        "steps_per_call=1 or another divisor.")
  if step:
    _log.info("Resuming from the checkpoint of step %d.", step)
  if step >= config.num_steps and run_directory.read_status(workdir).get("status") == "done":
    _log.info("This run is done: it made its %d steps. Use a new --workdir, or more num_steps.", step)
    return _finish(workdir, config, "done", step)
  if writes:
    run_directory.write_config(workdir, config)
    run_data.write(config.data, workdir, train_split=train_split, eval_split=eval_split)
    if changed:
      _log.warning("The config differs from that of the run so far in: %s.", ", ".join(changed))
    run_directory.drop_metrics_after(workdir, step)

  # The first batches are read while the step compiles. Whatever happens, the threads that read end with the run.
  process = dict(process_index=jax.process_index(), process_count=jax.process_count())
  # To the input several steps are one long step of as many micro-batches more.
  batches = device.to_device(
      pipeline.train_batches(config.data, train_source, seed=config.seed,
                             batch_size=config.steps_per_call * config.batch_size,
                             micro_batches=config.steps_per_call * config.gradient_accumulation,
                             start_step=step // config.steps_per_call, **process),
      sharding.micro_batches(mesh))
  cleanup.callback(batches.close)

  # Compile, then say what will run.
  train_step = step_lib.make_train_step(model, optimizer, config)
  train_call = jax.jit(step_lib.make_train_call(train_step, config), donate_argnums=0, out_shardings=replicated)
  batch_shapes = step_lib.train_batch_shapes(config, image_shape, steps=config.steps_per_call,
                                             sharding=sharding.micro_batches(mesh))
  start = time.monotonic()
  lowered = train_call.lower(state, batch_shapes)
  train_call = lowered.compile()
  _log.info("Compiled the training step in %.0f s.", time.monotonic() - start)
  if writes:
    _log.info("Parameters:\n%s", parameter_overview.get_parameter_overview(state.params, include_stats=False))
    _log.info("%s", tables.plan(config, mesh, state, lowered, train_call, train_split, eval_split, first_step))

  evaluators = [classification.make_evaluator(config, mesh, train_source, eval_source),
                sigmoid_inputs.make_evaluator(config, mesh, eval_source)]
  eval_inputs = cleanup.enter_context(contextlib.ExitStack())
  parameter_norm = jax.jit(optax.global_norm, out_shardings=replicated)
  zero_sums = jax.jit(state_lib.Sums.zeros, out_shardings=replicated)
  writer = metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(workdir))] if writes else [])
  profile = periodic_actions.Profile(logdir=workdir, first_profile=config.profile_at_step, num_profile_steps=5,
                                     profile_duration_ms=None, every_secs=None)

  def write(metrics: dict[str, float]) -> None:
    writer.write_scalars(step, metrics | {"paper_steps": step * config.batch_size / 32})
    if writes:
      run_directory.append_metrics(workdir, step, config.batch_size, metrics)

  if writes:
    run_directory.write_status(workdir, "running", step, config)
  status = "done"
  with _Preemption(manager) as preemption:
    clock, clock_step = time.monotonic(), step
    while step < config.num_steps:
      state = train_call(state, next(batches))
      step += config.steps_per_call
      last = step == config.num_steps
      evaluates = last or step % config.eval_every == 0
      if evaluates:  # Its input is read while the step is under way.
        evaluations = [read_ahead(eval_inputs) for read_ahead in evaluators]
      sharding.one_program_at_a_time(mesh, state.step)
      if config.profile_at_step:
        profile(step)
      preempted = preemption.reached(step // config.steps_per_call)  # JAX's service counts in ones.
      saves = last or preempted or step % config.checkpoint_every == 0
      logs = last or step % config.log_every == 0
      if not (logs or evaluates or saves):
        continue

      norm, sums = float(parameter_norm(state.params)), jax.device_get(state.sums)
      diverged = not (math.isfinite(norm) and math.isfinite(sums.loss))
      if logs or diverged:
        images_per_second = (step - clock_step) * config.batch_size / (time.monotonic() - clock)
        train_metrics = {
            "train/loss": sums.loss.item() / sums.count.item(), "train/top1": sums.top1.item() / sums.count.item(),
            "train/learning_rate": float(schedule(step - 1)), "train/parameter_norm": norm,
            "train/images_per_second": images_per_second, "train/skipped_examples": sums.skipped.item()}
        write(train_metrics)
        _log.info("%s", tables.progress(config, step, train_metrics))
        state = state.replace(sums=zero_sums().replace(skipped=state.sums.skipped))
      if diverged:
        # The paper reports one such run: a result, not a crash. The last good checkpoint stays the newest.
        status = "diverged"
        break
      top1 = None
      if evaluates:
        metrics = {f"eval/{name}": value for evaluate in evaluations for name, value in evaluate(state).items()}
        eval_inputs.close()
        top1 = metrics["eval/running/top1"]
        write(metrics)
        if not last:  # The result says it then.
          _log.info("%s", tables.evaluation(step, metrics))
      if saves:
        checkpoint.save(manager, state, config, top1)
        if writes:
          run_directory.write_status(workdir, "running", step, config)
      if evaluates and writes:
        curves.draw(workdir)
      if preempted and not last:
        status = "preempted"
        break
      clock, clock_step = time.monotonic(), step

  cleanup.close()
  manager.wait_until_finished()
  manager.close()
  writer.close()
  return _finish(workdir, config, status, step)


def _finish(workdir: pathlib.Path, config: ConfigDict, status: str, step: int) -> dict[str, Any]:
  """Writes the status and the curve, prints the result, returns the summary."""
  multihost_utils.sync_global_devices("metrics written")
  lines = run_directory.read_metrics(workdir)
  metrics = next((line for line in reversed(lines) if "eval/count" in line), {})
  speeds = [line["train/images_per_second"] for line in lines if "train/images_per_second" in line]
  if jax.process_index() == 0:
    run_directory.write_status(workdir, status, step, config, metrics=metrics)
    speed = statistics.median(speeds) if speeds else None
    _log.info("%s", tables.result(workdir, status, step, metrics, speed, curves.draw(workdir)))
  return {"status": status, "step": step, "metrics": metrics}


class _Preemption:
  """Whether the cluster has asked this run to stop (SIGTERM), answered alike on all processes."""

  def __init__(self, manager: Any):
    self._manager = manager
    self._asked = threading.Event()

  def __enter__(self) -> "_Preemption":
    # With several processes JAX's own service listens and finds a step that all can stop at; with one it is silent.
    self._listens = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    if self._listens:
      self._previous = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
    return self

  def __exit__(self, *_: Any) -> None:
    if self._listens:
      signal.signal(signal.SIGTERM, self._previous)

  def reached(self, call: int) -> bool:
    return self._asked.is_set() if jax.process_count() == 1 else self._manager.reached_preemption(call)
