"""What --help says, and one vocabulary in all scripts."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from bn_inception import config_comments, config_keys

SCRIPTS = sorted(path.stem for path in (pathlib.Path(__file__).parent.parent / "scripts").glob("*.py"))

# The flags that take paths, with what each is, and the flags that several scripts have.
PATHS = {
  "checkpoint": "a network in whatever form",
  "workdir": "a run, or the folder that holds runs",
  "data_dir": "a data_dir of TFDS",
  "output": "what is written",
  "source": "what a data set is made of",
  "images": "image files",
  "labels": "names of outputs",
  "symbol": "MXNet's",
}
SHARED = {
  *("config", "data_dir", "dataset", "workdir", "checkpoint", "output", "batch_size", "statistics", "step", "symbol"),
  *("on_error", "seeds", "index", "count", "dry_run", "target", "rounds"),
}


@pytest.fixture(scope="module")
def helps(repository) -> dict[str, str]:
  """What --help prints, by the script, and once by the command, "bn-inception sweep"."""
  commands = {script: [f"scripts/{script}.py"] for script in SCRIPTS}
  commands["bn-inception sweep"] = ["-m", "bn_inception.cli", "sweep"]
  environment = os.environ | {"PYTHONPATH": str(repository)}
  running = {
    name: subprocess.Popen(
      [sys.executable, *words, "--help"], cwd=repository, env=environment, text=True, stdout=subprocess.PIPE
    )
    for name, words in commands.items()
  }
  texts = {name: process.communicate()[0] for name, process in running.items()}
  assert not any(process.returncode for process in running.values())
  return texts


def flags_of(text: str) -> dict[str, str]:
  """{flag: its kind}, "" of a flag without a value, of a script's own flags."""
  own = text.partition("Flags:\n")[2].partition("\n\n")[0]
  titles = [line.strip().removeprefix("--") for line in own.splitlines() if line.startswith("  --")]
  return {title.partition("=")[0]: title.partition("=")[2] for title in titles}


def test_a_flag_has_one_meaning_in_all_scripts(helps):
  by_name: dict[str, dict[str, str]] = {}
  for script in SCRIPTS:
    for name, kind in flags_of(helps[script]).items():
      by_name.setdefault(name, {})[script] = kind
  assert set(PATHS) <= set(by_name)
  for name, kinds in by_name.items():
    assert len({kind.removesuffix("S") for kind in kinds.values()}) == 1, (name, kinds)  # PATH and PATHS.
    assert len(kinds) == 1 or name in SHARED or name.startswith("config."), f"--{name}: is it the same in {kinds}?"
    assert name in PATHS or not any(kind.startswith("PATH") for kind in kinds.values()), name


def test_help_ends_with_examples_of_flags_that_there_are(helps):
  for name, text in helps.items():
    what, _, examples = text.partition("\nExamples:\n")
    start = f"{name} " if " " in name else f"python scripts/{name}.py "
    lines = [line.strip() for line in examples.splitlines() if line.strip().startswith(start)]
    assert lines and examples.strip().startswith(start) and not what.startswith("\n")
    used = {word.partition("=")[0].removeprefix("--") for line in lines for word in line.split() if word[:2] == "--"}
    assert {flag for flag in used if not flag.startswith("config.")} <= set(flags_of(text)), name


def test_commands_in_the_docs_have_flags_that_there_are(helps, repository):
  pages = [
    repository / "README.md",
    *(page for part in ("docs", "results") for page in (repository / part).rglob("*.md")),
  ]
  commands, wrong = 0, []
  for page in pages:
    for script, words in re.findall(r"scripts/(\w+)\.py([^\n`|#]*)", page.read_text("utf-8").replace("\\\n", " ")):
      flags = set(re.findall(r"^  --(\w+)", helps[script], re.MULTILINE))
      used = re.findall(r"--(\w+)(?!\.)", re.sub(r"--config\.\S+", "", words))
      wrong += [f"{page.name}: {script}.py --{flag}" for flag in used if flag not in flags]
      commands += 1
  assert commands > 50 and not wrong, wrong


def test_the_help_of_train_lists_the_keys_with_their_comments(helps):
  before, _, keys = helps["train"].partition("Keys of the config")
  words = " ".join(keys.split())
  for key, comment in config_comments.read().items():
    assert f"\n  {key}\n" in keys and " ".join(comment.split()) in words, key


def test_every_key_of_the_config_has_its_comment():
  comments = config_comments.read()
  assert {key for key in config_keys.requirements() if not comments.get(key)} == set()


def test_comments_stand_behind_a_key_or_above_it():
  source = (
    "config.seed = 0  # Behind.\n"
    "# One line\n# and a second.\nconfig.data.dir = ''\n"
    "config.a, config.b = 1, 2  # Of both.\n"
    "text = '# none'\nconfig.c = '# none'\n\n# Apart.\n\nconfig.d = 1\n"
  )
  assert config_comments._read_file(source) == {
    "seed": "Behind.",
    "data.dir": "One line and a second.",
    "a": "Of both.",
    "b": "Of both.",
  }
