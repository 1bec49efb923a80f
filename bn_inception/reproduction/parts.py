"""What the page is made of: tables, pictures, commands and links, as data; templates/report.html says how they look."""

import base64
import io
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from bn_inception import curves
from bn_inception.reproduction import measured, plans
from bn_inception.reproduction.measured import Result


class Link(NamedTuple):
  """A cell that leads to another place of the page."""

  text: str
  target: str


class Command(NamedTuple):
  """Commands that are folded away."""

  commands: tuple[str, ...]


Cell = str | int | Link | Command


class Table(NamedTuple):
  """Rows of cells; `numeric`: which columns hold numbers."""

  headings: Sequence[str]
  rows: Sequence[Sequence[Cell]]

  @property
  def numeric(self) -> list[bool]:
    columns = [
      [str(row[place]) for row in self.rows if row[place] not in ("", None)] for place in range(len(self.headings))
    ]
    return [bool(column) and all(re.match(r"[-+]?\d|not ", text) for text in column) for column in columns]


class Picture(NamedTuple):
  """A picture for wide and one for narrow pages, as data URLs, with what there is to say of it."""

  title: str
  wide: str
  narrow: str
  remark: str
  command: Command


class Block(NamedTuple):
  """A heading with what stands below it; every part may be empty."""

  title: str
  anchor: str
  picture: Picture | None = None
  tables: Sequence[Table] = ()
  remark: str = ""
  command: Command | None = None


class Section(NamedTuple):
  """A chapter of the page."""

  title: str
  anchor: str
  blocks: Sequence[Block]
  remark: str = ""


def command_for(figure: str, scale: str, experiments: dict[str, list[Result]]) -> Command:
  """The command for a figure with as many seeds as it was made with; none where it is not planned at that scale."""
  make_plan, scales, default_seeds = plans.FIGURES[figure]
  if scale not in scales:
    return Command(())
  experiments = measured.finished(experiments)
  planned = [plans.experiment_of(run) for run in make_plan(scale, 2).runs]
  # Some runs are made once whatever the seeds; the ablation begins and ends with runs of Figure 3, which has its own.
  seeds = max(
    (
      len(experiments[name])
      for name in set(planned) & set(experiments)
      if planned.count(name) == 2 and not (figure == "ablation" and name in plans.VARIANTS)
    ),
    default=default_seeds,
  )
  return Command(
    (
      f"python scripts/reproduce.py {figure}"
      + (f" --scale={scale}" if scale != scales[0] else "")
      + (f" --seeds={seeds}" if seeds != default_seeds else "")
      + " --workdir=runs/paper --data_dir=$TFDS_DATA_DIR",
    )
  )


def runs_anchor(scale: str, experiment: str) -> str:
  return f"runs-{scale}-{experiment}".replace("/", "-")


def draw_picture(
  draw: Callable[..., Figure | None],
  arguments: tuple[Any, ...],
  title: str,
  path: pathlib.Path,
  remark: str,
  command: Command,
) -> Picture | None:
  """Draws a figure of figures.py for wide and narrow pages, and keeps the wide one as a file; None without runs."""
  figure = draw(*arguments)
  if figure is None:
    return None
  path.parent.mkdir(parents=True, exist_ok=True)
  curves.save(figure, path)
  narrow = io.BytesIO()
  draw(*arguments, narrow=True).savefig(narrow, dpi=130)
  return Picture(title, _data_url(path.read_bytes()), _data_url(narrow.getvalue()), remark, command)


def _data_url(png: bytes) -> str:
  return "data:image/png;base64," + base64.b64encode(png).decode()
