"""The model card of a release folder: README.md, written from what else is in the folder.

It begins with the metadata that the Hugging Face Hub reads (https://huggingface.co/docs/hub/model-cards).
"""

import json
import math
import re
from typing import Any

from bn_inception import models
from bn_inception.config_dict import ConfigDict
from bn_inception.release import assemble
from bn_inception.release.errors import ReleaseError
from bn_inception.release.release_type import Release


def card(config: ConfigDict, labels: tuple[str, ...], metrics: dict[str, Any] | None) -> str:
  """Markdown text for a config with its `release` part, the names of its outputs and what was measured."""
  shapes = assemble.expected_shapes(config)
  trainable = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("params/"))
  statistics = sum(map(math.prod, shapes.values())) - trainable
  data, release = config.data, config.release
  rows = {"source": release.source}
  if "step" in release:
    rows |= {
      "trained on": f"{data.name} {data.train_split}: {release.step:,} steps of {config.batch_size:,} images, learning "
      f"rate {config.learning_rate:g}, seed {config.seed}",
      "revision of the code": release.revision,
    }
    if "train_split_digest" in release:
      rows["SHA-256 of the data"] = (
        f"{data.train_split} {release.train_split_digest[:12]}, {data.eval_split} {release.eval_split_digest[:12]} "
        "(`data_digest` in request.json of an evaluation)"
      )
    if config.model.name == "inception":
      rows["network"] = f"{config.model.width:g} of the channels of Figure 5, stem: {config.model.stem}"
  if config.ema_decay and "step" in release:
    rows["weights"] = f"their moving average over steps, decay {config.ema_decay:g}"
  rows["image"] = f"shorter side resized to {data.eval_resize}, centre crop {data.image_size}x{data.image_size} pixels"
  if data.binary:
    rows["input"] = "1 for pixels of at least 128, 0 for others"
  else:
    means, stds = len(set(data.mean)) > 1, len(set(data.std)) > 1
    rows["input"] = (
      f"(pixel - mean) / std, pixels 0 to 255; mean {_numbers(data.mean)}{' (RGB)' * means}, "
      f"std {_numbers(data.std)}{' (RGB)' * stds}"
    )
  if len(data.mean) == 3:
    rows["order of the channels"] = data.channel_order.upper()
  rows |= {
    "classes": f"{data.num_classes}: {release.classes}",
    "names of the classes": f"`labels.txt`: {labels[0]}, ... {labels[-1]}" if labels else "not known",
    "BN statistics": release.statistics + (f", epsilon {config.batch_norm.epsilon:g}" * config.batch_norm.enabled),
    "trainable parameters": f"{trainable:,}, and {statistics:,} moving statistics",
    "published accuracy": release.published,
    "measured accuracy": _measured(metrics),
  }
  if "note" in release:
    rows["note"] = release.note
  table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
  paper = (
    """
The paper states 13.6 million parameters. No reading of its Figure 5 and no released network that is known reaches that
number: they have 11.18 to 11.30 million, and why is not known.
"""
    if config.model.name == "inception" and config.model.width == 1
    else ""
  )
  title = models.MODELS[config.model.name].title
  if not config.batch_norm.enabled:
    title = title.removesuffix("-BN")
  training = (
    ""
    if "step" in release
    else " Its fields about training (learning rate, weight decay and the like) are "
    "those of\nthis project's configs, not of whoever trained this network."
  )
  images = "RGB [B, H, W, 3]" if len(data.mean) == 3 else "gray [B, H, W, 1]"
  what = "photographs" if len(data.mean) == 3 else "images of digits"
  return f"""{_metadata(config, title, metrics)}
# {title}: {release.source}

| | |
|---|---|
{table}
{paper}
`config.json` holds every setting of the network and of its preprocessing; the latter also stands in
`preprocessing.json`.{training} Use:

```python
from bn_inception import release
model, variables, preprocess = release.load("this folder")  # Or "hf://user/name", where it was published.
logits = model.apply(variables, preprocess(images), train=False)  # images: uint8 {images}
features = release.features(model, variables, preprocess(images))
```

## Intended use and limits

For research on batch normalization, as a baseline, and as features or a start for fine-tuning. The network knows its
{data.num_classes} classes alone and gives one of them to every image, whatever it shows; its probabilities are not
calibrated. It was made for {what} like those it was trained on, prepared as the table says:
with another resizing, order of channels or normalization it is worse without a sign. What its training data lack or
distort (of ImageNet: regions of the world, people, unclear and overlapping classes) its predictions do too. It is not
for decisions about people.

License: {_license(release)}
"""


