"""What the processes of a run tell each other, and how the program stops when it is asked to.

A thread of every process listens to the other processes and for their heartbeats, also while Python waits in a
compilation or a collective. Some actions must happen at the same place on all processes (stop, save by the clock).
`poll` decides when. `poll` is the only mechanism with a counter: every process calls `poll` equally often.

- A signal while nothing has to be saved ends the program at once, on all its processes, with exit code 143. Within
  `deferred`, `poll` tells when to stop, and a second signal changes nothing.
- An error of one process, told by `leave`, ends all processes with the error's sentence and exit code.
- The loss of a process ends the other processes with the code for "start again".

The processes speak through the key-value store of JAX's coordination service, which process 0 runs. JAX's own
preemption service is off: the answer of this service depends on a counter, and Orbax and a training loop poll the
service with two different counters.
"""

import atexit
import contextlib
import ctypes
import json
import logging
import os
import pathlib
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax._src import distributed  # There is no other way to the key-value store.

from bn_inception import signals, status
from bn_inception.errors import StartAgainError, Stopped, UserError

_KEYS = "bn_inception"
_LISTEN_SECONDS = 0.5
_SHARED_SECONDS = 60.0
_LEAVE_SECONDS = 30.0  # How long an end waits for what must still be written, and process 0 for the others to leave.

_log = logging.getLogger(__name__)


class HostsDifferError(UserError):
  """The processes of a run were started differently, or do not share a folder."""


class Due(NamedTuple):
  """What must be done now: the answer of `poll`, the same on all processes."""

  stop: bool
  save: bool


class _State:
  """The state of this process, changed under `lock`.

  Attributes:
    polls: how often `poll` was called.
    runs, inside: how often `deferred` was entered, and whether the program is within `deferred` now.
    asked: the first signal, or None.
    due: for "stop" and "save-NUMBER" the number of the poll at which the action is due.
    requested: the names on which this process wants all processes to agree.
    agreed: the names on which all processes have agreed.
    callbacks: functions that an immediate end still has to call.
    process, count: the number of this process, and how many processes there are. Threads take them from here: JAX's
      own functions make a backend anew when the main thread is ending and has removed it.
  """

  def __init__(self):
    self.lock = threading.RLock()
    self.polls = self.runs = self.gathered = self.saves = 0
    self.inside = self.leaves_when_outside = False
    self.asked: str | None = None
    self.due: dict[str, int] = {}
    self.requested: set[str] = set()
    self.agreed: set[str] = set()
    self.callbacks: list[Callable[[int, str], None]] = []
    self.ended = threading.Event()
    self.store: Any = None
    self.process, self.count = 0, 1
    self.lost_after = 60.0
    self.listener: threading.Thread | None = None


_state = _State()
_exits = threading.Lock()
_abort_handler: Any = None  # A function that C calls must not be collected.


# ------------------------------------------------------------------------------------------------------ one's own end


def on_stop(name: str) -> None:
  """A signal that asks the program to stop; called by a thread."""
  if _state.asked:
    _log.info("%s: the run is stopping already.", name)
    return
  _state.asked = name
  _log.info("%s received: stopping.", name)
  _request("stop")


def request_save() -> None:
  """Asks all processes for a checkpoint at the next poll that all can reach. Process 0 calls this function."""
  _state.saves += 1
  _request(f"save-{_state.saves}")


def _request(name: str) -> None:
  if _state.listener:
    _state.requested.add(name)
    return
  with _state.lock:
    if _state.inside:
      _state.due[name] = _state.polls + 1
      return
  if name == "stop" and signals.is_listening():
    _exit(status.EXIT_PREEMPTED)


