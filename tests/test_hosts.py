"""Agreement of processes: where they stop together, and when they end at once."""

import itertools
import json
import threading

import jax
import pytest

from bn_inception import hosts, status
from bn_inception.errors import StartAgainError, Stopped, UserError


def place(runs: int, inside: bool, polls: int) -> dict:
  return {"runs": runs, "inside": inside, "polls": polls}


@pytest.mark.parametrize(
  "own, other, expected",
  [
    (place(1, True, 5), place(1, True, 7), "due"),
    (place(1, True, 5), place(0, False, 0), "now"),  # The other still compiles: no step of this run is made.
    (place(0, False, 0), place(1, True, 5), "now"),
    (place(1, True, 9), place(1, False, 9), "outside"),  # The other has ended the run.
    (place(1, False, 9), place(1, True, 9), "now"),
    (place(2, True, 9), place(1, False, 9), "now"),  # It has not begun the next.
    (place(1, False, 9), place(2, True, 9), "now"),
  ],
)
def test_where_processes_stop(own, other, expected):
  assert hosts.decide(own, [own, other]) == expected


class Store:
  """The key-value store of JAX's service, for processes that are threads here."""

  def __init__(self):
    self.values, self.lock = {}, threading.Lock()

  def key_value_set(self, key, value, allow_overwrite=False):
    with self.lock:
      assert allow_overwrite or key not in self.values, key
      self.values[key] = value

  def key_value_dir_get(self, name):
    with self.lock:
      return [(key, value) for key, value in self.values.items() if key.startswith(name + "/")]


def forbid_backends(monkeypatch):
  """What needs a backend of JAX must not be called in a thread: the main thread may have removed the backend."""
  for name in ("process_count", "process_index"):
    monkeypatch.setattr(hosts.jax, name, lambda: pytest.fail("a backend was asked for"))


def test_process_that_stops_before_its_run_waits_until_the_others_know(monkeypatch):
  """Its end would take the service, by which the others learn of it, with it."""
  store, state = Store(), hosts._State()
  state.store, state.listener, state.process, state.count = store, True, 0, 2
  monkeypatch.setattr(hosts, "_state", state)
  monkeypatch.setattr(hosts, "_LISTEN_SECONDS", 0.005)
  forbid_backends(monkeypatch)
  exits, left = [], threading.Event()

  def exit_(code, missing=0):
    exits.append((code, len(store.key_value_dir_get("bn_inception/agree/stop"))))
    left.set()
    state.ended.set()

  monkeypatch.setattr(hosts, "_exit", exit_)
  threading.Thread(target=hosts._listen, daemon=True).start()
  hosts.on_stop("SIGTERM")
  threading.Thread(target=hosts.leave_stopped, daemon=True).start()
  assert not left.wait(0.1)
  store.key_value_set("bn_inception/agree/stop/1", json.dumps(place(0, False, 0)))
  assert left.wait(60)
  assert set(exits) == {(143, 2)}  # Whichever thread ended the process, both processes had spoken.


def one_process(monkeypatch, store, **attributes) -> hosts._State:
  state = hosts._State()
  for name, value in {"store": store, "listener": True, "process": 1, "count": 2, **attributes}.items():
    setattr(state, name, value)
  monkeypatch.setattr(hosts, "_state", state)
  monkeypatch.setattr(hosts, "_exits", threading.Lock())
  return state


def test_a_collective_that_broke_is_recorded_only_after_the_other_processes_could_say_why(monkeypatch):
  events = []
  one_process(monkeypatch, Store(), lost_after=7.0)
  monkeypatch.setattr(hosts.time, "sleep", events.append)
  monkeypatch.setattr(hosts, "leave", lambda code, sentence: events.append((code, sentence)))
  broken = StartAgainError("not all came")
  broken.__cause__ = jax.errors.JaxRuntimeError("connection closed")
  hosts.end_together(broken, lambda: events.append("recorded"))
  assert events == [14.0, "recorded", (75, "not all came")]
  events.clear()
  hosts.end_together(UserError("bad\nmore"), lambda: events.append("recorded"))  # Its own fault: told at once.
  assert events == ["recorded", (2, "bad")]


