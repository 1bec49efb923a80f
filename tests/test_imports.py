"""The direction of imports: what is below never imports what is above (CONTRIBUTING.md)."""

import ast
import graphlib

# From the bottom to the top; a module may import those of its own row and of the rows above it in this list.
ROWS = (
  {"errors", "paper", "status", "config_dict", "parameter_names", "paths", "signals"},
  {"batch_norm", "config_keys", "configs", "sharding", "cluster", "hosts", "folder_lock", "watchdog"},
  {"models", "data"},
  {"config_checks", "config_changes", "state", "optim", "step", "population", "run_directory"},
  {"checkpoint", "run_data", "restore", "diagnose", "tables", "curves"},
  {"evaluators", "release"},
  {"initialization"},
  {"evaluate", "train", "predict", "run_table"},
  {"tools", "reproduction"},
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


def imports_by_module(repository):
  """(path, its top-level module or package, those of this project that it imports, at the top or in a function)."""
  root = repository / "bn_inception"
  for path in root.rglob("*.py"):
    yield path.relative_to(repository), path.relative_to(root).parts[0].removesuffix(".py"), set(imports_of(path))


def test_imports_point_one_way(repository):
  row_of = {name: row for row, names in enumerate(ROWS) for name in names}
  modules = {path.stem for path in (repository / "bn_inception").iterdir() if path.suffix in ("", ".py")}
  assert modules - {"__init__", "__pycache__"} <= set(row_of)
  wrong = [
    f"{path} imports {name}"
    for path, own, names in imports_by_module(repository)
    for name in sorted(names)
    if row_of[name] > row_of.get(own, -1)
  ]
  assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other(repository):
  """Also within a row: raises CycleError, which names the circle."""
  graph = {}
  for _, own, names in imports_by_module(repository):
    graph.setdefault(own, set()).update(names - {own})
  graphlib.TopologicalSorter(graph).prepare()
