"""Which values of its config a run may change when the run resumes."""

from collections.abc import Sequence

from bn_inception.config_checks import ConfigError

# These keys change no number of the run.
FREE = (
  "data.dir",
  "data.cache",
  "eval.batch_size",
  "steps_per_call",
  "checkpoint_every",
  "checkpoint_every_minutes",
  "keep_latest",
  "keep_best",
  "profile_at_step",
  "stall_minutes",
  "stall_limit_minutes",
)
# The names begin so of keys that change the run from the resumed step on: its rate and the schedule of the rate, L2,
# length, evaluations, how often it logs, and what it does with a damaged record.
_ALLOWED = (
  "learning_rate",
  "num_steps",
  "weight_decay",
  "eval.",
  "data.eval_split",
  "eval_every",
  "log_every",
  "data.on_error",
)


def matter(changed: Sequence[str]) -> list[str]:
  """Those of the changed fields that may change a number of the run."""
  return [name for name in changed if name not in FREE and name != "version"]


def check(changed: Sequence[str], allowed: bool) -> None:
  """Checks the fields in which a config differs from the config of the run so far, `run_directory.changed_fields`.

  Args:
    changed: names of fields.
    allowed: whether the user has said that the config may change.

  Raises:
    ConfigError: if a field must not change, or may change only when allowed; the error names these fields.
  """
  changed = matter(changed)
  if fixed := [name for name in changed if not name.startswith(_ALLOWED)]:
    raise ConfigError(
      f"The config differs from that of the run so far in {', '.join(fixed)}: resume with the run's "
      "own config, or use a new --workdir."
    )
  if changed and not allowed:
    raise ConfigError(
      f"The config differs from that of the run so far in {', '.join(changed)}: give "
      "--allow_config_change to go on with the new config, resume with the run's own config, or use a new "
      "--workdir."
    )
