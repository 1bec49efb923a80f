"""What each key of a config means, read from the comments of the files in configs/: there is no second copy.

The comment of a key stands behind its assignment, `config.seed = 0  # ...`, or in the lines above it where there is
none behind it. The first comment that a key has counts; common.py comes before the other files.
"""

import ast
import io
import pathlib
import tokenize

from bn_inception import configs


def read() -> dict[str, str]:
  """{key, with its section, as "data.shuffle": its comment, as one line}."""
  comments: dict[str, str] = {}
  files = pathlib.Path(configs.__file__).parent.glob("*.py")
  for file in sorted(files, key=lambda file: (file.name != "common.py", file.name)):
    comments = _read_file(file.read_text("utf-8")) | comments
  return comments


def _read_file(source: str) -> dict[str, str]:
  lines = source.splitlines()
  behind, alone = {}, {}  # By the number of the line.
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      line, column = token.start
      (behind if lines[line - 1][:column].strip() else alone)[line] = token.string.lstrip("# ")
  comments: dict[str, str] = {}
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Assign) or ast.unparse(node.value) == "ConfigDict()":  # A section is no key.
      continue
    comment = behind.get(node.end_lineno or node.lineno)
    if comment is None:
      above = node.lineno - 1
      while above in alone:
        above -= 1
      comment = " ".join(alone[line] for line in range(above + 1, node.lineno))
    for key in filter(None, map(_key, _targets(node))):
      if comment and key not in comments:
        comments[key] = comment
  return comments


def _targets(node: ast.Assign) -> list[ast.expr]:
  return [part for target in node.targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]


def _key(target: ast.expr) -> str | None:
  """ "data.shuffle" of `config.data.shuffle`; None of what is no value of a config."""
  name, _, key = ast.unparse(target).partition(".")
  return key if name == "config" else None
