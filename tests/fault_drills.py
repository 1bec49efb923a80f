"""Drills of docs/fault_tolerance.md that take minutes: python -m tests.fault_drills kills [50] | damage

kills: one run is killed by SIGKILL at random moments, start-up and the first saves among them, given again after each,
and compared with a run that nothing disturbed: state and metrics bit for bit.

damage: each file of the newest checkpoint of a run is cut to half, gets one bit flipped, or is deleted; each time the
same command is given again, and its log says which checkpoint it goes on from.
"""

import collections
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time

import jax

from bn_inception.data import digits
from tests import fault_table, test_train

_STEPS = 12_000
_LENGTH = [f"--config.num_steps={_STEPS}", "--config.checkpoint_every=200", "--config.keep_latest=3"]
_KILL_WITHIN = 25.0  # Seconds; a start takes about ten of them.


def newest_checkpoint(workdir: pathlib.Path) -> int | None:
  steps = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
  return max(steps, default=None)


def phase(log: str) -> str:
  """Where a run was, by the end of its log."""
  if "Compiling the evaluation (" not in log:  # The last line before the first step.
    return "start-up"
  return "saving" if "Saving the checkpoint" in log.rstrip().rpartition("\n")[2] else "steps and evaluations"


def kill_at_random(count: int, data: str, folder: pathlib.Path) -> None:
  """Prints a line a kind of moment and the comparison at the end."""
  choose = random.Random(0)
  workdir, log = folder / "killed" / "run", folder / "killed" / "log0"
  workdir.parent.mkdir()
  moments: collections.Counter[str] = collections.Counter()
  reached = None
  for _ in range(count):
    begin = log.stat().st_size if log.exists() else 0
    [process] = fault_table.start(workdir, data, 1, *_LENGTH)
    time.sleep(choose.uniform(0.0, _KILL_WITHIN))
    assert process.poll() is None, f"The run ended by itself, {process.returncode}: {log.read_text()[begin:]}"
    process.send_signal(signal.SIGKILL)
    process.wait()
    moments[phase(log.read_bytes()[begin:].decode(errors="replace"))] += 1
    now = newest_checkpoint(workdir)
    assert reached is None or (now is not None and now >= reached), f"step {reached} was saved, {now} is there"
    reached = now
  print(f"{count} kills: {', '.join(f'{n} in {name}' for name, n in moments.items())}; step {reached:,} of {_STEPS:,}.")
  undisturbed = folder / "undisturbed" / "run"
  undisturbed.parent.mkdir()
  for directory in (workdir, undisturbed):
    [process] = fault_table.start(directory, data, 1, *_LENGTH)
    assert process.wait() == 0, (directory.parent / "log0").read_text()
  print("Checkpoints named as damaged:", log.read_text().count("is damaged"))
  test_train.assert_bit_identical(workdir, undisturbed, _STEPS)
  print("State and metrics equal those of the undisturbed run bit for bit.")


def _cut(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: pathlib.Path) -> None:
  test_train.flip_a_bit(path)


DAMAGES = {"cut to half": _cut, "one bit flipped": _flip, "deleted": pathlib.Path.unlink}


def resumed_from(workdir: pathlib.Path, data: str) -> tuple[int, bool]:
  """Gives the command again: (step that it goes on from, whether it named a damaged checkpoint)."""
  log = workdir.parent / "log0"
  [process] = fault_table.start(workdir, data, 1, *_LENGTH)
  try:
    while not (found := re.search(r"Resuming from the checkpoint of step ([\d,]+)", log.read_text())):
      assert process.poll() is None, log.read_text()
      time.sleep(0.05)
  finally:
    process.kill()
    process.wait()
  return int(found[1].replace(",", "")), "is damaged" in log.read_text()


def damage_every_file(data: str, folder: pathlib.Path) -> None:
  """Prints a row of a Markdown table for each file and damage."""
  whole = folder / "whole" / "run"
  whole.parent.mkdir()
  [process] = fault_table.start(whole, data, 1, *_LENGTH)
  while "step 1,000/" not in (whole.parent / "log0").read_text():
    assert process.poll() is None
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  assert process.wait() == 143
  newest = newest_checkpoint(whole)
  before = max(int(path.name) for path in (whole / "checkpoints").glob("*") if path.name != str(newest))
  root = pathlib.Path("checkpoints") / str(newest)
  files = sorted(path.relative_to(whole) for path in (whole / root).rglob("*") if path.is_file())
  print(f"The newest checkpoint is of step {newest}, the one before of step {before}; {len(files)} files.")
  print("| file | damage | goes on from | named as damaged |\n|---|---|---|---|")
  for file in files:
    for name, damage in DAMAGES.items():
      if name != "deleted" and not (whole / file).stat().st_size:
        continue
      copy = folder / "copy" / "run"
      shutil.copytree(whole, copy)
      damage(copy / file)
      step, named = resumed_from(copy, data)
      assert step in (newest, before) and named == (step == before)
      print(f"| {file.relative_to(root)} | {name} | step {step} | {'yes' if named else 'no'} |", flush=True)
      shutil.rmtree(copy.parent)


def main() -> None:
  jax.config.update("jax_num_cpu_devices", 2)  # Those of the runs whose states are compared.
  with tempfile.TemporaryDirectory() as data, tempfile.TemporaryDirectory() as folder:
    digits.prepare(pathlib.Path(data))
    match sys.argv[1:]:
      case ["kills", *count]:
        kill_at_random(int(count[0]) if count else 50, data, pathlib.Path(folder))
      case ["damage"]:
        damage_every_file(data, pathlib.Path(folder))
      case _:
        sys.exit(__doc__)


if __name__ == "__main__":
  main()
