"""The model card of a release folder: README.md, written from the config and the shapes alone."""

import math

from ml_collections import ConfigDict

from bn_inception.release import assemble


def card(config: ConfigDict) -> str:
  """Markdown text for a config with its `release` part."""
  shapes = assemble.expected_shapes(config)
  trainable = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("params/"))
  statistics = sum(map(math.prod, shapes.values())) - trainable
  data, release = config.data, config.release
  return f"""# Inception-BN: {release.source}

| | |
|---|---|
| source | {release.source} |
| input | {data.image_size}x{data.image_size} pixels, 0 to 255, as {data.channel_order.upper()} |
| preprocessing | (pixel - mean) / std, RGB mean {_numbers(data.mean)}, std {_numbers(data.std)} |
| classes | {data.num_classes}: {release.classes} |
| BN statistics | {release.statistics}, epsilon {config.batch_norm.epsilon:g} |
| trainable parameters | {trainable:,}, and {statistics:,} moving statistics |
| published accuracy | {release.published} |

The paper states 13.6 million parameters. No reading of its Figure 5 and no released network that is known reaches that
number: they have 11.18 to 11.30 million, and why is not known.

`config.json` holds every setting of the network and of its preprocessing; its fields about training (learning rate,
weight decay and the like) are those of this project's configs unless the network was trained here. Use:

```python
from bn_inception import release
model, variables, preprocess = release.load("this folder")
logits = model.apply(variables, preprocess(images), train=False)  # images: uint8 RGB [B, H, W, 3]
```
"""


def _numbers(values: tuple[float, ...]) -> str:
  return ", ".join(f"{value:g}" for value in values)
