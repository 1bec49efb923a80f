"""One self-contained HTML page with every figure, table and claim of the paper beside what was measured.

This module and sections.py gather what the page shows; templates/report.html says how it looks. The same runs make the
same bytes.
"""

import collections
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bn_inception import paper, run_directory
from bn_inception.errors import UserError
from bn_inception.reproduction import claims, judging, measured, plans, sections, verdicts, wording
from bn_inception.reproduction.claims import Claim
from bn_inception.reproduction.judging import Finding
from bn_inception.reproduction.parts import Command, command_for, runs_anchor

try:
  import jinja2
except ImportError as error:
  raise UserError("The report needs jinja2, the extra 'report' of this project: pip install -e '.[report]'.") from error

# Scales of §4.2 in the order of what they can tell; the first is always shown.
_SCALES = ("cifar10_full", "cifar10", "imagenet", "quickstart")
_HEADLINES = ("speedup", "bn_alone", "x5_higher", "x30_higher", "sigmoid_trains")


class Group(NamedTuple):
  """Claims that are asked at the same scales: rows of (claim, findings in the order of the scales, commands)."""

  title: str
  anchor: str
  scales: Sequence[str]
  rows: Sequence[tuple[Claim, Sequence[Finding], Command]]


class RunsRow(NamedTuple):
  """The runs of an experiment."""

  anchor: str
  name: str
  seeds: str
  steps: str
  status: str
  dates: str
  revisions: str
  devices: str
  command: Command