def poll() -> Due:
  """What is due, the same on all processes. Every process must call `poll` equally often."""
  with _state.lock:  # Held while the processes agree: no process goes on until all know when the action is due.
    _state.polls += 1
    due = {name for name, at in _state.due.items() if at <= _state.polls}
    for name in due - {"stop"}:
      del _state.due[name]
    return Due("stop" in due, bool(due - {"stop"}))


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Within, a signal does not end the program: `poll` tells when to stop.

  Raises:
    Stopped: at the start, if the program was asked to stop before.
  """
  own = not signals.is_listening() and jax.process_count() == 1
  previous = None
  if own and threading.current_thread() is threading.main_thread():
    # This is a library call: the caller's handlers are restored afterwards.
    _state.asked, _state.due = None, {}
    previous = signal.signal(signal.SIGTERM, lambda *_: on_stop("SIGTERM"))
  with _state.lock:
    if _state.asked:
      raise Stopped("The program was asked to stop.")
    _state.runs += 1
    _state.inside = True
  try:
    yield
  finally:
    with _state.lock:
      _state.inside = False
      leaves = _state.leaves_when_outside
    if previous is not None:
      signal.signal(signal.SIGTERM, previous)
    if leaves:
      _exit(status.EXIT_PREEMPTED)


def check_not_asked() -> None:
  """Raises Stopped if the program was asked to stop."""
  if _state.asked and signals.is_listening():
    raise Stopped("The program was asked to stop.")


@contextlib.contextmanager
def before_exit(function: Callable[[int, str], None]) -> Iterator[None]:
  """Within, an immediate end of this process calls `function` first, in a thread, with its exit code and reason."""
  _state.callbacks.append(function)
  try:
    yield
  finally:
    _state.callbacks.remove(function)


def leave(code: int, sentence: str) -> None:
  """Ends this process because of an error. The other processes are told, and end with the same sentence and code.

  It returns where there are no other processes and the program is not this project's own: a library call must not end
  its caller.
  """
  if _state.listener:
    with contextlib.suppress(Exception):
      _state.store.key_value_set(
        f"{_KEYS}/news/end/{_state.process}",
        json.dumps({"code": code, "sentence": f"Process {_state.process} on {socket.gethostname()} ended: {sentence}"}),
      )
  if _state.listener or signals.is_listening():
    _exit(code, sentence)


def leave_stopped() -> None:
  """Ends this process after `Stopped`, when the other processes know that they have to stop; alone it returns.

  Process 0 runs the service by which the others learn of the signal: it must not end before them.
  """
  if _state.listener:
    end = time.monotonic() + _state.lost_after
    while "stop" not in _state.agreed and time.monotonic() < end:
      time.sleep(_LISTEN_SECONDS / 5)
    _exit(status.EXIT_PREEMPTED)


def _exit(code: int, sentence: str = "The program was asked to stop.", *, missing: int = 0) -> None:
  """Ends the process from any thread, whatever the other threads wait for.

  `sentence` is the reason. `missing` is the number of processes that will not say goodbye; -1: no process can be told.
  """
  _exits.acquire()  # Never released: the first thread that comes here ends the process.

  def call_back() -> None:
    for function in reversed(_state.callbacks):
      try:
        function(code, sentence)
      except Exception as error:  # The process must end all the same.
        _log.error("%s", error)

  # They write files, and a file system that hangs may be why the process ends.
  thread = threading.Thread(target=call_back, name="end", daemon=True)
  thread.start()
  thread.join(_LEAVE_SECONDS)
  if _state.listener and missing >= 0:
    _say_goodbye(missing)
  logging.shutdown()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _say_goodbye(missing: int) -> None:
  """Process 0 leaves last: it runs the service, whose end would end the other processes with an abort."""
  with contextlib.suppress(Exception):
    _state.store.key_value_set(f"{_KEYS}/left/{_state.process}", "")
    end = time.monotonic() + _LEAVE_SECONDS
    while _state.process == 0 and time.monotonic() < end:
      if len(_state.store.key_value_dir_get(f"{_KEYS}/left")) >= _state.count - missing:
        time.sleep(_LISTEN_SECONDS)  # The other processes have written that they leave, and leave now.
        return
      time.sleep(0.1)


# ---------------------------------------------------------------------------------------------------------- the others


def gather(value: Any) -> list[Any]:
  """The values (JSON) of all processes, in their order. Every process calls it, in the same order.

  Raises:
    StartAgainError: if a process does not come.
  """
  store = distributed.global_state.client
  if store is None:
    return [value]
  _state.gathered += 1
  name = f"{_KEYS}/gather/{_state.gathered}"
  store.key_value_set(f"{name}/{jax.process_index()}", json.dumps(value))
  try:
    store.wait_at_barrier(name, int(10 * _state.lost_after * 1000))
  except jax.errors.JaxRuntimeError as error:
    raise StartAgainError(
      f"Not all of the {jax.process_count()} processes came to the same place in time: see the log "
      "of each process; the same command starts again."
    ) from error
  found = {key.rpartition("/")[2]: text for key, text in store.key_value_dir_get(name)}
  return [json.loads(found[str(process)]) for process in range(jax.process_count())]


def of_first(value: Any) -> Any:
  """Process 0's value, on all processes."""
  return gather(value)[0]


