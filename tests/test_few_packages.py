"""What runs where only jax, flax, optax, ml_collections and NumPy are installed, on a rented machine with a GPU."""

import subprocess
import sys

# Of requirements.txt, what flax does not bring along.
FORBIDDEN = (
  "tensorflow",
  "tensorflow_datasets",
  "clu",
  "matplotlib",
  "cv2",
  "safetensors",
  "orbax",
  "array_record",
  "google_crc32c",
  "mlxtend",
  "tensorboard",
  "etils",
)

PROGRAM = f"""
import importlib, sys

class Forbid:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in {FORBIDDEN}:
      raise ImportError(f"{{name}} is not to be imported here")

sys.meta_path.insert(0, Forbid())
for name in sys.argv[1:]:
  importlib.import_module(name)
"""

MODULES = [
  "bn_inception." + name
  for name in (
    "batch_norm",
    "command_line",
    "models",
    "optim",
    "sharding",
    "state",
    "step",
    "config_checks",
    "tools.benchmark_step",
    "tools.describe",
  )
]
TESTS = [
  "tests.conftest",
  "tests.test_batch_norm",
  "tests.test_step",
  "tests.models.test_convolution",
  "tests.models.test_inception",
  "tests.models.test_layers",
  "tests.models.test_mnist_mlp",
]


def run(repository, *names):
  return subprocess.run(
    [sys.executable, "-c", PROGRAM, *names], cwd=repository, capture_output=True, text=True, check=False
  )


def test_benchmark_and_numerical_tests_import_no_other_package(repository):
  result = run(repository, *MODULES, *TESTS)
  assert result.returncode == 0, result.stderr


def test_an_import_of_another_package_is_noticed(repository):
  result = run(repository, "bn_inception.train")
  assert result.returncode == 1 and "clu is not to be imported here" in result.stderr
