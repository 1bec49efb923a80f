"""Training or inference of a config's network in PyTorch, to measure against; PyTorch is optional.

A program of its own, so that its threads and its memory are not those of JAX: `python -m
bn_inception.tools.torch_step REQUEST`. REQUEST is JSON: {"config", "batch_size", "training", "device", "threads"}.
The program warms up and writes {"version", "device"}; then it reads numbers of steps and answers each, when they are
made, with {"seconds", "memory"}, lines of JSON all. `memory` is the peak so far in bytes: on a GPU what PyTorch
allocated, else what this process grew by since PyTorch was imported.
"""

import importlib.util
import json
import pathlib
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def _load_module() -> types.ModuleType:
  """release/torch_module.py from its file: the package around it needs more than PyTorch."""
  path = pathlib.Path(__file__).parent.parent / "release" / "torch_module.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


torch_module = _load_module()


def make_train_step(config: dict[str, Any], model: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], None]:
  """Makes the step that ours is, but for distortions, metrics and the decay of the learning rate.

  The loss is the cross-entropy with those of the auxiliary heads, the optimizer SGD with momentum and L2 on the
  weights. BN takes the statistics of the whole batch.

  Args:
    config: a whole config.
    model: of that config, in training mode; its parameters are changed.

  Returns:
    A function of images, uint8 [B, channels, H, W], and labels, int64 [B].
  """
  parameters = [weights for weights in model.parameters() if weights.requires_grad]
  kernels, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim == 1]
  optimizer = torch.optim.SGD(
    [{"params": kernels, "weight_decay": config["weight_decay"]}, {"params": others}],
    lr=config["learning_rate"],
    momentum=config["momentum"],
  )

  def train_step(images: torch.Tensor, labels: torch.Tensor) -> None:
    def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
      return F.cross_entropy(logits.float(), labels)

    with _autocast(config, images.device):
      logits, auxiliary = model(torch_module.preprocess(config, images)), {}
    if isinstance(logits, tuple):
      logits, auxiliary = logits
    loss = cross_entropy(logits) + config["auxiliary_loss_weight"] * sum(map(cross_entropy, auxiliary.values()))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

  return train_step


def make_inference(config: dict[str, Any], model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
  """Makes the function from uint8 images [B, channels, H, W] to logits; the model is in evaluation mode."""

  @torch.inference_mode()
  def infer(images: torch.Tensor) -> torch.Tensor:
    with _autocast(config, images.device):
      return model(torch_module.preprocess(config, images))

  return infer


def _autocast(config: dict[str, Any], device: torch.device) -> torch.autocast:
  return torch.autocast(device.type, torch.bfloat16, enabled=config["dtype"] == "bfloat16")


def _make_run(config: dict[str, Any], *, batch_size: int, training: bool, device: str) -> Callable[[int], None]:
  """Makes the function that takes as many steps as it is told and waits for them; the data lie on the device."""
  data = config["data"]
  shape = (batch_size, len(data["mean"]), data["image_size"], data["image_size"])
  images = torch.randint(256, shape, dtype=torch.uint8).to(device, memory_format=torch.channels_last)
  labels = torch.randint(data["num_classes"], (batch_size,)).to(device)
  model = torch_module.Inception(config).to(device, memory_format=torch.channels_last).train(training)
  step = make_train_step(config, model) if training else make_inference(config, model)
  arguments = (images, labels) if training else (images,)

  def run(steps: int) -> None:
    for _ in range(steps):
      step(*arguments)
    if device == "cuda":
      torch.cuda.synchronize()

  return run


def _resident_peak() -> int:
  """Bytes that this process had in memory at most; 0 where the system does not say."""
  status = pathlib.Path("/proc/self/status")  # getrusage counts what the parent had, too.
  lines = status.read_text().splitlines() if status.exists() else []
  return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def main(request: str) -> None:
  """Answers as the module's docstring says."""
  options = json.loads(request)
  torch.set_num_threads(options["threads"])
  device = options["device"]
  # What JAX does by default on a GPU: TF32 products of float32, and the fastest algorithm for each shape.
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
  start = _resident_peak()
  run = _make_run(options["config"], batch_size=options["batch_size"], training=options["training"], device=device)
  run(2)
  name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
  print(json.dumps({"version": torch.__version__, "device": name}), flush=True)
  for line in sys.stdin:
    begin = time.perf_counter()
    run(int(line))
    seconds = time.perf_counter() - begin
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else _resident_peak() - start
    print(json.dumps({"seconds": seconds, "memory": memory}), flush=True)


if __name__ == "__main__":
  main(sys.argv[1])
