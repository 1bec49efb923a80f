"""Training and evaluation of one config, from its first check to its last checkpoint, in the order it happens."""

import contextlib
import logging
import math
import pathlib
import statistics
import time
from typing import Any

import jax
import optax
from clu import metric_writers, parameter_overview, periodic_actions
from ml_collections import ConfigDict

from bn_inception import (
  checkpoint,
  config_changes,
  config_checks,
  curves,
  folder_lock,
  hosts,
  initialization,
  models,
  optim,
  paths,
  run_data,
  run_directory,
  sharding,
  state as state_lib,
  status as status_lib,
  step as step_lib,
  tables,
  watchdog,
)
from bn_inception.data import device, pipeline
from bn_inception.errors import Stopped
from bn_inception.evaluators import classification, sigmoid_inputs

_HEARTBEAT_SECONDS = 30.0  # Between two times that status.json says where the run is.

_log = logging.getLogger(__name__)


def train_and_evaluate(
  config: ConfigDict, workdir: str, devices: list[jax.Device] | None = None, *, allow_config_change: bool = False
) -> dict[str, Any]:
  """Trains from where the run directory stands to `config.num_steps`.

  Args:
    config: from a file in configs/.
    workdir: run directory; made if missing, continued if it has a checkpoint. All hosts must see the same.
    devices: what to run on; None: all devices of all processes.
    allow_config_change: go on with another learning rate, length or evaluation than the run so far, see
      `config_changes`.

  Returns:
    The run's summary, as in status.json: {"status": "done" | "diverged" | "preempted", "step", "metrics": those of the
    last evaluation or {}}.

  Raises:
    PathError, ConfigError, VersionError, DataError, CheckpointError, FolderInUseError, DamagedFileError, ReleaseError:
      one sentence on what cannot be used, before anything is compiled.
    StorageError: if something cannot be written; what was saved goes on.
    Stopped: if the program was asked to stop before a step was made.
  """
  hosts.check_not_asked()
  workdir = pathlib.Path(paths.local(workdir, "--workdir")).absolute()
  mesh = sharding.make_mesh(devices)
  with jax.set_mesh(mesh), contextlib.ExitStack() as cleanup:
    return _train_and_evaluate(config, workdir, mesh, cleanup, allow_config_change)