def with_license(release: Release, identifier: str) -> Release:
  """The release of a network of one's own under a license, as the hub names them ("apache-2.0", "cc-by-4.0", "other").

  Raises:
    ReleaseError: if it is no such name, or the network is a peer's.
  """
  if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", identifier):
    raise ReleaseError(f"'{identifier}' is no license as the hub names them: give one such as apache-2.0 or cc-by-4.0.")
  config = release.config.copy_and_resolve_references()
  if "base_model" in config.release:
    raise ReleaseError(f"The license of a network from {config.release.base_model} is for its makers to state.")
  config.release.license = identifier
  return release._replace(config=config)


def with_note(release: Release, note: str) -> Release:
  """The release with a sentence of its maker on the card: what the other rows do not say of its data or training.

  Raises:
    ReleaseError: if the note is empty, or of several lines, or has a character that would end a cell of the table.
  """
  if not note.strip() or re.search(r"[|\n\r]", note):
    raise ReleaseError("A note is one line of text without '|': write it so.")
  config = release.config.copy_and_resolve_references()
  config.release.note = note.strip()
  return release._replace(config=config)


def _license(release: ConfigDict) -> str:
  if "license" not in release:
    return "not stated; whoever publishes this folder states one (`export_checkpoint.py --license=...`)."
  if "base_model" not in release:
    return f"{release.license}."
  known = {"unknown": "none is known"}.get(release.license, release.license)
  return f"{known}, for github.com/{release.base_model}, where this is from; see there what holds for the weights."


def _metadata(config: ConfigDict, title: str, metrics: dict[str, Any] | None) -> str:
  """The block of YAML that a card on the hub begins with. Strings are written as JSON, which YAML contains."""
  data, release = config.data, config.release
  name, _, _ = data.name.partition(":")
  dataset = {"imagenet2012": "imagenet-1k", "digits": "mnist"}.get(name, name)
  lines = [
    "---",
    f"license: {release.get('license', 'unknown')}",
    "library_name: bn-inception",
    "pipeline_tag: image-classification",
    "tags:",
    "- jax",
    "- flax",
    *["- batch-normalization"] * config.batch_norm.enabled,
    "datasets:",
    f"- {json.dumps(dataset)}",
    "metrics:",
    "- accuracy",
  ]
  if "base_model" in release:
    lines.append(f"base_model: {json.dumps(release.base_model)}")
  published = re.match(r"top-1 ([\d.]+) ?%, top-5 ([\d.]+) ?%", release.published)
  values, source = None, ""
  if metrics:
    values, source = (metrics["top1"], metrics["top5"]), f"{metrics['count']} examples of {metrics['data']}"
  elif published:
    values, source = tuple(float(value) / 100 for value in published.groups()), "stated by its source, not measured"
  if values:
    lines += [
      "model-index:",
      f"- name: {json.dumps(title, ensure_ascii=False)}",
      "  results:",
      "  - task:",
      "      type: image-classification",
      "    dataset:",
      f"      name: {json.dumps(dataset)}",
      f"      type: {json.dumps(dataset)}",
      f"      split: {json.dumps(data.eval_split)}",
      "    metrics:",
    ]
    for number, value in zip((1, 5), values):
      lines += [
        "    - type: accuracy",
        f"      name: {json.dumps(f'top-{number} accuracy, {source}')}",
        f"      value: {value:.5g}",
      ]
  return "\n".join([*lines, "---", ""])


def _measured(metrics: dict[str, Any] | None) -> str:
  if not metrics:
    return "none"
  return (
    f"top-1 {metrics['top1']:.2%}, top-5 {metrics['top5']:.2%} on all {metrics['count']:,} examples of "
    f"{metrics['data']}: `{metrics['command']}`"
  )


def _numbers(values: tuple[float, ...]) -> str:
  return ", ".join(f"{value:g}" for value in (values if len(set(values)) > 1 else values[:1]))
