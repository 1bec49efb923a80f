"""The direction of imports: what is below never imports what is above (CONTRIBUTING.md)."""

import ast

# From the bottom to the top; a module may import those of its own row and of the rows above it in this list.
ROWS = (
  {"errors", "status", "config_dict", "parameter_names", "paths", "signals"},
  {"batch_norm", "config_keys", "configs", "sharding", "cluster", "hosts", "folder_lock", "watchdog"},
  {"models", "data"},
  {"config_checks", "config_changes", "state", "optim", "step", "program", "population", "run_directory"},
  {"checkpoint", "run_data", "restore", "diagnose"},
  {"evaluators", "release"},
  {"initialization"},
  {"evaluate", "train", "doctor", "predict"},
  {"experiments"},
  {"cli", "command_line"},
)


def imports_of(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    yield from (name.split(".")[1] for name in names if name.startswith("bn_inception."))


def test_imports_point_one_way(repository):
  row_of = {name: row for row, names in enumerate(ROWS) for name in names}
  wrong = []
  for path in (repository / "bn_inception").rglob("*.py"):
    own = path.relative_to(repository / "bn_inception").parts[0].removesuffix(".py")
    wrong += [
      f"{path.relative_to(repository)} imports {name}"
      for name in imports_of(path)
      if row_of.get(name, 0) > row_of.get(own, len(ROWS))
    ]
  assert not wrong, "\n".join(wrong)
  modules = {path.stem for path in (repository / "bn_inception").iterdir() if path.suffix in ("", ".py")}
  assert modules - {"__init__", "__pycache__", "report"} <= set(row_of)