def write(workdir: str, output: str) -> pathlib.Path:
  """Builds OUTPUT/report.html, with the pictures as OUTPUT/FIGURE/SCALE.png too.

  Args:
    workdir: holds runs SCALE/EXPERIMENT/SEED at any depth: a --workdir of `reproduce.py`, or an archive of it.
    output: the folder to write to.

  Returns:
    The page.

  Raises:
    FileNotFoundError: if `workdir` does not exist or holds no runs.
  """
  root, folder = pathlib.Path(workdir), pathlib.Path(output)
  results = measured.collect(root)
  if not results:
    raise FileNotFoundError(f"{workdir} holds no runs: make some with scripts/reproduce.py, e.g. figure1.")
  groups = _groups(results, root)
  first = next(
    (scale for scale in _SCALES if {"inception", "bn_x5"} <= measured.finished(results.get(scale, {})).keys()), None
  )
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("bn_inception.reproduction"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  text = environment.get_template("report.html").render(
    headlines=_headlines(groups),
    newest=measured.newest(results),
    missing=_missing(results),
    groups=groups,
    counts=_counts(groups),
    confidence=verdicts.CONFIDENCE,
    power=verdicts.POWER,
    margin=-100 * claims.NO_WORSE,
    many=claims.MANY,
    first=first and sections.first(first, measured.finished(results[first]), folder),
    scales=[
      sections.of_scale(scale, results[scale], measured.evaluations(root, scale), folder)
      for scale in (*_SCALES, "mnist")
      if scale in results
    ],
    costs=[sections.full_scale(), *sections.compiled(root / "accelerator_cost")],
    runs=_runs(results),
    packages=_packages(results),
    claim_name=wording.name_of,
    runs_anchor=runs_anchor,
  )
  folder.mkdir(parents=True, exist_ok=True)
  page = folder / "report.html"
  run_directory.replace_file(page, text)
  return page


def _groups(results: measured.Results, root: pathlib.Path) -> list[Group]:
  """Every claim at every scale that has runs for it."""
  mnist = tuple(claim for claim in claims.CLAIMS if claim.figure == "figure1")
  imagenet = tuple(claim for claim in claims.CLAIMS if claim.key in claims.IMAGENET)
  others = tuple(claim for claim in claims.CLAIMS if claim not in mnist + imagenet)

  def has(scale: str, names: Iterable[str]) -> bool:
    return any(name in results.get(scale, {}) for name in names)

  mnist_scales = [scale for scale in ("mnist", "quickstart") if has(scale, ("mnist_bn", "mnist_plain"))] or ["mnist"]
  scales = [scale for scale in _SCALES if scale == _SCALES[0] or has(scale, (*paper.FIGURE_3, "ensemble"))]
  groups = []
  for title, anchor, group_claims, group_scales in (
    ("Inception (abstract, §4.2)", "claims-inception", others, scales),
    ("MNIST (§4.1)", "claims-mnist", mnist, mnist_scales),
    ("What only ImageNet can answer", "claims-imagenet", imagenet, ["imagenet"]),
  ):
    rows = []
    for claim in group_claims:
      findings = [
        judging.judge(claim, results.get(scale, {}), measured.evaluations(root, scale)) for scale in group_scales
      ]
      commands = [command_for(claim.figure, scale, results.get(scale, {})) for scale in group_scales]
      rows.append((claim, findings, Command(tuple(line for command in commands for line in command.commands))))
    groups.append(Group(title, anchor, group_scales, rows))
  return groups


def _counts(groups: Sequence[Group]) -> list[tuple[str, str]]:
  """(scale, '3 confirmed, ...') of every column."""
  counts: dict[str, dict[str, int]] = {}
  for group in groups:
    for _, findings, _ in group.rows:
      for scale, finding in zip(group.scales, findings):
        of_scale = counts.setdefault(scale, {})
        of_scale[finding.verdict] = of_scale.get(finding.verdict, 0) + 1
  kinds = (verdicts.CONFIRMED, verdicts.REFUTED, verdicts.UNDECIDED, verdicts.NOT_MEASURED, verdicts.SHOWN)
  return [
    (scale, ", ".join(f"{of_scale[kind]} {kind}" for kind in kinds if kind in of_scale))
    for scale, of_scale in counts.items()
  ]


def _headlines(groups: Sequence[Group]) -> list[tuple[Claim, str, Finding]]:
  """Five claims, each at the first scale that has its runs: (claim, scale, finding)."""
  lines = []
  for claim, scales, findings in (
    (claim, group.scales, findings) for group in groups for claim, findings, _ in group.rows if claim.key in _HEADLINES
  ):
    place = next((place for place, finding in enumerate(findings) if finding.verdict != verdicts.NOT_MEASURED), 0)
    lines.append((claim, scales[place], findings[place]))
  return sorted(lines, key=lambda line: _HEADLINES.index(line[0].key))


def _missing(results: measured.Results) -> list[str]:
  """What the first scale still lacks of each figure: ['of BN-x5, BN-x30 there are 1 of 3 seeds']."""
  scale = _SCALES[0]
  finished = measured.finished(results.get(scale, {}))
  planned: dict[str, int] = {}
  for figure, (make_plan, scales, seeds) in plans.FIGURES.items():
    if scale in scales and figure != "sweep":  # Sweeps choose rates, and answer no claim.
      for name, runs in collections.Counter(map(plans.experiment_of, make_plan(scale, seeds).runs)).items():
        planned[name] = max(runs, planned.get(name, 0))
  lacking: dict[tuple[int, int], list[str]] = {}
  for name, count in planned.items():
    if (there := len(finished.get(name, []))) < count:
      lacking.setdefault((there, count), []).append(wording.name_of(name))
  return [
    f"of {', '.join(names)} there are {there} of {count} {'networks' if names == ['the ensemble'] else 'seeds'}"
    for (there, count), names in sorted(lacking.items())
  ]


def _runs(results: measured.Results) -> list[RunsRow]:
  """Every experiment, with the commands that make its runs again."""
  rows = []
  for scale, experiments in results.items():
    known = {
      run.name: run
      for make_plan, scales, seeds in plans.FIGURES.values()
      if scale in scales
      for run in make_plan(scale, max(seeds, max(map(len, experiments.values())))).runs
    }
    for experiment, runs in experiments.items():
      commands = []
      for run in runs:
        name = f"{scale}/{experiment}/{run.seed}"
        same = name in known and _settings(json.loads(known[name].config().to_json())) == _settings(run.config)
        commands.append(known[name].command("runs/paper") if same else f"{name} was made with another config")
      rows.append(
        RunsRow(
          runs_anchor(scale, experiment),
          f"{scale}/{experiment}",
          _distinct(run.seed for run in runs),
          _distinct(f"{run.status.get('step', 0):,}" for run in runs),
          _distinct(run.status.get("status", "") for run in runs),
          _distinct(run.status.get("time", "")[:10] for run in runs),
          _distinct(_revision(run.status) for run in runs),
          _distinct(run.status.get("devices", "") for run in runs),
          Command(tuple(commands)),
        )
      )
  return rows


def _distinct(values: Iterable[str]) -> str:
  return ", ".join(dict.fromkeys(values))


def _revision(status: dict[str, Any]) -> str:
  revision = status.get("git_revision") or ""  # 40 digits, and maybe "+changes".
  return revision[:10] + revision[40:]


def _packages(results: measured.Results) -> str:
  return ", ".join(
    sorted(
      {
        f"{name} {version}"
        for experiments in results.values()
        for runs in experiments.values()
        for run in runs
        for name, version in run.status.get("packages", {}).items()
      }
    )
  )


def _settings(config: dict) -> dict:
  """All but where the data lie."""
  return config | {"data": config["data"] | {"dir": ""}}
