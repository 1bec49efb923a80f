"""What the scripts share: flags, several hosts, and one sentence for what a user can mend."""

import difflib
import functools
import logging
import os
import pathlib
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging as absl_logging
from ml_collections import ConfigDict

from bn_inception import command_help, config_keys, configs, paths, signals, status
from bn_inception.configs.versions import VersionError
from bn_inception.errors import Stopped, UserError

_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0, for several processes without a cluster manager."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, with --coordinator.")
_CLUSTER = flags.DEFINE_bool(
  "cluster", False, "Join the processes of this Slurm job, TPU pod or Kubernetes job, found by JAX itself."
)
_START_SECONDS = flags.DEFINE_integer(
  "start_seconds", 300, "How long the processes wait for each other at the start.", lower_bound=1
)
_LOST_SECONDS = flags.DEFINE_integer(
  "lost_seconds", 60, "After how long without a sign of a process the others end, to be started again.", lower_bound=1
)
_OF_PROCESSES = (_COORDINATOR, _PROCESSES, _PROCESS_ID, _CLUSTER, _START_SECONDS, _LOST_SECONDS)

_log = logging.getLogger(__name__)

_COMMAND = "bn-inception"  # cli.py; its scripts have the name "bn-inception NAME".

# Flags that had another name before all scripts had the same vocabulary: {script: {old name: what to write now}}.
_RENAMED = {
  "benchmark_input": {"json": "--output"},
  "compare": {"workdirs": "--workdir"},
  "contact_sheet": {"images": "--num_images"},
  "export_checkpoint": {"workdir": "--checkpoint"},
  "import_checkpoint": {"source": "--checkpoint"},
  "prepare_data": {"name": "--dataset"},
}


class _PathParser(flags.ArgumentParser):
  """Of a flag that is a path, or with `several` paths with commas between them; see `paths.local`."""

  def __init__(self, name: str, several: bool, hub: bool):
    self._name, self._several, self._hub = f"--{name}", several, hub

  def parse(self, argument: str | list[str]) -> str | list[str]:
    if not self._several:
      return self._local(argument, self._name)
    given = argument.split(",") if isinstance(argument, str) else argument
    return [self._local(path.strip(), f"A path of {self._name}") for path in given]

  def _local(self, path: str, name: str) -> str:
    return (paths.local_or_hub if self._hub else paths.local)(path, name)

  def flag_type(self) -> str:
    return "comma separated list of paths" if self._several else "path"


def define_path(
  name: str, default: str | None, help: str, *, several: bool = False, hub: bool = False, required: bool = False
) -> flags.FlagHolder:
  """A flag whose value is a path (a list of them if `several`); a value that is none ends the program.

  With `hub` a repository of the Hugging Face Hub, hf://user/name, will do too.
  """
  return flags.DEFINE(_PathParser(name, several, hub), name, default, help, required=required)


def run(main: Callable[..., int | None], choices: Sequence[str] = (), *, stops: bool = False) -> None:
  """Parses the flags, joins the other processes and calls `main`, whose result is the exit code.

  `--help` prints the docstring of the script, its flags, and at the end the examples of the docstring, which begin
  with its first line "python scripts/...".

  With `choices` the command line starts with one of these words, which is `main`'s argument. With `stops` SIGTERM and
  SIGINT end the program as `hosts` says.

  What the user can mend (flags, configs, data, checkpoints) ends with one sentence on stderr and exit code 2; status.py
  has all codes.
  """
  if any(word in ("--help", "-h", "-help") for word in sys.argv[1:]):
    print(command_help.text(main.__globals__, _script(), _COMMAND if _is_installed_command() else None, _OF_PROCESSES))
    sys.exit(status.EXIT_DONE)
  _use_huge_pages()
  if stops:
    signals.listen(_on_stop)
  sys.argv[1:] = map(_with_shipped_config, sys.argv[1:])
  # The project's own lines are for a person to read; of the libraries' only the errors are.
  absl_logging.set_verbosity(absl_logging.ERROR)
  handler = logging.StreamHandler(sys.stdout)
  # Whom a terminal shows it to knows the day; a file is read later.
  handler.setFormatter(
    logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S" if sys.stdout.isatty() else "%Y-%m-%d %H:%M:%S")
  )
  log = logging.getLogger("bn_inception")
  log.addHandler(handler)
  log.setLevel(logging.INFO)
  log.propagate = False

  def call(words):
    try:
      _join_processes(handler)
      sys.exit(main(*words[1:]))
    except Stopped:
      if hosts := sys.modules.get("bn_inception.hosts"):
        hosts.leave_stopped()
      sys.exit(status.EXIT_PREEMPTED)
    except Exception as error:
      sentence = _sentence(error)
      if sentence and status.of_error(error) == status.EXIT_FAILED:
        error = UserError(sentence)  # All processes end with the code for what a person has to mend.
      if hosts := sys.modules.get("bn_inception.hosts"):
        hosts.end_together(error)
      if sentence is None:
        raise
      fail(sentence, status.of_error(error))

  app.run(call, flags_parser=functools.partial(_parse_flags, choices=choices))


