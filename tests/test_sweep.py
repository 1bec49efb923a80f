"""A sweep: its grid, its names, what is refused, and tiny runs that are cut, diverge and go on."""

import jax
import pytest

from bn_inception import config_keys, hosts, run_directory, sweep, train
from bn_inception.configs import bn_x5, mnist
from bn_inception.reproduction import execution


@pytest.fixture
def tiny(digits_dir):
  """A config of four steps."""
  config = mnist.get_config("bn,quickstart")
  config.data.dir = digits_dir
  config.num_steps, config.log_every, config.eval_every, config.checkpoint_every, config.steps_per_call = 4, 2, 2, 2, 2
  config.eval.population_batches, config.eval.sigmoid_input_units = 1, ()
  return config


@pytest.fixture
def on_one_device(monkeypatch):
  """The names of the runs that are made; they are real, on one device."""
  made = []
  real = train.train_and_evaluate

  def run(config, workdir, **options):
    made.append("/".join(workdir.parts[-2:]))
    return real(config, workdir, jax.devices()[:1], **options)

  monkeypatch.setattr(train, "train_and_evaluate", run)
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  monkeypatch.setattr(execution, "measure", lambda config: (1.0, 1e12))
  return made


def test_several_settings_make_the_grid_of_every_seed():
  config = bn_x5.get_config("quickstart")
  config.seed = 5
  tasks = sweep.tasks(config, ["learning_rate=0.01,3e-2", "batch_size=32,64", "data.shuffle=none,global"], seeds=2)
  assert len(tasks) == len({task.name for task in tasks}) == 16
  assert tasks[0].name == "learning_rate=0.01/batch_size=32/data.shuffle=none/seed5"
  assert tasks[-1].name == "learning_rate=0.03/batch_size=64/data.shuffle=global/seed6"
  last = tasks[-1].config
  assert (last.learning_rate, last.batch_size, last.data.shuffle, last.seed) == (0.03, 64, "global", 6)
  # As with --config.batch_size=64 the same examples are seen in half of the steps.
  assert last.num_steps == tasks[0].config.num_steps / 2 and config.batch_size == 32
  assert {task.config.seed for task in tasks[:8]} == {5}  # Every combination comes before the second seed.


@pytest.mark.parametrize(
  "setting, key, values",
  [
    ("weight_decay=0,2e-5", "weight_decay", [0.0, 2e-5]),
    ("batch_norm.enabled=True,false", "batch_norm.enabled", [True, False]),
    ("config.dtype=float32,bfloat16", "dtype", ["float32", "bfloat16"]),
    ("data.train_split=train[:50%],train", "data.train_split", ["train[:50%]", "train"]),
    ('eval.statistics=("running",),("running","batch")', "eval.statistics", [("running",), ("running", "batch")]),
  ],
)
def test_values_are_read_as_the_key_has_them(setting, key, values):
  read = sweep._parse(bn_x5.get_config("quickstart"), setting)
  assert read == (key, values) and list(map(type, read[1])) == list(map(type, values))


@pytest.mark.parametrize(
  "settings, words",
  [
    (["learning_rat=0.1"], "no such key; did you mean learning_rate?"),
    (["learning_rate"], "write --set KEY=VALUE,VALUE"),
    (["learning_rate=0.1,much"], "'much' is not possible, it must be a finite number, greater than 0"),
    (["learning_rate=0.1,-1"], "learning_rate is -1.0: it must be a finite number, greater than 0"),
    (["batch_size=32,2.5"], "2.5 is not possible, it must be a whole number"),
    (["learning_rate=0.1,1e-1"], "names a value twice"),
    (["learning_rate=0.1", "learning_rate=0.2"], "is given twice"),
    (["seed=0,1"], "give --seeds=N"),
    (["batch_norm.group_size=32,24"], "BN groups of 24"),
  ],
)
def test_bad_values_are_refused_before_the_first_run(tiny, tmp_path, on_one_device, settings, words):
  config = bn_x5.get_config("quickstart")
  config.data.dir = tiny.data.dir
  with pytest.raises(config_keys.ConfigError) as error:
    sweep.sweep(config, tmp_path / "runs", settings)
  assert words in str(error.value) and not on_one_device and not (tmp_path / "runs").exists()


def test_a_dry_run_makes_nothing(tiny, tmp_path, on_one_device, caplog):
  caplog.set_level("INFO")
  assert sweep.sweep(tiny, tmp_path / "runs", ["momentum=0,0.5"], seeds=2, dry_run=True) == "planned"
  assert "4 runs, 0 of them finished" in caplog.text and "momentum=0.5/seed1" in caplog.text
  assert not on_one_device and not (tmp_path / "runs").exists()


def test_a_diverging_run_stops_no_other_and_the_same_command_goes_on(
  tiny, tmp_path, on_one_device, monkeypatch, caplog
):
  """A rate of 1e38 diverges. The program is asked to stop in the second run, after its first call."""
  caplog.set_level("INFO")
  make = lambda **part: sweep.sweep(tiny, tmp_path, ["learning_rate=1e38,0.1"], seeds=2, **part)
  names = [f"learning_rate={rate}/seed{seed}" for seed in (0, 1) for rate in ("1e+38", "0.1")]
  with monkeypatch.context() as patch:
    patch.setattr(hosts, "poll", lambda: hosts.Due(stop=len(on_one_device) == 2, save=False))
    assert make() == "preempted" and on_one_device == names[:2]
  assert make(index=0, count=2) == "diverged"  # Nothing but runs at 1e38 are in this part.
  assert on_one_device == [*names[:2], names[2]]
  assert make() == "done" and on_one_device == [*names[:2], names[2], names[1], names[3]]
  assert make() == "done" and len(on_one_device) == 5
  states = [run_directory.read_status(tmp_path / name)["status"] for name in names]
  assert states == ["diverged", "done", "diverged", "done"]
  messages = [
    record.getMessage() for record in caplog.records if record.name.startswith("bn_inception")
  ]  # Not Orbax's.
  starts = [message.split(" (")[0].split("\n")[0] for message in messages]
  first = starts.index("What will run:")
  assert starts[first : first + 3] == ["What will run:", "Compiling the training step", "Compiling the evaluation"]
  assert not any("Parameters:" in message for message in messages)
  rows = messages[-1].splitlines()
  assert rows[1].startswith("learning_rate=0.1 ") and "2, 2 diverged" in rows[2]
