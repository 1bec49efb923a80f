"""Inception with batch normalization (Ioffe and Szegedy, 2015, arXiv:1502.03167) in PyTorch. Needs PyTorch alone.

    import json, torch, torch_module

    config = json.load(open("model.json"))
    model = torch_module.build(config).to(memory_format=torch.channels_last)
    model.load_state_dict(torch.load("model.pth", weights_only=True))
    logits = model.eval()(torch_module.preprocess(config, images))  # images: uint8 RGB [B, 3, H, W].

`Inception` is the network of Figure 5 of the paper, `MnistMlp` that of its §4.1. Figure 5 leaves open, or released
networks do differently, how the first convolution is made, how convolutions and pools meet the border, and where biases
and BN are: the config says which.

    config["model"]       width, stem, pool_proj_4cd, padding, stem_pool, reduction_pool, avg_pool_include_pad,
                          conv_bias, nonlinearity, local_response_norm, dropout_rate, auxiliary_heads, init_scale
    config["batch_norm"]  enabled, epsilon, momentum, use_gamma, in_stem, per_activation
    config["data"]        num_classes, image_size, mean, std, channel_order, binary

    The model of an MnistMlp has hidden_units and init_std, its batch_norm enabled, epsilon, momentum and use_gamma.

Names of parameters follow the modules: `inception.3a.double_3x3_1.conv.weight`, `hidden1.weight`.
"""

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Config = dict[str, Any]

# Figure 5. Channels of: 1x1, 3x3 reduce, 3x3, double 3x3 reduce, double 3x3; the pool and the projection after it.
# Modules without 1x1 have stride 2 and pass the pooled input on. None: see `pool_proj_4cd`.
FIGURE_5 = {
  "3a": (64, 64, 64, 64, 96, "avg", 32),
  "3b": (64, 64, 96, 64, 96, "avg", 64),
  "3c": (0, 128, 160, 64, 96, "max", 0),
  "4a": (224, 64, 96, 96, 128, "avg", 128),
  "4b": (192, 96, 128, 96, 128, "avg", 128),
  "4c": (160, 128, 160, 128, 160, "avg", None),
  "4d": (96, 128, 192, 160, 192, "avg", None),
  "4e": (0, 128, 192, 192, 256, "max", 0),
  "5a": (352, 192, 320, 160, 224, "avg", 128),
  "5b": (352, 192, 320, 192, 224, "max", 128),
}

# How a pool of 3x3 and stride 2 meets the border. Padding is of a map of `size` pixels; with `ceil_mode` the last
# window may hang over the end.
POOL_PADDING = {
  "same": lambda size: size % 2,  # TensorFlow, with ceil_mode.
  "ceil": lambda size: 0,  # Caffe, with ceil_mode.
  "floor": lambda size: 0,  # MXNet.
  "floor_pad1": lambda size: 1,  # MXNet in 3c and 4e.
}
CEIL_MODE = ("same", "ceil")

DEPTH_MULTIPLIER = 8  # Filters for each input channel of the separable first convolution (§4.2).


def preprocess(config: Config, images: torch.Tensor) -> torch.Tensor:
  """Pixels to the input of the network.

  Args:
    config: see above.
    images: uint8 or float [B, channels, H, W], 0 to 255, RGB.

  Returns:
    float32 of the same shape: (images - mean) / std, or 0 and 1 with `binary`; the channels in `channel_order`.
  """
  data = config["data"]
  if data["binary"]:
    images = (images >= 128).float()
  else:
    mean, std = (torch.tensor(data[name], device=images.device).view(-1, 1, 1) for name in ("mean", "std"))
    images = (images.float() - mean) / std
  return images.flip(1) if data["channel_order"] == "bgr" else images


def build(config: Config) -> nn.Module:
  """The network of a config, with fresh weights; it maps normalized images to logits."""
  return {"inception": Inception, "mnist_mlp": MnistMlp}[config["model"]["name"]](config)


