"""Training and evaluation of one config, from its first check to its last checkpoint, in the order it happens."""

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
  optim,
  paths,
  program as program_lib,
  run_data,
  run_directory,
  sharding,
  status as status_lib,
  tables,
  watchdog,
)
from bn_inception.config_keys import Config
from bn_inception.data import device, pipeline
from bn_inception.errors import Stopped
from bn_inception.evaluators import Evaluate, Evaluator, classification, sigmoid_inputs
from bn_inception.state import Sums, TrainState

_HEARTBEAT_SECONDS = 30.0  # Between two times that status.json says where the run is.

_log = logging.getLogger(__name__)


def train_and_evaluate(
  config: ConfigDict,
  workdir: str | os.PathLike,
  devices: list[jax.Device] | None = None,
  *,
  allow_config_change: bool = False,
  parameter_table: bool = False,
) -> dict[str, Any]:
  """Trains from where the run directory stands to `config.num_steps`.

  Args:
    config: from a file in configs/.
    workdir: run directory; made if missing, continued if it has a checkpoint. All hosts must see the same.
    devices: what to run on; None: all devices of all processes.
    allow_config_change: go on with another learning rate, length or evaluation than the run so far; `config_changes`
      has all such keys.
    parameter_table: logs every parameter with its shape.

  Returns:
    The run's summary, as in status.json: {"status": "done" | "diverged" | "preempted", "step", "metrics": those of the
    last evaluation or {}}.

  Raises:
    PathError, ConfigError, VersionError, DataError, CheckpointError, FolderInUseError, DamagedFileError, ReleaseError,
      HostsDifferError: one sentence on what cannot be used, before anything is compiled.
    StorageError: if something cannot be written; what was saved goes on.
    Stopped: if the program was asked to stop before a step was made.
  """
  hosts.check_not_asked()
  folder = pathlib.Path(paths.local(workdir, "--workdir")).absolute()
  mesh = sharding.make_mesh(devices)
  with jax.set_mesh(mesh), contextlib.ExitStack() as cleanup:
    # What can be wrong is found first.
    request = _check(config, folder, mesh, allow_config_change)
    if ended := _ended(request):
      return _summary(folder, ended, request.before["step"], None)
    start = _start(request, cleanup)
    # The first batches are read while the step compiles. Whatever happens, the threads that read end with the run.
    batches = _training_input(request, start.step)
    cleanup.callback(batches.close)
    if start.is_new:
      checkpoint.save(start.manager, start.state, request.config, {})
    train_call = _compile(request, start, parameter_table)
    run = _open(request, start, cleanup)
    evaluators = _evaluators(request, run)
    # The first checkpoint stands before the first line of metrics.
    run.watch(watchdog.CHECKPOINT)
    checkpoint.finish(run.manager)
    run.record.saved_step = run.record.saving_step = run.step
    if _writes():
      run_directory.drop_metrics_after(folder, run.step)
    with hosts.deferred():
      status = _train(run, train_call, batches, evaluators)
      return _summary(folder, status, run.step, run.record)


def _writes() -> bool:
  """Whether this process writes the run directory."""
  return jax.process_index() == 0


class _Request(NamedTuple):
  """What is asked for, and what there is of it.

  Attributes:
    given, config: the config as it is written down, and its typed form.
    workdir, mesh: of the run.
    train_source, eval_source: the opened splits.
    before: status.json of the run so far; {} of a new one.
    changed: the keys in which the config differs from that of the run so far.
  """

  given: ConfigDict
  config: Config
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  train_source: pipeline.Source
  eval_source: pipeline.Source
  before: dict[str, Any]
  changed: list[str]


def _check(given: ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh, allow_config_change: bool) -> _Request:
  """Checks config, data and run directory, on all hosts; writes nothing."""
  config = config_checks.check_config(given, mesh.size)
  data = run_data.held(config.data, workdir)
  train_source, eval_source = (
    pipeline.open_source(data, name) for name in (config.data.train_split, config.data.eval_split)
  )
  train_split, eval_split = train_source.split, eval_source.split
  for split in (train_split, eval_split):
    config_checks.check_data(config, split)
  hosts.check_alike(
    run_directory.fingerprint(given) | {"data of training": train_split.digest, "data of evaluation": eval_split.digest}
  )
  run_data.check(config.data, workdir, train_split=train_split, eval_split=eval_split)
  # Only process 0 reads; what the other processes hand over does not count.
  before, changed = hosts.of_first(
    _writes() and (run_directory.read_status(workdir), run_directory.changed_fields(workdir, given))
  )
  config_changes.check(changed, allow_config_change)
  return _Request(given, config, workdir, mesh, train_source, eval_source, before, changed)