def one_of(first: str, of_first: Sequence[str], second: str, of_second: Sequence[str]) -> None:
  """Ends the program unless exactly one of two flags is given, and no flag that goes with the other one."""
  given = {name: flags.FLAGS[name].present for name in (first, second, *of_first, *of_second)}
  if given[first] == given[second]:
    fail(f"Give either --{first} or --{second}.")
  here, other, of_other = (first, second, of_second) if given[first] else (second, first, of_first)
  for name in of_other:
    if given[name]:
      fail(f"--{name} goes with --{other}: write --{other} in place of --{here}, or leave --{name} out.")


def command(script: str, *arguments: str) -> str:
  """A command line that starts another script as this program was started, to be shown to the user."""
  if _is_installed_command():
    words = [_COMMAND, script]
  else:
    python = sys.executable
    if shutil.which("python") == python:
      python = "python"
    elif python.startswith(os.getcwd() + os.sep):
      python = os.path.relpath(python)
    words = [python, os.path.join(os.path.dirname(sys.argv[0]), f"{script}.py")]
  return shlex.join([*words, *arguments])


def say_next(workdir: str, run_status: str) -> None:
  """Logs what may follow a run that is done: three commands that work with this run as they are written."""
  if run_status == status.DONE:
    name = os.path.basename(os.path.abspath(workdir))
    _log.info(
      "Next:\n  %s\n  %s\n  %s",
      command("evaluate", f"--workdir={workdir}"),
      command("compare", f"--workdir={workdir}", f"--output={name}.png"),
      command("export_checkpoint", f"--checkpoint={workdir}", f"--output=released/{name}"),
    )


def fail(sentence: str, code: int = status.EXIT_BAD_INPUT) -> None:
  """Ends the program with one sentence for the user."""
  print(f"\n{os.path.basename(sys.argv[0])}: {sentence}", file=sys.stderr)
  sys.exit(code)


def _with_shipped_config(word: str) -> str:
  """A word of the command line; a config that is no file here, but shipped, becomes the path of the shipped file.

  `bn_x5:imagenet`, `bn_x5.py:imagenet` and `configs/bn_x5.py:imagenet` mean the shipped config in every folder.
  """
  flag, _, value = word.partition("=")
  path, colon, argument = value.partition(":")
  if flag.lstrip("-") != "config" or os.path.exists(path):
    return word
  name = path.removeprefix("configs/").removesuffix(".py")
  shipped = pathlib.Path(configs.__file__).parent / f"{name}.py"
  return f"{flag}={shipped}{colon}{argument}" if name.isidentifier() and shipped.exists() else word


def _script() -> str:
  """The name of the script that runs: "train" of scripts/train.py and of "bn-inception train"."""
  return os.path.basename(sys.argv[0]).removeprefix(f"{_COMMAND} ").removesuffix(".py")


def _is_installed_command() -> bool:
  return os.path.basename(sys.argv[0]).startswith(_COMMAND)


def _parse_flags(argv: list[str], choices: Sequence[str]) -> list[str]:
  renamed = _RENAMED.get(_script(), {})
  for word in argv[1:]:
    if (name := word.partition("=")[0].lstrip("-")) in renamed and word.startswith("-"):
      fail(f"--{name} is now called {renamed[name]}: write {word.replace(f'--{name}', renamed[name], 1)}.")
    if flag := re.match(r"--?(config\.[\w.]+)=\s*\{", word):
      fail(f"--{flag[1]} would replace a whole section: give its keys one by one, as --{flag[1]}.KEY=VALUE.")
  try:
    argv = [
      f"--config={_local_config(word.removeprefix('--config='))}" if word.startswith("--config=") else word
      for word in argv
    ]
    rest = flags.FLAGS(argv)
    if choices and (len(rest) != 2 or rest[1] not in choices):
      fail(f"Say what to do with one word: {', '.join(choices)}.")
    elif not choices and len(rest) > 1:
      fail(f"'{rest[1]}' is not a flag: flags start with '--'.")
    if "config" in flags.FLAGS and flags.FLAGS["config"].present:
      getattr(flags.FLAGS.config, "items", None)  # A config file that cannot be read only says so when it is used.
      config_keys.parse(flags.FLAGS.config)
    return rest
  except UserError as error:
    fail(str(error))
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError) as error:
    fail(_unknown_key(argv) or _missing_flag(argv, error) or _last_line(error))
  except Exception as error:  # Of the code of a config file.
    fail(f"The config cannot be made ({type(error).__name__}: {_last_line(error)}): correct its file.")