def check_alike(values: dict[str, str]) -> None:
  """Checks that {name: value} is the same on all processes.

  Raises:
    HostsDifferError: names the first process that differs from process 0, and the value that differs.
  """
  everywhere = gather([socket.gethostname(), values])
  first = everywhere[0][1]
  for process, (host, others) in enumerate(everywhere):
    for name in sorted(first.keys() | others.keys()):
      if first.get(name) != others.get(name):
        raise HostsDifferError(
          f"Process {process} on {host} has {name} {others.get(name)}, but process 0 on "
          f"{everywhere[0][0]} has {first.get(name)}: start all processes with the same {name}."
        )


def check_shared(folder: pathlib.Path) -> None:
  """Checks that all processes see the same folder: process 0 writes a token, and all processes read the token.

  Raises:
    HostsDifferError: names the first process that does not see the token.
  """
  if jax.process_count() == 1:
    return
  path, token = folder / ".shared", uuid.uuid4().hex
  if jax.process_index() == 0:
    path.write_text(token)
  token = of_first(token)
  seen, end = False, time.monotonic() + _SHARED_SECONDS
  while not seen and time.monotonic() < end:  # A network file system may show the token a moment later.
    with contextlib.suppress(OSError):
      seen = path.read_text() == token
    if not seen:
      time.sleep(0.2)
  everywhere = gather([socket.gethostname(), seen])
  if jax.process_index() == 0:
    path.unlink(missing_ok=True)
  for process, (host, seen) in enumerate(everywhere):
    if not seen:
      raise HostsDifferError(
        f"Process {process} on {host} does not see what process 0 writes into {folder}: give a "
        "--workdir on a file system that all hosts share."
      )


def end_together(error: BaseException, record: Callable[[], None] = lambda: None) -> None:
  """Ends all processes because of an error of this process; returns if there are no other processes.

  If a collective broke, another process may be the reason. The listener finds this out, and then ends this process:
  therefore the error is recorded, by `record`, only after that time.
  """
  if _state.listener and _broke_collective(error):
    _log.error("%s: waiting up to %.0f s for a sign of the other processes.", _first_line(error), 2 * _state.lost_after)
    time.sleep(2 * _state.lost_after)
  record()
  if not _state.listener:
    return
  code = status.of_error(error)
  if code == status.EXIT_FAILED:
    traceback.print_exception(error)
  elif code != status.EXIT_PREEMPTED:
    _log.error("%s", _first_line(error))
  leave(code, _first_line(error))


def _broke_collective(error: BaseException | None) -> bool:
  return isinstance(error, jax.errors.JaxRuntimeError) or (error is not None and _broke_collective(error.__cause__))


def _first_line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def join(initialize: Callable[[], None], lost_after: float) -> None:
  """Joins the other processes with `initialize` (`jax.distributed.initialize`), and listens to them from then on.

  Args:
    initialize: called in the main thread, with JAX's preemption service off.
    lost_after: seconds without a sign of a process after which the other processes end.
  """
  jax.config.update("jax_enable_preemption_service", False)
  initialize()
  _end_instead_of_abort()
  if signals.is_listening():
    signals.claim()
  if jax.process_count() > 1:
    listen(distributed.global_state.client, lost_after)


def listen(store: Any, lost_after: float) -> None:
  """Starts the thread that listens to the other processes through `store`, JAX's client of its service."""
  _state.store, _state.lost_after = store, lost_after
  _state.process, _state.count = jax.process_index(), jax.process_count()
  _state.listener = threading.Thread(target=_listen, name="hosts", daemon=True)
  _state.listener.start()
  atexit.register(_end_listening)  # It runs before JAX's own, which was registered earlier.


def _end_listening() -> None:
  """The end of a program without errors: the listener ends when all processes have come so far.

  JAX removes its client of the service after this, which would end a listener within the client with a crash. Until
  then the others need this process's heartbeat.
  """
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    _state.store.wait_at_barrier(f"{_KEYS}/end", int(10 * _state.lost_after * 1000))
  _state.ended.set()
  _state.listener.join()


def _end_instead_of_abort() -> None:
  """Replaces JAX's abort after the loss of process 0 by an orderly end.

  With process 0 the service is lost, and JAX aborts (its callback for this case raises std::bad_cast). When the handler
  of the abort runs, nothing of this process is needed any more.
  """
  global _abort_handler
  _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(
    lambda _: _lost("Process 0, whose service all others need, was lost")
  )
  ctypes.CDLL(None).signal(int(signal.SIGABRT), _abort_handler)


def _lost(sentence: str) -> None:
  _log.error("%s: this process ends, and the same command goes on from the newest checkpoint.", sentence)
  _exit(status.EXIT_START_AGAIN, f"{sentence}.", missing=-1)