def _ended(request: _Request) -> str | None:
  """How the run has ended, if it has: with or without its checkpoints."""
  status, step = request.before.get("status"), request.before.get("step", 0)
  if status == status_lib.DONE and step >= request.config.num_steps:
    _log.info("This run is done: it made its %d steps. Use a new --workdir, or more num_steps.", step)
    return status
  if status == status_lib.DIVERGED and not config_changes.matter(request.changed):
    _log.info("This run has diverged, which another try would repeat: use a new --workdir or another config.")
    return status
  return None


class _Start(NamedTuple):
  """Where the run stands: an earlier run's newest checkpoint, or before the first step.

  Attributes:
    program: network, optimizer, schedule.
    state, step: on the devices, and the number of steps that it has made.
    is_new: whether there is no checkpoint yet.
    evaluated: {step: top-1} of the evaluations so far.
    manager: of the checkpoints.
    lock: of the run directory; None on the processes that do not write it.
    record: the run's status.
  """

  program: program_lib.Program
  state: TrainState
  step: int
  is_new: bool
  evaluated: dict[int, float]
  manager: checkpoint.Manager
  lock: folder_lock.Lock | None
  record: run_directory.Status


def _start(request: _Request, cleanup: contextlib.ExitStack) -> _Start:
  """Takes the run directory, restores or makes the state, and writes down what is going to run."""
  given, config, workdir = request.given, request.config, request.workdir
  train_split, eval_split = request.train_source.split, request.eval_source.split
  lock = cleanup.enter_context(folder_lock.hold_for_all(workdir))
  hosts.check_shared(workdir)

  program = program_lib.build(config, request.mesh, num_examples=train_split.num_examples)
  with folder_lock.writable(workdir):
    manager = checkpoint.open_manager(workdir, read_only=False)
  cleanup.callback(_try, manager.close)
  like = program.abstract_state()
  initialization.check_patterns(config, like.params)
  state = checkpoint.restore_newest_usable(manager, like, config)
  saved, evaluated = hosts.of_first(_writes() and (run_directory.saved_step(workdir), _evaluated(workdir)))
  init = request.before.get("init")
  is_new = state is None
  if state is None:
    if saved is not None:
      raise checkpoint.CheckpointError(
        f"{workdir} records a checkpoint of step {saved}, but {manager.directory} holds none: restore or mount that "
        "folder, or start again in a new --workdir."
      )
    trained = initialization.read(config, like.params, train_split) if config.init.checkpoint else None
    state = program.initial_state()
    if trained:
      init = trained.origin
      hosts.check_alike({"the content of init.checkpoint": init["sha256"]})
      state = initialization.apply(trained, state)
  step = int(state.step)
  if step % config.steps_per_call:
    raise config_checks.ConfigError(
      f"The run stands at step {step}, which is no multiple of steps_per_call={config.steps_per_call}: resume with "
      "steps_per_call=1 or another divisor."
    )
  evaluated = {int(number): top1 for number, top1 in evaluated.items() if int(number) <= step}  # JSON's keys are text.

  record = run_directory.Status(workdir, config, step, None if is_new else step, init)
  if lock:

    def put_down(code: int, sentence: str) -> None:
      if code == status_lib.EXIT_PREEMPTED:
        record.write(status_lib.PREEMPTED)
      else:
        record.write(status_lib.FAILED, error=sentence)
      lock.release()

    # From here on a signal ends the program at once, until there is something to save.
    cleanup.enter_context(hosts.before_exit(put_down))
  # It ends first: while it waits for the reason of a broken collective, the reason may end the program.
  cleanup.enter_context(_recorded(record, manager))
  if lock:
    run_directory.write_config(workdir, given, step)
    run_data.write(config.data, workdir, train_split=train_split, eval_split=eval_split)
  record.write(status_lib.RUNNING)
  if request.changed:
    _log.warning("The config differs from that of the run so far in: %s.", ", ".join(request.changed))
  if not is_new:
    _log.info("Resuming from the checkpoint of step %d.", step)
  return _Start(program, state, step, is_new, evaluated, manager, lock, record)