def _local_config(value: str) -> str:
  """FILE or FILE:ARGUMENT with ~ of the file expanded, which the flag of ml_collections does not.

  Only the file is a path on this machine: FILE:/x/y is no URL.
  """
  path, colon, argument = value.partition(":")
  if not path.endswith(".py"):
    return paths.local(value, "--config")
  return f"{paths.local(path, '--config')}{colon}{argument}"


def _last_line(error: Exception) -> str:
  if isinstance(error.__context__, UserError):  # absl puts the flag before, which our sentence names already.
    return str(error.__context__)
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return (lines or [repr(error)])[-1].removeprefix("ValueError: ")


def _missing_flag(argv: list[str], error: Exception) -> str | None:
  """A sentence on a flag that must be given and is not."""
  missing = re.search(r"--(\w+) must have a value other than None", str(error))
  if not missing:
    return None
  words = [word for word in argv[1:] if not word.startswith("-")]
  if words:
    return f"'{words[0]}' is not a flag: flags start with '--', as in --{missing[1]}={words[0]}."
  return f"--{missing[1]} is missing: give it, as in the examples of --help."


def _unknown_key(argv: list[str]) -> str | None:
  """A sentence on the first override whose key the config does not have."""
  file = next((word.removeprefix("--config=") for word in argv if word.startswith("--config=")), "")
  path, _, argument = file.partition(":")
  try:
    get_config = runpy.run_path(path)["get_config"]
    known = list(_keys(get_config(argument) if argument else get_config()))
  except Exception:  # The config itself is what is wrong, which the caller says.
    return None
  for word in argv:
    key = word.removeprefix("--config.").split("=")[0]
    if key != word.split("=")[0] and key not in known:
      close = difflib.get_close_matches(key, known, n=1)
      return f"--config.{key}: the config has no such key" + (f"; did you mean --config.{close[0]}?" if close else ".")
  return None


def _keys(config: ConfigDict, prefix: str = ""):
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _keys(value, f"{prefix}{name}.")
    else:
      yield prefix + name


def _use_huge_pages() -> None:
  """Starts this program again, as the same process, with huge pages for its memory where glibc can give them.

  XLA's CPU client takes the memory of a program's temporaries anew at every call: 1.5 GB a training step at 224 px,
  which are 435,000 page faults and up to a third of the step's time. With huge pages there are 3,000. Only the
  environment at the start of a process can ask glibc for them; other systems do not read the variable.
  """
  tunables = os.environ.get("GLIBC_TUNABLES", "")
  if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _on_stop(name: str) -> None:
  """SIGTERM or SIGINT; before there is anything to end in order, the program just ends."""
  # `hosts` imports jax; until it is imported, or while it is, there is nothing to end.
  hosts = sys.modules.get("bn_inception.hosts")
  if on_stop := getattr(hosts, "on_stop", None):
    on_stop(name)
  else:
    os._exit(status.EXIT_PREEMPTED)


def _join_processes(handler: logging.Handler) -> None:
  from bn_inception import cluster

  shares = "count" in flags.FLAGS and flags.FLAGS["count"].present
  arguments = cluster.arguments(_COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value, _CLUSTER.value, shares)
  if arguments is None:
    return
  cluster.join(arguments, _START_SECONDS.value, _LOST_SECONDS.value)
  import jax

  if jax.process_index():
    # Process 0 speaks for all. What another has to say comes with its number.
    handler.setFormatter(
      logging.Formatter(f"%(asctime)s  [process {jax.process_index()}]  %(message)s", handler.formatter.datefmt)
    )
    handler.setLevel(logging.WARNING)


def _sentence(error: Exception) -> str | None:
  """What to tell a user of an error; None for one that is not the user's."""
  if isinstance(error, (UserError, VersionError, FileNotFoundError)):
    return str(error)
  from bn_inception import cluster, folder_lock

  if platform := cluster.unknown_platform(error):
    return platform
  stored = folder_lock.storage_error(error, os.getcwd())
  return str(stored) if stored else None