class Inception(nn.Module):
  """The network of a config, with fresh weights: He et al. (2015), truncated at two standard deviations.

  In training mode every BN layer takes the statistics of the whole batch.
  """

  def __init__(self, config: Config):
    super().__init__()
    model, data = config["model"], config["data"]
    small, separable = model["stem"] == "small", model["stem"] == "separable"  # Else a plain 7x7.

    # The side of the maps, which auxiliary heads and BN per activation depend on.
    side = data["image_size"] if small else math.ceil(data["image_size"] / 2)
    channels = _scale(config, 64)
    window, stride = (3, 1) if small else (7, 2)
    self.conv1 = conv_unit(
      config,
      len(data["mean"]),
      channels,
      window,
      stride,
      depth_multiplier=DEPTH_MULTIPLIER if separable else 0,
      norm=config["batch_norm"]["enabled"] and config["batch_norm"]["in_stem"],
    )
    self.pool1 = MaxPoolStride2(model["stem_pool"])
    side = self.pool1.output_size(side)
    self.conv2_reduce = conv_unit(config, channels, channels)
    self.conv2 = conv_unit(config, channels, _scale(config, 192), 3)
    # As the public GoogLeNet: after the first pool and before the second.
    self.lrn = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75) if model["local_response_norm"] else nn.Identity()
    self.pool2 = nn.Identity() if small else MaxPoolStride2(model["stem_pool"])
    side = side if small else self.pool2.output_size(side)
    channels = _scale(config, 192)

    self.inception, self.auxiliary = nn.ModuleDict(), nn.ModuleDict()
    for name in FIGURE_5:
      module = InceptionModule(config, name, channels, side)
      self.inception[name], channels, side = module, module.out_channels, module.out_side
      if name in model["auxiliary_heads"]:
        self.auxiliary[name] = AuxiliaryHead(config, name, channels, side)
    self.dropout = nn.Dropout(model["dropout_rate"])
    self.logits = nn.Linear(channels, data["num_classes"])
    initialize(self, model["init_scale"])

  def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of images.

    Args:
      x: [B, channels, H, W], normalized as `preprocess` does.

    Returns:
      [B, num_classes]; in training mode with auxiliary heads (these, {module: [B, num_classes] of its head}).
    """
    x = self.lrn(self.pool1(self.conv1(x)))
    x = self.pool2(self.lrn(self.conv2(self.conv2_reduce(x))))
    auxiliary = {}
    for name, module in self.inception.items():
      x = module(x)
      if self.training and name in self.auxiliary:
        auxiliary[name] = self.auxiliary[name](x)
    logits = self.logits(self.dropout(x.mean((2, 3))))
    return (logits, auxiliary) if auxiliary else logits


class InceptionModule(nn.ModuleDict):
  """1x1, 3x3, double 3x3 and pooling branches side by side, concatenated in this order."""

  def __init__(self, config: Config, name: str, channels: int, side: int):
    super().__init__()
    *widths, pool, pool_proj = FIGURE_5[name]
    pool_proj = config["model"]["pool_proj_4cd"] if pool_proj is None else pool_proj
    conv1x1, reduce3x3, conv3x3, reduce_double, conv_double, pool_proj = (
      _scale(config, width) for width in (*widths, pool_proj)
    )
    stride = 1 if conv1x1 else 2
    out_side = math.ceil(side / stride)

    def unit(name: str, ins: int, outs: int, window: int = 1, stride: int = 1, side: int = side) -> None:
      self[name] = conv_unit(config, ins, outs, window, stride, per_activation_side=side if per_activation else None)

    per_activation = name in config["batch_norm"]["per_activation"]
    if conv1x1:
      unit("1x1", channels, conv1x1)
    unit("3x3_reduce", channels, reduce3x3)
    unit("3x3", reduce3x3, conv3x3, 3, stride, out_side)
    unit("double_3x3_reduce", channels, reduce_double)
    unit("double_3x3_1", reduce_double, conv_double, 3)
    unit("double_3x3_2", conv_double, conv_double, 3, stride, out_side)
    if stride == 2:
      self["pool"] = MaxPoolStride2(config["model"]["reduction_pool"])
    elif pool == "max":
      self["pool"] = nn.MaxPool2d(3, stride=1, padding=1)
    else:
      self["pool"] = nn.AvgPool2d(3, 1, padding=1, count_include_pad=config["model"]["avg_pool_include_pad"])
    if pool_proj:
      unit("pool_proj", channels, pool_proj)
    self.out_channels = conv1x1 + conv3x3 + conv_double + (pool_proj or channels)
    self.out_side = out_side

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    branches = [self["1x1"](x)] if "1x1" in self else []
    branches.append(self["3x3"](self["3x3_reduce"](x)))
    branches.append(self["double_3x3_2"](self["double_3x3_1"](self["double_3x3_reduce"](x))))
    pooled = self["pool"](x)
    branches.append(self["pool_proj"](pooled) if "pool_proj" in self else pooled)
    return torch.cat(branches, 1)


class AuxiliaryHead(nn.Module):
  """GoogLeNet's auxiliary classifier: average pooling 5x5 / 3, 1x1 convolution 128, a hidden layer of 1024."""

  def __init__(self, config: Config, name: str, channels: int, side: int):
    super().__init__()
    side = max(math.ceil((side - 5) / 3), 0) + 1
    per_activation = name in config["batch_norm"]["per_activation"]
    width, hidden = _scale(config, 128), _scale(config, 1024)
    self.conv = conv_unit(config, channels, width, per_activation_side=side if per_activation else None)
    self.hidden = conv_unit(config, side * side * width, hidden, per_activation_side=1 if per_activation else None)
    self.logits = nn.Linear(hidden, config["data"]["num_classes"])

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    # As in Caffe, the last window may hang over the end; a map of less than 5x5 is one window.
    window = (min(5, x.shape[2]), min(5, x.shape[3]))
    x = self.conv(F.avg_pool2d(x, window, stride=3, ceil_mode=True, count_include_pad=False))
    x = x.permute(0, 2, 3, 1).flatten(1)  # Row, column, channel: the order of the hidden layer's weights.
    return self.logits(self.hidden(x[:, :, None, None]).flatten(1))