def _training_input(request: _Request, step: int) -> device.DeviceBatches:
  """Starts to read the training batches from a step on. A call of several steps takes one batch with all of theirs."""
  config = request.config
  batches = pipeline.train_batches(
    config.data,
    request.train_source,
    seed=config.seed,
    batch_size=config.steps_per_call * config.batch_size,
    micro_batches=config.steps_per_call * config.gradient_accumulation,
    start_step=step // config.steps_per_call,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  return device.to_device(batches, sharding.micro_batches(request.mesh))


def _compile(request: _Request, start: _Start, parameter_table: bool) -> jax.stages.Compiled:
  """Says what will run, then compiles the training step."""
  config = request.config
  if parameter_table and _writes():
    _log.info("Parameters:\n%s", parameter_overview.get_parameter_overview(start.state.params, include_stats=False))
  splits = request.train_source.split, request.eval_source.split
  _log.info("%s", tables.plan(config, request.mesh, start.state, *splits, start.step))
  if _writes() and optim.keeps_a_small_rate(config):
    _log.warning(
      "learning_rate=%g is used as it is with batches of %d: a rate that was chosen for batches of 32 is "
      "too small for them. --config.learning_rate_scaling=linear scales it; docs/clusters/README.md has more.",
      config.learning_rate,
      config.batch_size,
    )
  begin = time.monotonic()
  lowered = start.program.train_call().lower(start.state, start.program.batch_shapes())
  train_call = lowered.compile()
  _log.info("%s", tables.compiled_step(config, lowered, train_call, time.monotonic() - begin))
  return train_call


@dataclasses.dataclass
class _Run:
  """A run between its first and its last step: what the functions of the loop share.

  Attributes:
    config, workdir, mesh, program, manager, lock, record, evaluated: as of `_Request` and `_Start`.
    watch: told what the run waits for.
    writer: of the metrics for TensorBoard.
    evaluation_input: what evaluations under way read from.
    state, step: the newest.
    save_is_due: whether a checkpoint was asked for, by a signal or by the clock.
    status_time, save_time: `time.monotonic` of the last heartbeat, and of the last checkpoint or request for one.
  """

  config: Config
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  program: program_lib.Program
  manager: checkpoint.Manager
  lock: folder_lock.Lock | None
  record: run_directory.Status
  evaluated: dict[int, float]
  watch: watchdog.Watch
  writer: metric_writers.MetricWriter
  evaluation_input: contextlib.ExitStack
  state: TrainState
  step: int
  save_is_due: bool = False
  status_time: float = dataclasses.field(default_factory=time.monotonic)
  save_time: float = dataclasses.field(default_factory=time.monotonic)


def _open(request: _Request, start: _Start, cleanup: contextlib.ExitStack) -> _Run:
  """Opens what a run needs beside its state, until `cleanup` ends."""
  config, workdir = request.config, request.workdir
  watch = cleanup.enter_context(
    watchdog.watching(
      60 * config.stall_minutes,
      60 * config.stall_limit_minutes,
      lambda sentence: hosts.leave(status_lib.EXIT_START_AGAIN, sentence),
    )
  )
  evaluation_input = cleanup.enter_context(contextlib.ExitStack())
  writer = metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(workdir))] if _writes() else [])
  cleanup.callback(_try, writer.close)
  writer.write_texts(start.step, {"config": run_directory.config_text(request.given)})
  writer.write_hparams(run_directory.hparams(request.given))
  return _Run(
    config=config,
    workdir=workdir,
    mesh=request.mesh,
    program=start.program,
    manager=start.manager,
    lock=start.lock,
    record=start.record,
    evaluated=start.evaluated,
    watch=watch,
    writer=writer,
    evaluation_input=evaluation_input,
    state=start.state,
    step=start.step,
  )


