"""The package as it is installed: what it takes along, and its command."""

import os
import pathlib
import subprocess
import sys
import tomllib


def metadata(repository):
  return tomllib.loads((repository / "pyproject.toml").read_text())


def test_every_folder_of_the_package_is_installed(repository):
  folders = {path.parent.relative_to(repository) for path in (repository / "bn_inception").rglob("*.py")}
  expected = {".".join(folder.parts) for folder in folders} | {"bn_inception.configs", "bn_inception.scripts"}
  assert set(metadata(repository)["tool"]["setuptools"]["packages"]) == expected


def run(*arguments, cwd, **environment):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=cwd,
    capture_output=True,
    text=True,
    env=os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | environment,
  )


def test_a_project_with_its_own_configs_is_left_alone(tmp_path, repository):
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "__init__.py").write_text("VALUE = 1\n")
  program = "import configs, bn_inception.configs.common as ours; print(configs.VALUE, ours.SCALES[0])"
  finished = run("-c", program, cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{repository}")
  assert finished.stdout.split() == ["1", "imagenet"], finished.stderr


def test_the_command_runs_scripts_and_finds_shipped_configs_from_any_folder(tmp_path, repository):
  words = ["-m", "bn_inception.cli", "describe"]
  for config in ("mnist:bn", "mnist.py:bn", "configs/mnist.py:bn"):
    finished = run(*words, f"--config={config}", cwd=tmp_path, PYTHONPATH=str(repository))
    assert "99,410" in finished.stdout  # 784 * 100 + 2 * 100 * 100 + 101 * 10, finished.stderr
  # A file of one's own comes first.
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "mnist.py").write_text(
    "from bn_inception.configs import bn_x5\nget_config = lambda: bn_x5.get_config('quickstart')\n"
  )
  finished = run(*words, "--config=configs/mnist.py", cwd=tmp_path, PYTHONPATH=str(repository))
  assert "inception" in finished.stdout, finished.stderr


def test_a_script_that_is_none_is_named_with_those_there_are(tmp_path, repository):
  finished = run("-m", "bn_inception.cli", "trian", cwd=tmp_path, PYTHONPATH=str(repository))
  assert finished.returncode == 2
  scripts = {path.stem for path in pathlib.Path(repository, "scripts").glob("*.py")}
  assert all(name in finished.stderr for name in scripts)