def _train_and_evaluate(
  config: ConfigDict,
  workdir: pathlib.Path,
  mesh: jax.sharding.Mesh,
  cleanup: contextlib.ExitStack,
  allow_config_change: bool,
) -> dict[str, Any]:
  # What can be wrong is found first.
  config_checks.check_config(config, mesh.size)
  data = run_data.held(config.data, workdir)
  train_source, eval_source = (
    pipeline.open_source(data, name) for name in (config.data.train_split, config.data.eval_split)
  )
  train_split, eval_split = train_source.split, eval_source.split
  for split in (train_split, eval_split):
    config_checks.check_data(config, split)
  hosts.check_alike(
    run_directory.fingerprint(config)
    | {"data of training": train_split.digest, "data of evaluation": eval_split.digest}
  )
  run_data.check(config.data, workdir, train_split=train_split, eval_split=eval_split)
  writes = jax.process_index() == 0
  before, changed = hosts.of_first(
    writes and (run_directory.read_status(workdir), run_directory.changed_fields(workdir, config))
  )
  config_changes.check(changed, allow_config_change)
  # A run that has ended says so, with or without its checkpoints.
  if before.get("status") == status_lib.DONE and before["step"] >= config.num_steps:
    _log.info("This run is done: it made its %d steps. Use a new --workdir, or more num_steps.", before["step"])
    return _summary(workdir, status_lib.DONE, before["step"], None)
  if before.get("status") == status_lib.DIVERGED and not changed:
    _log.info("This run has diverged, which another try would repeat: use a new --workdir or another config.")
    return _summary(workdir, status_lib.DIVERGED, before["step"], None)
  lock = cleanup.enter_context(folder_lock.hold(workdir)) if writes else None
  hosts.check_shared(workdir)

  # Network, optimizer, and the state: an earlier run's, or the one before the first step.
  model = models.build(config)
  schedule = optim.learning_rate_schedule(config, train_split.num_examples)
  optimizer = optim.make_optimizer(config, schedule)
  replicated = sharding.replicated(mesh)
  image_shape = (config.data.image_size, config.data.image_size, train_split.image_channels)
  initialize = lambda: state_lib.create(model, optimizer, config, image_shape)
  with folder_lock.writable(workdir):
    manager = checkpoint.open_manager(workdir, read_only=False)
  cleanup.callback(_try, manager.close)
  like = state_lib.abstract(initialize, replicated)
  initialization.check_patterns(config, like.params)
  state = checkpoint.restore_latest(manager, like, config)
  saved, evaluated = hosts.of_first(writes and (run_directory.saved_step(workdir), _evaluated(workdir)))
  is_new = state is None
  init = before.get("init")
  if is_new:
    if saved is not None:
      raise checkpoint.CheckpointError(
        f"{workdir} records a checkpoint of step {saved}, but {manager.directory} holds none: restore or mount that "
        "folder, or start again in a new --workdir."
      )
    start = initialization.read(config, like.params, train_split) if config.init.checkpoint else None
    state = jax.jit(initialize, out_shardings=replicated)()
    if start:
      init = start.record
      hosts.check_alike({"the content of init.checkpoint": init["sha256"]})
      state = initialization.apply(start, state)
  step = first_step = int(state.step)
  if step % config.steps_per_call:
    raise config_checks.ConfigError(
      f"The run stands at step {step}, which is no multiple of steps_per_call={config.steps_per_call}: resume with "
      "steps_per_call=1 or another divisor."
    )
  evaluated = {int(at): top1 for at, top1 in evaluated.items() if int(at) <= step}
  record = run_directory.Status(workdir, config, step, None if is_new else step, init)
  cleanup.enter_context(_recorded(record))
  if writes:
    # From here on a signal ends the program at once, until there is something to save.
    cleanup.enter_context(hosts.before_exit(lambda: (record.write(status_lib.PREEMPTED), lock.release())))
    run_directory.write_config(workdir, config, step)
    run_data.write(config.data, workdir, train_split=train_split, eval_split=eval_split)
  record.write(status_lib.RUNNING)
  if changed:
    _log.warning("The config differs from that of the run so far in: %s.", ", ".join(changed))
  if not is_new:
    _log.info("Resuming from the checkpoint of step %d.", step)

  # The first batches are read while the step compiles. Whatever happens, the threads that read end with the run.
  process = dict(process_index=jax.process_index(), process_count=jax.process_count())
  # To the input several steps are one long step of as many micro-batches more.
  batches = device.to_device(
    pipeline.train_batches(
      config.data,
      train_source,
      seed=config.seed,
      batch_size=config.steps_per_call * config.batch_size,
      micro_batches=config.steps_per_call * config.gradient_accumulation,
      start_step=step // config.steps_per_call,
      **process,
    ),
    sharding.micro_batches(mesh),
  )
  cleanup.callback(batches.close)
  if is_new:
    checkpoint.save(manager, state, config, {})

  # Compile, then say what will run.
  train_step = step_lib.make_train_step(model, optimizer, config)
  train_call = jax.jit(step_lib.make_train_call(train_step, config), donate_argnums=0, out_shardings=replicated)
  batch_shapes = step_lib.train_batch_shapes(
    config, image_shape, steps=config.steps_per_call, sharding=sharding.micro_batches(mesh)
  )
  start = time.monotonic()
  lowered = train_call.lower(state, batch_shapes)
  train_call = lowered.compile()
  _log.info("Compiled the training step in %.0f s.", time.monotonic() - start)
  if writes and optim.keeps_a_small_rate(config):
    _log.warning(
      "learning_rate=%g is used as it is with batches of %d: a rate that was chosen for batches of 32 is "
      "too small for them. --config.learning_rate_scaling=linear scales it; docs/clusters/README.md has more.",
      config.learning_rate,
      config.batch_size,
    )
  if writes:
    _log.info("Parameters:\n%s", parameter_overview.get_parameter_overview(state.params, include_stats=False))
    _log.info("%s", tables.plan(config, mesh, state, lowered, train_call, train_split, eval_split, first_step))

  watch = cleanup.enter_context(
    watchdog.watching(
      60 * config.stall_minutes,
      60 * config.stall_limit_minutes,
      lambda sentence: hosts.leave(status_lib.EXIT_START_AGAIN, sentence),
    )
  )
  save_is_due = False
  beaten = asked_to_save = time.monotonic()

  def poll() -> hosts.Due:
    """After every step and every batch of an evaluation; the status follows, as far as the last line of the log."""
    nonlocal save_is_due, beaten, asked_to_save
    now = time.monotonic()
    if now - beaten > _HEARTBEAT_SECONDS:
      beaten = now
      record.write(status_lib.RUNNING)
    if writes and config.checkpoint_every_minutes and now - asked_to_save > 60 * config.checkpoint_every_minutes:
      asked_to_save = now
      hosts.request_save()
    due = hosts.poll()
    save_is_due |= due.save
    return due

  def between_batches() -> None:
    watch(watchdog.EVALUATION)
    if poll().stop:
      raise Stopped

  evaluators = [
    classification.make_evaluator(config, mesh, train_source, eval_source, between_batches),
    sigmoid_inputs.make_evaluator(config, mesh, eval_source, between_batches),
  ]
  for evaluator in evaluators:
    evaluator.compile(state)
  eval_inputs = cleanup.enter_context(contextlib.ExitStack())
  parameter_norm = jax.jit(optax.global_norm, out_shardings=replicated)
  zero_sums = jax.jit(state_lib.Sums.zeros, out_shardings=replicated)
  writer = metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(workdir))] if writes else [])
  cleanup.callback(_try, writer.close)
  profile = periodic_actions.Profile(
    logdir=workdir, first_profile=config.profile_at_step, num_profile_steps=5, profile_duration_ms=None, every_secs=None
  )

  def write(metrics: dict[str, float]) -> None:
    writer.write_scalars(step, metrics | {"paper_steps": step * config.batch_size / 32})
    if writes:
      run_directory.append_metrics(workdir, step, config.batch_size, metrics)

  def save() -> None:
    nonlocal save_is_due, asked_to_save
    if writes and lock.lost.is_set():
      raise folder_lock.FolderInUseError(f"{workdir} was taken over by another process: this one ends.")
    watch(watchdog.CHECKPOINT)
    checkpoint.save(manager, state, config, evaluated)
    _log.info("Saving the checkpoint of step %d.", step)
    record.write(status_lib.RUNNING)  # The one before is written.
    record.saved_step = step
    save_is_due, asked_to_save = False, time.monotonic()

  def start_evaluation() -> list[Any]:
    return [evaluator.start(eval_inputs) for evaluator in evaluators]

  def evaluate(evaluations: list[Any]) -> bool:
    """Whether the evaluation came to its end; it does not where the program is asked to stop."""
    watch(watchdog.EVALUATION)
    try:
      metrics = {f"eval/{name}": value for one in evaluations for name, value in one(state).items()}
    except Stopped:
      return False
    finally:
      eval_inputs.close()
    evaluated[step] = metrics["eval/running/top1"]
    write(metrics)
    if step < config.num_steps:  # The result says it then.
      _log.info("%s", tables.evaluation(step, metrics))
    if writes:
      curves.draw(workdir)
    return True

  def evaluates_at(step: int) -> bool:
    return step == config.num_steps or (step > 0 and step % config.eval_every == 0)

  # The first checkpoint stands before the first line of metrics.
  checkpoint.finish(manager)
  record.saved_step = step
  if writes:
    run_directory.drop_metrics_after(workdir, step)
  with hosts.deferred():
    record.write(status_lib.RUNNING)
    # A run that was cut in an evaluation makes it now.
    stops = evaluates_at(step) and step not in evaluated and not evaluate(start_evaluation())
    status = status_lib.PREEMPTED if stops else status_lib.DONE
    clock, clock_step = time.monotonic(), step
    watch.take()
    while step < config.num_steps and not stops:
      watch(watchdog.INPUT)
      batch = next(batches)
      watch(watchdog.STEP)
      state = train_call(state, batch)
      step += config.steps_per_call
      last = step == config.num_steps
      evaluates = evaluates_at(step)
      if evaluates:  # Its input is read while the step is under way.
        evaluations = start_evaluation()
      sharding.one_program_at_a_time(mesh, state.step)
      if config.profile_at_step:
        profile(step)
      stops = poll().stop
      record.step = step
      checkpoint.check(manager)
      saves = last or stops or save_is_due or step % config.checkpoint_every == 0
      logs = last or step % config.log_every == 0
      if not (logs or evaluates or saves):
        continue

      norm, sums = float(parameter_norm(state.params)), jax.device_get(state.sums)
      diverged = not (math.isfinite(norm) and math.isfinite(sums.loss))
      if logs or diverged:
        record.images_per_second = (step - clock_step) * config.batch_size / (time.monotonic() - clock)
        train_metrics = {
          "train/loss": sums.loss.item() / sums.count.item(),
          "train/top1": sums.top1.item() / sums.count.item(),
          "train/learning_rate": float(schedule(step - 1)),
          "train/parameter_norm": norm,
          "train/images_per_second": record.images_per_second,
          "train/skipped_examples": sums.skipped.item(),
        }
        train_metrics |= {f"time/{name}": seconds for name, seconds in watch.take().items()}
        write(train_metrics)
        _log.info("%s", tables.progress(config, step, train_metrics))
        state = state.replace(sums=zero_sums().replace(skipped=state.sums.skipped))
      if diverged:
        # The paper reports one such run: a result, not a crash. The last good checkpoint stays the newest.
        status = status_lib.DIVERGED
        break
      # First the checkpoint, then the evaluation: whatever ends an evaluation, nothing but it has to be made again.
      if saves:
        save()
      if evaluates and not stops:
        stops = not evaluate(evaluations)
        if stops and not saves:
          save()
      if stops:
        status = status_lib.PREEMPTED
      clock, clock_step = time.monotonic(), step

    batches.close()
    watch(watchdog.CHECKPOINT)
    checkpoint.finish(manager)
    checkpoint.retain(manager, config, evaluated)
    writer.flush()
    summary = _summary(workdir, status, step, record)
  return summary