def _evaluators(request: _Request, run: _Run) -> list[Evaluator]:
  """Compiles the evaluations."""

  def between_batches() -> None:
    run.watch(watchdog.EVALUATION)
    if _poll(run).stop:
      raise Stopped

  train_source, eval_source = request.train_source, request.eval_source
  evaluators = [
    classification.make_evaluator(run.config, run.mesh, train_source, eval_source, between_batches),
    sigmoid_inputs.make_evaluator(run.config, run.mesh, eval_source, between_batches),
  ]
  begin = time.monotonic()
  for evaluator in evaluators:
    evaluator.compile(run.state)
  _log.info("Compiling the evaluation (%.0f s)", time.monotonic() - begin)
  return evaluators


def _train(
  run: _Run, train_call: jax.stages.Compiled, batches: device.DeviceBatches, evaluators: list[Evaluator]
) -> str:
  """The loop: steps, metrics, checkpoints, evaluations; returns the status with which it ends."""
  config, record, watch = run.config, run.record, run.watch
  replicated = sharding.replicated(run.mesh)
  parameter_norm = jax.jit(optax.tree.norm, out_shardings=replicated)
  zero_sums = jax.jit(Sums.zeros, out_shardings=replicated)
  profile = periodic_actions.Profile(
    logdir=run.workdir,
    first_profile=config.profile_at_step,
    num_profile_steps=5,
    profile_duration_ms=None,
    every_secs=None,
  )

  def start_evaluation() -> list[Evaluate]:
    return [evaluator.start(run.evaluation_input) for evaluator in evaluators]

  record.write(status_lib.RUNNING)
  # A run that was cut in an evaluation makes it now.
  is_cut = _evaluates_at(config, run.step) and run.step not in run.evaluated
  stops = is_cut and not _evaluate(run, start_evaluation())
  status = status_lib.PREEMPTED if stops else status_lib.DONE
  clock, clock_step = time.monotonic(), run.step
  watch.take()
  while run.step < config.num_steps and not stops:
    watch(watchdog.INPUT)
    batch = next(batches)
    watch(watchdog.STEP)
    run.state = train_call(run.state, batch)
    run.step += config.steps_per_call
    last, evaluates = run.step == config.num_steps, _evaluates_at(config, run.step)
    if evaluates:  # Its input is read while the step is under way.
      evaluations = start_evaluation()
    sharding.one_program_at_a_time(run.mesh, run.state.step)
    if config.profile_at_step:
      profile(run.step)
    stops = _poll(run).stop
    record.step = run.step
    saves = last or stops or run.save_is_due or run.step % config.checkpoint_every == 0
    logs = last or run.step % config.log_every == 0
    if not (logs or evaluates or saves):
      continue

    norm, sums = float(parameter_norm(run.state.params)), jax.device_get(run.state.sums)
    diverged = not (math.isfinite(norm) and math.isfinite(sums.loss))
    if logs or diverged:
      record.images_per_second = (run.step - clock_step) * config.batch_size / (time.monotonic() - clock)
      _log_training(run, sums, norm)
      run.state = run.state.replace(sums=zero_sums().replace(skipped=run.state.sums.skipped))
    if diverged:
      # The paper reports one such run: a result, not a crash. The last good checkpoint stays the newest.
      status = status_lib.DIVERGED
      break
    # First the checkpoint, then the evaluation: whatever ends an evaluation, nothing but it has to be made again.
    if saves:
      _save(run)
    if evaluates and not stops:
      stops = not _evaluate(run, evaluations)
      if stops and not saves:
        _save(run)
    if stops:
      status = status_lib.PREEMPTED
    clock, clock_step = time.monotonic(), run.step

  batches.close()
  watch(watchdog.CHECKPOINT)
  checkpoint.finish(run.manager)
  record.saved_step = record.saving_step
  checkpoint.retain(run.manager, config, run.evaluated)
  run.writer.flush()
  return status


def _evaluates_at(config: Config, step: int) -> bool:
  return step == config.num_steps or (step > 0 and step % config.eval_every == 0)


def _poll(run: _Run) -> hosts.Due:
  """What is due, after every step and every batch of an evaluation; now and then status.json says that the run lives.

  The status is as far as the last call of the compiled program that has ended, and names checkpoints once they are
  written.
  """
  now, record = time.monotonic(), run.record
  checkpoint.check(run.manager)
  if record.saved_step != record.saving_step and not run.manager.is_saving_in_progress():
    record.saved_step, run.status_time = record.saving_step, -math.inf
  if now - run.status_time > _HEARTBEAT_SECONDS:
    run.status_time = now
    if run.lock:
      run.lock.check()
    record.write(status_lib.RUNNING)
  every_minutes = run.config.checkpoint_every_minutes
  if _writes() and every_minutes and now - run.save_time > 60 * every_minutes:
    run.save_time = now
    hosts.request_save()
  due = hosts.poll()
  run.save_is_due |= due.save
  return due


