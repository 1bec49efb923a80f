"""scripts/launch/local_processes.sh with a stand-in for Python: signals, output and exit codes of its processes."""

import os
import pathlib
import signal
import subprocess

import pytest

# Called as `python -c ...` for a port, and as `python scripts/train.py --process_id=I ... WHAT...`, one WHAT a process.
_STAND_IN = """#!/usr/bin/env bash
if [ "$1" = -c ]; then [ -z "$SIGNAL_FIRST" ] || kill -TERM $PPID; echo 12345; exit; fi
index=${4#--process_id=}
shift 4
what=("$@")
trap 'echo "saved $index"; exit 143' TERM
echo "started $index"
case ${what[$index]} in
  fail*) echo "sentence $index" >&2; exit "${what[$index]#fail}" ;;
  done) exit 0 ;;
  stubborn) trap '' TERM ;;
esac
while :; do sleep 0.1; done
"""


@pytest.fixture
def launch(repository: pathlib.Path, tmp_path):
  stand_in = tmp_path / "python"
  stand_in.write_text(_STAND_IN)
  stand_in.chmod(0o755)

  def start(*what: str, signal_first: str = "") -> subprocess.Popen:
    command = ["scripts/launch/local_processes.sh", str(len(what)), "1", *what]
    return subprocess.Popen(
      command,
      cwd=repository,
      text=True,
      env=os.environ | {"PYTHON": str(stand_in), "GRACE": "1", "SIGNAL_FIRST": signal_first},
      start_new_session=True,
      # The tests may run in the background, where SIGINT is ignored, and bash traps no signal that it finds ignored.
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )

  return start


def wait_for(process: subprocess.Popen, *lines: str) -> None:
  left = set(lines)
  while left:
    left.discard(process.stdout.readline().strip())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_processes(launch, number):
  process = launch("run", "run")
  wait_for(process, "started 0", "[process 1] started 1")
  process.send_signal(number)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 143
  assert sorted(output.split("\n")) == ["", "[process 1] saved 1", "saved 0"]


def test_no_process_starts_after_a_signal(launch):
  process = launch("run", "run", signal_first="yes")
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 143 and not output


def test_a_second_signal_kills(launch):
  process = launch("stubborn", "stubborn")
  wait_for(process, "started 0", "[process 1] started 1")
  process.send_signal(signal.SIGTERM)
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(1)
  process.send_signal(signal.SIGTERM)
  assert process.wait(300) != 0


@pytest.mark.parametrize(
  "what, code", [(("run", "fail2"), 2), (("fail75", "stubborn"), 75), (("done", "fail1"), 1), (("done", "done"), 0)]
)
def test_the_first_failure_is_the_exit_code_and_ends_the_others(launch, what, code):
  process = launch(*what)
  output, error = process.communicate(timeout=300)
  assert process.returncode == code
  if what[1].startswith("fail"):
    assert "[process 1] sentence 1" in error  # The children's output is not dropped.
