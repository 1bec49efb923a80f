"""What a user's mistake ends with: one sentence on what to do, exit code 2, and nothing started."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from bn_inception import command_line

_TRAIN = "--config=configs/bn_x5.py:quickstart"


def run(repository: pathlib.Path, script: str, *arguments: str) -> tuple[int, str, str]:
  result = subprocess.run(
    [sys.executable, f"scripts/{script}.py", *arguments], cwd=repository, capture_output=True, text=True, check=False
  )
  return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
  "arguments, words",
  [
    ([_TRAIN, "--config.bach_size=64"], ["bach_size", "did you mean --config.batch_size?"]),
    ([_TRAIN, "--config.model.widht=0.5"], ["model.widht", "did you mean --config.model.width?"]),
    ([_TRAIN, "--config.model={'width': 0.5}"], ["a whole section", "as --config.model.KEY=VALUE"]),
    ([_TRAIN, "--config.batch_size=many"], ["--config.batch_size=many"]),
    ([_TRAIN, "--config.batch_size=0"], ["batch_size", "at least 1"]),
    (["--config=configs/bn_x5.py:imagenette"], ["imagenette", "one of imagenet, gpu8, pod, cifar10,"]),
    (["--config=configs/bn_x6.py"], ["configs/bn_x6.py"]),
    (["--config=configs/ensemble.py:imagenet,6"], ["'6'", "one of 0, 1, 2, 3, 4, 5"]),
    ([], ["--config"]),
    ([_TRAIN, "more"], ["'more' is not a flag"]),
    ([_TRAIN, "--workdirs=x"], ["workdirs"]),
    ([_TRAIN, "--processes=2"], ["go together: add --coordinator and --process_id"]),
    ([_TRAIN, "--coordinator=localhost:1"], ["go together: add --processes and --process_id"]),
  ],
)
def test_flags(repository, tmp_path, arguments, words):
  workdir = tmp_path / "run"
  code, output, error = run(repository, "train", *arguments, f"--workdir={workdir}")
  assert code == 2 and not output and not workdir.exists()
  sentence = error.strip().splitlines()
  assert len(sentence) == 1, error
  assert all(word in sentence[0] for word in words), error


@pytest.mark.parametrize(
  "script, word, sentence",
  [
    ("compare", "--workdirs=a,b", "--workdirs is now called --workdir: write --workdir=a,b."),
    ("import_checkpoint", "--source=a.pth", "--source is now called --checkpoint: write --checkpoint=a.pth."),
    ("export_checkpoint", "--workdir=runs/a", "--workdir is now called --checkpoint: write --checkpoint=runs/a."),
    ("benchmark_input", "--json=a.json", "--json is now called --output: write --output=a.json."),
    ("contact_sheet", "--images=4", "--images is now called --num_images: write --num_images=4."),
    ("prepare_data", "--name=flowers", "--name is now called --dataset: write --dataset=flowers."),
    ("status", "runs", "'runs' is not a flag: flags start with '--', as in --workdir=runs."),
    ("status", "--workdir", "--workdir is missing: give it, as in the examples of --help."),
  ],
)
def test_older_commands_are_told_what_to_write_now(repository, script, word, sentence):
  code, output, error = run(repository, script, *(() if word == "--workdir" else (word,)))
  assert (code, output, error.strip()) == (2, "", f"{script}.py: {sentence}")


@pytest.mark.parametrize(
  "override, words",
  [
    ("--config.batch_norm.group_size=24", ["batch_size of 32", "BN groups of 24"]),
    ("--config.data.name=cifar10", ["cifar10", "prepare_data.py --dataset=cifar10"]),
  ],
)
def test_configs_and_data(repository, tmp_path, override, words):
  workdir = tmp_path / "run"
  code, output, error = run(
    repository, "train", _TRAIN, f"--config.data.dir={tmp_path}", override, f"--workdir={workdir}"
  )
  assert code == 2 and not output and not workdir.exists()
  assert "Traceback" not in error
  assert all(word in error.strip().splitlines()[-1] for word in words), error


@pytest.mark.parametrize("several", [[], ["--coordinator=127.0.0.1:1", "--processes=1", "--process_id=0"]])
def test_a_platform_that_is_not_installed_is_named(repository, tmp_path, monkeypatch, several):
  monkeypatch.setenv("JAX_PLATFORMS", "gqu")
  workdir = tmp_path / "run"
  code, _, error = run(repository, "train", _TRAIN, f"--config.data.dir={tmp_path}", f"--workdir={workdir}", *several)
  assert code == 2 and "Traceback" not in error and not workdir.exists()
  assert "JAX_PLATFORMS=gqu names a platform that is not installed here (cpu" in error.strip().splitlines()[-1]


def test_tasks_of_a_slurm_step_that_do_not_know_of_each_other_are_refused(repository, tmp_path, monkeypatch):
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
  code, _, error = run(repository, "train", _TRAIN, f"--workdir={tmp_path / 'run'}")
  assert code == 2 and "one of 4 tasks of a Slurm job step" in error and not (tmp_path / "run").exists()
  # The parts of a plan are made apart; what is wrong here comes later.
  code, _, error = run(repository, "reproduce", "figure3", "--index=3", "--count=2", f"--workdir={tmp_path / 'run'}")
  assert code == 2 and "--index from 0 to 1" in error


@pytest.mark.skipif(sys.platform != "linux", reason="reads the stacks that Linux's signals print")
@pytest.mark.parametrize("number, expected", [(signal.SIGTERM, 143), (signal.SIGINT, 143)])
def test_a_signal_ends_a_script_at_once_out_of_what_python_cannot_interrupt(repository, tmp_path, number, expected):
  """The main thread holds still in C, as in a compilation; SIGUSR1 shows where."""
  script = tmp_path / "script.py"
  script.write_text(
    "import threading\nfrom bn_inception import command_line\n"
    "def main():\n  print('begun', flush=True)\n  lock = threading.Lock()\n  lock.acquire()\n"
    "  lock.acquire()\n"
    "command_line.run(main, stops=True)\n"
  )
  environment = os.environ | {"PYTHONPATH": str(repository)}
  with subprocess.Popen(
    [sys.executable, str(script)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  ) as process:
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGUSR1)
    while "in main" not in process.stderr.readline():
      assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=60)
  assert process.returncode == expected


@pytest.mark.parametrize("argument", ["/abs/path", "hf://user/name", "gs://bucket/x"])
def test_the_argument_of_a_config_in_the_current_folder_is_not_taken_for_a_part_of_a_url(
  repository, tmp_path, monkeypatch, argument
):
  (tmp_path / "finetune.py").write_text(
    "import ml_collections\n"
    "def get_config(argument):\n  print('given', argument)\n  return ml_collections.ConfigDict()\n"
  )
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setenv("PYTHONPATH", str(repository))
  for config in ("finetune.py", "~/finetune.py"):
    result = subprocess.run(
      [sys.executable, str(repository / "scripts" / "describe.py"), f"--config={config}:{argument}"],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.stdout.strip() == f"given {argument}" and "URL" not in result.stderr, result.stderr
  code, _, error = run(repository, "describe", f"--config={argument}/finetune.py")
  assert code == 2 and ("is a URL and not a path" in error) == ("://" in argument)


def test_evaluate_names_a_folder_that_is_no_run(repository, tmp_path):
  code, _, error = run(repository, "evaluate", f"--workdir={tmp_path}")
  assert code == 2 and "is not a run directory" in error and "Traceback" not in error


@pytest.mark.parametrize(
  "arguments, words",
  [
    ([], ["figure1", "ablation", "report"]),
    (["figure5"], ["figure1", "sweep"]),
    (["figure1", "figure2"], ["one word"]),
    (["figure1", "--scale=imagenet"], ["figure1 has no scale 'imagenet'", "mnist, quickstart"]),
    (["figure3", "--count=2", "--index=2"], ["--index from 0 to 1"]),
    (["sweep", "--seeds=0"], ["seeds"]),
    (["figure3", "--data_dir=nowhere"], ["cifar10", "prepare_data.py --dataset=cifar10"]),
    (["report"], ["no folder"]),
  ],
)
def test_reproduce(repository, tmp_path, arguments, words):
  workdir = tmp_path / "runs"
  code, output, error = run(repository, "reproduce", *arguments, f"--workdir={workdir}")
  assert code == 2 and not output and not workdir.exists() and "Traceback" not in error
  assert all(word in error.strip().splitlines()[-1] for word in words), error


@pytest.mark.parametrize(
  "program, python, expected",
  [
    ("scripts/train.py", "HERE/.venv/bin/python", ".venv/bin/python scripts/evaluate.py '--workdir=a b'"),
    ("/x/scripts/train.py", "/usr/bin/other", "/usr/bin/other /x/scripts/evaluate.py '--workdir=a b'"),
    ("bn-inception train", "/usr/bin/python", "bn-inception evaluate '--workdir=a b'"),
  ],
)
def test_a_command_is_shown_as_this_program_was_started(tmp_path, monkeypatch, program, python, expected):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "argv", [program])
  monkeypatch.setattr(sys, "executable", python.replace("HERE", str(tmp_path)))
  monkeypatch.setenv("PATH", "")
  assert command_line.command("evaluate", "--workdir=a b") == expected


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's huge pages are of Linux")
@pytest.mark.parametrize(
  "given, expected",
  [
    (None, "glibc.malloc.hugetlb=1"),
    ("glibc.malloc.perturb=0", "glibc.malloc.perturb=0:glibc.malloc.hugetlb=1"),
    ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
  ],
)  # The user's own choice stays.
def test_a_script_starts_again_as_the_same_process_with_huge_pages(repository, tmp_path, given, expected):
  script = tmp_path / "script.py"
  # /proc tells what the process began with, which is what glibc reads.
  script.write_text(
    "import os, sys\nfrom bn_inception import command_line\n"
    "began_so = lambda: 'glibc.malloc.hugetlb=' in open('/proc/self/environ').read()\n"
    "command_line.run(lambda: print(os.environ['GLIBC_TUNABLES'], began_so(), os.getpid(), sys.argv[1]))\n"
  )
  others = ("GLIBC_TUNABLES", "PYTEST_CURRENT_TEST")  # The latter holds this test's parameters.
  environment = {name: value for name, value in os.environ.items() if name not in others}
  environment |= {"PYTHONPATH": str(repository)} | ({"GLIBC_TUNABLES": given} if given else {})
  with subprocess.Popen(
    [sys.executable, str(script), "--coordinator="], env=environment, text=True, stdout=subprocess.PIPE
  ) as process:
    output, _ = process.communicate()
  assert output.split() == [expected, "True", str(process.pid), "--coordinator="]