def _log_training(run: _Run, sums: Sums, parameter_norm: float) -> None:
  """Writes the metrics of the steps since the last time."""
  metrics = {
    "train/loss": sums.loss.item() / sums.count.item(),
    "train/top1": sums.top1.item() / sums.count.item(),
    "train/learning_rate": float(run.program.schedule(run.step - 1)),
    "train/parameter_norm": parameter_norm,
    "train/images_per_second": run.record.images_per_second,
    "train/skipped_examples": sums.skipped.item(),
  }
  metrics |= {f"time/{name}": seconds for name, seconds in run.watch.take().items()}
  _write_metrics(run, metrics)
  _log.info("%s", tables.progress(run.config, run.step, metrics))


def _write_metrics(run: _Run, metrics: dict[str, float]) -> None:
  if run.lock:
    run.lock.check()
  run.writer.write_scalars(run.step, metrics | {"paper_steps": run.step * run.config.batch_size / 32})
  if _writes():
    run_directory.append_metrics(run.workdir, run.step, run.config.batch_size, metrics)


def _save(run: _Run) -> None:
  """Starts to write a checkpoint; the one before is written when it returns."""
  if run.lock:
    run.lock.check()
  run.watch(watchdog.CHECKPOINT)
  checkpoint.save(run.manager, run.state, run.config, run.evaluated)
  _log.info("Saving the checkpoint of step %d.", run.step)
  run.record.saved_step, run.record.saving_step = run.record.saving_step, run.step
  run.record.write(status_lib.RUNNING)
  run.save_is_due, run.save_time = False, time.monotonic()


def _evaluate(run: _Run, evaluations: list[Evaluate]) -> bool:
  """Whether the evaluation came to its end; it does not where the program is asked to stop."""
  run.watch(watchdog.EVALUATION)
  try:
    metrics = {f"eval/{name}": value for evaluate in evaluations for name, value in evaluate(run.state).items()}
  except Stopped:
    return False
  finally:
    run.evaluation_input.close()
  run.evaluated[run.step] = metrics["eval/running/top1"]
  _write_metrics(run, metrics)
  if run.step < run.config.num_steps:  # The result says it then.
    _log.info("%s", tables.evaluation(run.step, metrics))
  if _writes():
    curves.draw(run.workdir)
  return True


def _summary(workdir: pathlib.Path, status: str, step: int, record: run_directory.Status | None) -> dict[str, Any]:
  """Reads and prints the result and returns the summary; writes it with the curve, if there is a record to."""
  hosts.gather(None)  # Process 0 has written all metrics.
  lines = run_directory.read_metrics(workdir)
  metrics = next((line for line in reversed(lines) if "eval/count" in line), {})
  speeds = [line["train/images_per_second"] for line in lines if "train/images_per_second" in line]
  if _writes():
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
def _recorded(record: run_directory.Status, manager: checkpoint.Manager) -> Iterator[None]:
  """What ends the run stands in its status, and ends it on all processes."""
  try:
    yield
  except BaseException as error:
    reason = folder_lock.storage_error(error, record.workdir) or error

    def settle() -> None:
      checkpoint.finish(manager)
      record.saved_step = record.saving_step

    def write() -> None:
      if isinstance(reason, folder_lock.FolderInUseError):  # The file is the other process's.
        return
      if jax.process_count() == 1:  # The end of several breaks off what is being written.
        _try(settle)
      with contextlib.suppress(OSError):  # The disk may be what is full.
        record.write(
          status_lib.PREEMPTED if isinstance(reason, Stopped) else status_lib.FAILED,
          error=f"{type(reason).__name__}: {reason}",
        )

    hosts.end_together(reason, write)
    if reason is error:
      raise
    raise reason from error


def _try(close: Callable[[], None]) -> None:
  """Closes what an error has left open; a second error would hide the first."""
  try:
    close()
  except Exception as error:
    _log.debug("%s", error)