def _summary(workdir: pathlib.Path, status: str, step: int, record: run_directory.Status | None) -> dict[str, Any]:
  """Reads and prints the result and returns the summary; writes it with the curve, if there is a record to."""
  hosts.gather(None)  # Process 0 has written all metrics.
  lines = run_directory.read_metrics(workdir)
  metrics = next((line for line in reversed(lines) if "eval/count" in line), {})
  speeds = [line["train/images_per_second"] for line in lines if "train/images_per_second" in line]
  if jax.process_index() == 0:
    curve = None
    if record:
      record.write(status, metrics=metrics)
      curve = curves.draw(workdir)
    speed = statistics.median(speeds) if speeds else None
    _log.info("%s", tables.result(workdir, status, step, metrics, speed, curve))
  return {"status": status, "step": step, "metrics": metrics}


def _evaluated(workdir: pathlib.Path) -> dict[int, float]:
  """The accuracy of the steps that the run has evaluated."""
  return {
    line["step"]: line["eval/running/top1"]
    for line in run_directory.read_metrics(workdir)
    if "eval/running/top1" in line
  }


@contextlib.contextmanager
def _recorded(record: run_directory.Status):
  """What ends the run stands in its status, and ends it on all processes."""
  try:
    yield
  except BaseException as error:
    error = folder_lock.storage_error(error, record.workdir) or error
    with contextlib.suppress(OSError):  # The disk may be what is full.
      record.write(
        status_lib.PREEMPTED if isinstance(error, Stopped) else status_lib.FAILED,
        error=f"{type(error).__name__}: {error}",
      )
    hosts.end_together(error)
    raise error


def _try(close: Any) -> None:
  """Closes what an error has left open; a second error would hide the first."""
  try:
    close()
  except Exception as error:
    _log.debug("%s", error)
