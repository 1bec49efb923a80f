"""What `--help` prints of a script: what it does, its flags, the keys of its config, and examples at the end."""

import inspect
import textwrap
from collections.abc import Sequence
from typing import Any

from absl import flags

from bn_inception import config_comments, config_keys

_WIDTH = 120


def text(script: dict[str, Any], name: str, command: str | None, of_processes: Sequence[flags.FlagHolder]) -> str:
  """The whole text.

  Args:
    script: the global names of the script's module. The docstring says what the script does, and from its first line
      "python scripts/NAME.py" on it holds examples. The flags are printed in the order of their definition.
    name: of the script, "train".
    command: in place of "python scripts/NAME.py" the examples are given as "COMMAND NAME"; None: as they are.
    of_processes: the flags that all scripts share.
  """
  what, start, rest = inspect.cleandoc(script["__doc__"]).partition(f"python scripts/{name}.py")
  examples = start + rest
  if command:
    examples = examples.replace("python scripts/", f"{command} ").replace(f"{command} {name}.py", f"{command} {name}")
  own = [value.name for value in script.values() if isinstance(value, flags.FlagHolder)]
  lines = [what.strip(), "", "Flags:", *map(_flag, own)]
  if "config" in own:
    where = "as below" if name == "train" else "scripts/train.py --help lists its keys"
    lines.append(_entry("--config.KEY=VALUE", f"A value of the config in place of the file's; {where}."))
  if name == "train":
    comments = config_comments.read()
    lines += ["", "Keys of the config (batch_size is --config.batch_size), with what configs/ says of them:"]
    lines += [
      _entry(key, f"{requirement[0].upper()}{requirement[1:]}. {comments[key]}")
      for key, requirement in config_keys.requirements().items()
    ]
  lines += ["", "For several processes or hosts (docs/clusters):", *(_flag(flag.name) for flag in of_processes)]
  return "\n".join([*lines, "", "Examples:", textwrap.indent(examples.strip(), "  ")])


def _flag(name: str) -> str:
  flag = flags.FLAGS[name]
  kind = flag.parser.flag_type() if hasattr(flag, "parser") else ""
  if name == "config":
    title = "--config=FILE:SCALE"
  elif flag.boolean:
    title = f"--{name}"
  elif values := getattr(flag.parser, "enum_values", None):
    title = f"--{name}={'|'.join(values)}"
  else:
    title = f"--{name}={kind.upper().split(' ')[-1] if kind else 'VALUE'}"
  default = "" if flag.default in (None, False, []) else f" By default {flag.default}."
  return _entry(title, flag.help.replace("\n", " ") + default)


def _entry(title: str, text: str) -> str:
  indent = " " * 6
  return f"  {title}\n" + textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