def conv_unit(
  config: Config,
  ins: int,
  outs: int,
  window: int = 1,
  stride: int = 1,
  *,
  depth_multiplier: int = 0,
  norm: bool | None = None,
  per_activation_side: int | None = None,
) -> nn.Sequential:
  """g(BN(W u)): convolution, BN, nonlinearity (§3.2).

  Args:
    config: of the network.
    ins, outs: channels.
    window, stride: of the convolution, square.
    depth_multiplier: not 0: so many filters for each input channel, and a 1x1 convolution over them.
    norm: whether there is BN; None: where the config has it enabled. Without BN the convolution has a bias.
    per_activation_side: side of the output map, for BN per activation; None: BN per channel.
  """
  model = config["model"]
  norm = config["batch_norm"]["enabled"] if norm is None else norm
  layers = OrderedDict()
  # With stride 1 both paddings are the same, half the window on each side.
  conv2d = SameConv2d if stride > 1 and model["padding"] == "same" else nn.Conv2d
  if depth_multiplier:
    filters = ins * depth_multiplier
    layers["depthwise"] = conv2d(ins, filters, window, stride, window // 2, groups=ins, bias=False)
    ins, window, stride, conv2d = filters, 1, 1, nn.Conv2d
  layers["conv"] = conv2d(ins, outs, window, stride, window // 2, bias=model["conv_bias"] or not norm)
  if norm:
    settings = config["batch_norm"]
    # PyTorch's momentum is the weight of the new statistics.
    options = {"eps": settings["epsilon"], "momentum": 1 - settings["momentum"]}
    side = per_activation_side
    layers["bn"] = BatchNormPerActivation(outs * side * side, **options) if side else nn.BatchNorm2d(outs, **options)
    layers["bn"].weight.requires_grad_(settings["use_gamma"])  # Else gamma stays 1.
  layers["nonlinearity"] = {"relu": nn.ReLU(inplace=True), "sigmoid": nn.Sigmoid()}[model["nonlinearity"]]
  return nn.Sequential(layers)


class MnistMlp(nn.Module):
  """Three hidden layers of sigmoid units; fresh weights are a small Gaussian (§4.1)."""

  def __init__(self, config: Config):
    super().__init__()
    model, norm, data = config["model"], config["batch_norm"], config["data"]
    units = data["image_size"] ** 2 * len(data["mean"])
    for layer in (1, 2, 3):
      # No bias under BN: beta takes its role (§3.2).
      self.add_module(f"hidden{layer}", nn.Linear(units, model["hidden_units"], bias=not norm["enabled"]))
      units = model["hidden_units"]
      if norm["enabled"]:
        bn = nn.BatchNorm1d(units, eps=norm["epsilon"], momentum=1 - norm["momentum"])
        bn.weight.requires_grad_(norm["use_gamma"])  # Else gamma stays 1.
        self.add_module(f"bn{layer}", bn)
    self.logits = nn.Linear(units, data["num_classes"])
    for layer in self.modules():
      if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=model["init_std"])
        if layer.bias is not None:
          nn.init.zeros_(layer.bias)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Logits [B, num_classes] of images [B, channels, H, W], normalized as `preprocess` does."""
    x = x.permute(0, 2, 3, 1).flatten(1)  # Row, column, channel: the order of the weights.
    for layer in (1, 2, 3):
      x = self.get_submodule(f"hidden{layer}")(x)
      if hasattr(self, f"bn{layer}"):
        x = self.get_submodule(f"bn{layer}")(x)
      x = torch.sigmoid(x)
    return self.logits(x)


class SameConv2d(nn.Conv2d):
  """Convolution with TensorFlow's padding "SAME", whatever `padding` says: an odd total pads the far side more."""

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    window, stride = self.kernel_size[0], self.stride[0]
    totals = [max((math.ceil(size / stride) - 1) * stride + window - size, 0) for size in (x.shape[3], x.shape[2])]
    x = F.pad(x, [part for total in totals for part in (total // 2, total - total // 2)])
    return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)


class MaxPoolStride2(nn.Module):
  """Max pooling 3x3 with stride 2; `border` is a key of POOL_PADDING."""

  def __init__(self, border: str):
    super().__init__()
    self.padding, self.ceil_mode = POOL_PADDING[border], border in CEIL_MODE

  def output_size(self, size: int) -> int:
    """Pixels that `size` become, along one axis."""
    return (size + 2 * self.padding(size) - 3 + self.ceil_mode) // 2 + 1

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    padding = (self.padding(x.shape[2]), self.padding(x.shape[3]))
    return F.max_pool2d(x, 3, 2, padding, ceil_mode=self.ceil_mode)


class BatchNormPerActivation(nn.BatchNorm1d):
  """BN with a gamma, beta and statistic for every channel, row and column (§3.2), [channels * side * side] in all."""

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return super().forward(x.flatten(1)).view(x.shape)


def initialize(model: nn.Module, scale: float) -> None:
  """Draws the weights of every layer: standard deviation gain / sqrt(inputs of an output), biases 0."""
  for name, layer in model.named_modules():
    if isinstance(layer, nn.Conv2d | nn.Linear):
      gain = {"conv": math.sqrt(2) * scale, "depthwise": scale, "logits": 1.0}[name.rsplit(".", 1)[-1]]
      # Cutting a normal distribution off at two standard deviations leaves 0.88 of one.
      std = gain / math.sqrt(layer.weight[0].numel()) / 0.87962566103423978
      nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
      if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _scale(config: Config, channels: int) -> int:
  """Channels at the width of a config."""
  return max(round(channels * config["model"]["width"]), 1) if channels else 0
