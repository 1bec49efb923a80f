"""Training or inference of a config's network in PyTorch, to measure against; PyTorch is optional.

A program of its own, so that its threads and its memory are not those of JAX: `python -m
bn_inception.report.torch_step REQUEST`. REQUEST is JSON: {"config", "batch_size", "training", "threads"}. The program
warms up and writes {"version", "device"}; then it reads numbers of steps and answers each, when they are made, with
{"seconds", "memory"}, lines of JSON all. `memory` is the peak so far in bytes: on a GPU what PyTorch allocated, else
what this process grew by since PyTorch was imported.
"""

from collections.abc import Callable
import importlib.util
import json
import pathlib
import sys
import time
from typing import Any

import torch
from torch.nn import functional as F


def make_run(config: dict[str, Any], *, batch_size: int, training: bool, device: str) -> Callable[[int], None]:
  """Makes the function that takes as many steps as it is told and waits for them.

  A step begins with uint8 pixels that lie on the device. In training it is what the training step of JAX does but for
  distortions and metrics: cross-entropy with that of the auxiliary heads, its gradient, SGD with momentum and L2 on
  the weights; BN takes the statistics of the whole batch.
  """
  module = _load_module()
  data = config["data"]
  generator = torch.Generator().manual_seed(0)
  shape = (batch_size, len(data["mean"]), data["image_size"], data["image_size"])
  images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
  images = images.to(device, memory_format=torch.channels_last)
  labels = torch.randint(data["num_classes"], (batch_size,), generator=generator).to(device)
  model = module.Inception(config).to(device, memory_format=torch.channels_last).train(training)
  autocast = torch.autocast(device, torch.bfloat16, enabled=config["dtype"] == "bfloat16")
  if training:
    decayed = [weights for weights in model.parameters() if weights.ndim > 1]
    others = [weights for weights in model.parameters() if weights.ndim == 1 and weights.requires_grad]
    optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": config["weight_decay"]}, {"params": others}],
                                lr=config["learning_rate"], momentum=config["momentum"])

  def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), labels)

  def train_step() -> None:
    with autocast:
      logits, auxiliary = model(module.preprocess(config, images)), {}
    if isinstance(logits, tuple):
      logits, auxiliary = logits
    loss = cross_entropy(logits) + config["auxiliary_loss_weight"] * sum(map(cross_entropy, auxiliary.values()))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

  def inference() -> None:
    with torch.inference_mode(), autocast:
      model(module.preprocess(config, images))

  step = train_step if training else inference

  def run(steps: int) -> None:
    for _ in range(steps):
      step()
    if device == "cuda":
      torch.cuda.synchronize()

  return run


def _load_module() -> Any:
  """release/torch_module.py from its file: the package around it needs more than PyTorch."""
  path = pathlib.Path(__file__).parent.parent / "release" / "torch_module.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _resident_peak() -> int:
  """Bytes that this process had in memory at most; 0 where the system does not say."""
  status = pathlib.Path("/proc/self/status")  # getrusage counts what the parent had, too.
  lines = status.read_text().splitlines() if status.exists() else []
  return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def main(request: str) -> None:
  """Answers as the module's docstring says."""
  options = json.loads(request)
  torch.set_num_threads(options["threads"])
  device = "cuda" if torch.cuda.is_available() else "cpu"
  # What JAX does by default on a GPU: TF32 products of float32, and the fastest algorithm for each shape.
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
  start = _resident_peak()
  run = make_run(options["config"], batch_size=options["batch_size"], training=options["training"], device=device)
  run(2)
  name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
  print(json.dumps({"version": torch.__version__, "device": name}), flush=True)
  for line in sys.stdin:
    begin = time.perf_counter()
    run(int(line))
    seconds = time.perf_counter() - begin
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else _resident_peak() - start
    print(json.dumps({"seconds": seconds, "memory": memory}), flush=True)


if __name__ == "__main__":
  main(sys.argv[1])