def test_an_immediate_end_says_its_code_and_reason(monkeypatch):
  """As the run's status has them, of its own error and of the loss of another process."""
  for end, expected in (
    (lambda: hosts.leave(2, "disk full"), (2, "disk full")),
    (lambda: hosts._lost("Process 0 was lost"), (75, "Process 0 was lost.")),
    (lambda: hosts._end_with({"code": 2, "sentence": "Process 1 ended"}), (2, "Process 1 ended")),
  ):
    said = []
    one_process(monkeypatch, Store())
    monkeypatch.setattr(hosts.os, "_exit", lambda code: said.append(code))
    with hosts.before_exit(lambda code, sentence: said.append((code, sentence))):  # noqa: B023
      end()
    assert said == [expected, expected[0]]


def test_a_library_call_of_one_process_does_not_end_its_caller(monkeypatch):
  one_process(monkeypatch, Store(), listener=None)
  monkeypatch.setattr(hosts.os, "_exit", lambda code: pytest.fail("the caller was ended"))
  hosts.leave(75, "nothing has moved")


def test_the_listener_ends_when_all_processes_have_come_to_the_end(monkeypatch):
  """JAX removes its client afterwards, within which a listener would crash; the others need its beats until then."""
  store = Store()
  state = one_process(monkeypatch, store, listener=None, lost_after=0.01)
  monkeypatch.setattr(hosts, "_LISTEN_SECONDS", 0.005)
  beat, beats = "bn_inception/beat/1", []

  def wait_at_barrier(name, milliseconds):
    del name, milliseconds
    while beat not in store.values:
      pass
    beats.append(store.values[beat])
    while store.values[beat] == beats[0]:
      pass  # Another heartbeat comes while this process waits for the others.

  store.wait_at_barrier = wait_at_barrier
  state.listener = threading.Thread(target=hosts._listen, daemon=True)
  state.listener.start()
  hosts._end_listening()
  assert beats and not state.listener.is_alive()


def test_all_processes_stop_at_one_poll_that_none_has_passed(monkeypatch):
  """Three processes at different speeds; one is asked; each ends at the same poll."""
  store, states = Store(), [hosts._State() for _ in range(3)]
  local = threading.local()
  proxy = type(
    "Proxy",
    (),
    {
      "__getattr__": lambda _, name: getattr(states[local.process], name),
      "__setattr__": lambda _, name, value: setattr(states[local.process], name, value),
    },
  )()
  monkeypatch.setattr(hosts, "_state", proxy)
  monkeypatch.setattr(hosts, "_LISTEN_SECONDS", 0.005)
  forbid_backends(monkeypatch)
  stopped, threads = {}, []

  def listen(process):
    local.process = process
    hosts._listen()

  def work(process):
    local.process = process
    states[process].runs, states[process].inside = 1, True
    for number in itertools.count(1):
      if hosts.poll().stop:
        stopped[process] = number
        return
      states[process].ended.wait(0.001 * (process + 1))

  for process, state in enumerate(states):
    state.store, state.listener = store, True
    state.process, state.count = process, 3
    threads += [threading.Thread(target=listen, args=(process,), daemon=True)]
    threads += [threading.Thread(target=work, args=(process,), daemon=True)]
  for thread in threads:
    thread.start()
  while states[2].polls < 20:
    pass
  states[1].requested.add("stop")
  for thread in threads[1::2]:
    thread.join(60)
  for state in states:
    state.ended.set()
  assert len(stopped) == 3 and len(set(stopped.values())) == 1 and stopped[0] > 20


def test_hosts_that_differ_are_named_with_what_differs(monkeypatch):
  values = {"learning_rate": "0.1", "code revision": "abc"}
  monkeypatch.setattr(hosts, "gather", lambda own: [own, ["node7", values | {"learning_rate": "0.2"}]])
  with pytest.raises(hosts.HostsDifferError, match="Process 1 on node7 has learning_rate 0.2, but process 0 .* 0.1"):
    hosts.check_alike(values)


def test_a_folder_that_is_not_shared_is_refused(monkeypatch, tmp_path):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(hosts, "gather", lambda own: [own, ["node7", False]])
  with pytest.raises(hosts.HostsDifferError, match="Process 1 on node7 does not see what process 0 writes into"):
    monkeypatch.setattr(hosts, "of_first", lambda value: value)
    hosts.check_shared(tmp_path)
  assert not list(tmp_path.iterdir())


def test_exit_codes():
  codes = {Stopped: 143, StartAgainError: 75, UserError: 2, ValueError: 1}
  assert {kind: status.of_error(kind("x")) for kind in codes} == codes