def _listen() -> None:
  process, store = _state.process, _state.store
  store.key_value_set(f"{_KEYS}/host/{process}", socket.gethostname())
  heard = time.monotonic()
  beats: dict[str, tuple[str, float]] = {}
  beat, next_beat = 0, 0.0
  while not _state.ended.wait(_LISTEN_SECONDS):
    try:
      now = time.monotonic()
      if now >= next_beat:
        beat, next_beat = beat + 1, now + _state.lost_after / 10
        store.key_value_set(f"{_KEYS}/beat/{process}", str(beat), allow_overwrite=True)
        if process == 0:
          _check_beats(beats)
      names = set(_state.requested)
      for key, text in store.key_value_dir_get(f"{_KEYS}/news"):
        kind, _, name = key.split("/", 2)[2].partition("/")
        if kind == "end":
          _end_with(json.loads(text))
        names.add(name)
      for name in sorted(names - _state.agreed):
        _agree(name)
      heard = time.monotonic()
    except jax.errors.JaxRuntimeError as error:
      if time.monotonic() - heard > _state.lost_after:
        _lost(f"Process 0 has not answered for {_state.lost_after:.0f} s ({str(error).splitlines()[0]})")


def _check_beats(beats: dict[str, tuple[str, float]]) -> None:
  now = time.monotonic()
  for key, beat in _state.store.key_value_dir_get(f"{_KEYS}/beat"):
    process = key.rpartition("/")[2]
    if beats.get(process, ("", 0.0))[0] != beat:
      beats[process] = beat, now
  for process, (_, since) in beats.items():
    if now - since > _state.lost_after:
      host = dict(_state.store.key_value_dir_get(f"{_KEYS}/host")).get(f"{_KEYS}/host/{process}", "")
      sentence = (
        f"Process {process} on {host} has given no sign for {_state.lost_after:.0f} s: all processes end, and the same "
        "command goes on from the newest checkpoint."
      )
      _state.store.key_value_set(
        f"{_KEYS}/news/end/0", json.dumps({"code": status.EXIT_START_AGAIN, "sentence": sentence})
      )
      _log.error("%s", sentence)
      _exit(status.EXIT_START_AGAIN, sentence, missing=1)


def _end_with(news: dict[str, Any]) -> None:
  _log.error("%s", news["sentence"])
  _exit(news["code"], news["sentence"])


def _agree(name: str) -> None:
  """All processes say where they are. Then all processes know at which poll `name` is due, or end at once."""
  store, count = _state.store, _state.count
  with _state.lock:
    store.key_value_set(f"{_KEYS}/news/agree/{name}", "", allow_overwrite=True)
    own = {"runs": _state.runs, "inside": _state.inside, "polls": _state.polls}
    store.key_value_set(f"{_KEYS}/agree/{name}/{_state.process}", json.dumps(own))
    end = time.monotonic() + _state.lost_after
    while len(places := store.key_value_dir_get(f"{_KEYS}/agree/{name}")) < count:
      for _, text in store.key_value_dir_get(f"{_KEYS}/news/end"):
        _end_with(json.loads(text))
      if time.monotonic() > end:
        _lost(f"Not all of the {count} processes answered within {_state.lost_after:.0f} s")
      time.sleep(_LISTEN_SECONDS / 5)
    _state.agreed.add(name)
    decision = decide(own, [json.loads(place) for _, place in places])
    if decision == "due":
      _state.due[name] = max(json.loads(place)["polls"] for _, place in places) + 1
    if name != "stop":
      return
    _state.asked = _state.asked or "SIGTERM"
    _state.leaves_when_outside = decision == "outside"
  if decision == "now":
    _exit(status.EXIT_PREEMPTED)


def decide(own: dict[str, Any], places: list[dict[str, Any]]) -> str:
  """What a process does about an action on which all processes have agreed.

  Args:
    own: {"runs", "inside", "polls"} of this process: how often it has entered `deferred`, whether it is within
      `deferred`, how often it called `poll`.
    places: the same of all processes.

  Returns:
    "due": all processes are in the same run, and meet at a poll that no process has passed. "now": another process has
    not begun this process's run, or this process is in no run, so nothing has to be saved. "outside": another process
    has ended the run; this process ends the run too, and then leaves.
  """
  if all(place["inside"] and place["runs"] == own["runs"] for place in places):
    return "due"
  if not own["inside"] or any(place["runs"] < own["runs"] for place in places):
    return "now"
  return "outside"
