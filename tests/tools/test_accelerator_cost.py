"""What is read from a compiled program, and the arithmetic from there to hours; with libtpu, a compiled network."""

import dataclasses
import importlib.util
import re

import pytest

from bn_inception import config_checks
from bn_inception.configs import bn_x5
from bn_inception.tools import accelerator_cost
from bn_inception.tools.accelerator_cost import Collective, Cost, Program

# A tensor of 2 MiB in memory is brought on chip in two slices, used there with a result in memory, summed over chips,
# and a loop reads another of 1 MiB.
HLO = """HloModule example

%body (p: (f32[262144], s32[])) -> (f32[262144], s32[]) {
  %p = (f32[262144]{0:T(1024)}, s32[]) parameter(0)
  %a = f32[262144]{0:T(1024)} get-tuple-element(%p), index=0
  ROOT %f = f32[262144]{0:T(1024)S(1)} fusion(%a), kind=kLoop, calls=%c, backend_config={"estimated_cycles":"10"}
}

%unused (q: f32[262144]) -> f32[262144] {
  %q = f32[262144]{0} parameter(0)
  ROOT %n = f32[262144]{0} negate(%q)
}

ENTRY %main (x: f32[2,262144]) -> f32[8] {
  %x = f32[2,262144]{1,0:T(2,128)} parameter(0)
  %s0 = (f32[2,262144]{1,0:T(2,128)}, f32[1,262144]{1,0:T(1,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:1]}
  %s1 = (f32[2,262144]{1,0:T(2,128)}, f32[1,262144]{1,0:T(1,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[1:2]}
  %d0 = f32[1,262144]{1,0:T(1,128)S(1)} slice-done(%s0)
  %d1 = f32[1,262144]{1,0:T(1,128)S(1)} slice-done(%s1)
  %w = f32[2,262144]{1,0:T(2,128)S(1)} custom-call(%d0, %d1), custom_call_target="ConcatBitcast"
  %r = f32[8]{0:T(128)} fusion(%w), calls=%c, metadata={op_name="bn/sum"}, backend_config={"estimated_cycles":"7"}
  %t = (f32[262144], s32[]) while(%init), condition=%cond, body=%body
  %g = bf16[16,4]{1,0} all-gather(%r), channel_id=3, dimensions={0}
  %h = bf16[16,4]{1,0} all-gather(%r), channel_id=3, dimensions={0}
  ROOT %y = (f32[8]{0}, f32[2]{0}) all-reduce(%r, %r), channel_id=4, to_apply=%sum
}
"""


def test_memory_traffic_counts_each_slice_once_and_leaves_out_on_chip_memory():
  entry = [operation for once, operation in accelerator_cost.operations(HLO) if once]
  body = [operation for once, operation in accelerator_cost.operations(HLO) if not once]
  memory = {operation.kind: 0.0 for operation in entry}
  for operation in entry:
    memory[operation.kind] += operation.memory_bytes
  assert memory["slice-start"] == 2 * 2**20 and memory["custom-call"] == 0 and memory["fusion"] == 8 * 4
  assert [operation.memory_bytes for operation in body] == [2**20]
  assert sum(operation.cycles for operation in entry) == 7 and body[0].cycles == 10


def test_traffic_by_the_kind_of_work_adds_up_to_that_of_all_operations():
  traffic = [(operation, 1 if once else 5) for once, operation in accelerator_cost.operations(HLO)]
  kinds = accelerator_cost.by_layer_kind(traffic)
  assert list(kinds) == sorted(kinds, key=lambda kind: -kinds[kind][0])
  assert kinds["copies between memories"][1] == 2 * 2**20  # Two slices of 1 MiB.
  assert sum(memory for _, memory in kinds.values()) == sum(times * one.memory_bytes for one, times in traffic)
  assert kinds["everything else, forward"][1] >= 5 * 2**20  # The loop's tensor, five times.
  cost = Cost("v5e:2x2", 4, dataclasses.replace(program(1.0, 64), by_kind=kinds), program(1.0, 256), None)
  text = accelerator_cost.describe(cost, bn_x5.get_config("cifar10"), 640, None)
  assert re.search(r"copies between memories +\d\.\d\d \(0\.00\)", text)


def test_collectives_are_counted_by_their_channel():
  assert accelerator_cost.collectives(HLO) == {"all-reduce": Collective(1, 40), "all-gather": Collective(1, 128)}


def program(seconds: float, images: int) -> Program:
  """One that takes `seconds` of arithmetic on a v5e."""
  return Program(images, 0, 0, 0, seconds * 197e12, 0.0, 0.0, 2 * seconds * 1.5e9, {}, 0.0)


def test_hours_are_those_of_steps_and_evaluations():
  config = bn_x5.get_config("cifar10")
  config.batch_size, config.num_steps, config.eval_every, config.eval.batch_size = 64, 1_000, 300, 256
  config.eval.population_batches = 10
  cost = Cost("v5e:2x2", 4, program(3.6, 64), program(1.8, 256), program(0.9, 64))
  training, evaluation = 1_000 * 3.6, 4 * (2 * 3 * 1.8 + (640 / 64 + 10) * 0.9)  # 640 examples are 3 calls.
  assert cost.hours(config, 640)["training"] == pytest.approx((training / 3600, 2 * training / 3600))
  assert cost.hours(config, 640)["evaluation"] == pytest.approx((evaluation / 3600, 2 * evaluation / 3600))
  config.eval.statistics = ("running",)
  assert cost.hours(config, 640)["evaluation"][0] == pytest.approx(4 * 3 * 1.8 / 3600)


def test_time_is_bound_by_the_data_sheet():
  v5e = accelerator_cost.CHIPS["v5e"]
  times = Program(1, 0, 0, 0, 197e12, 0, 819e9, 3e9, {"all-reduce": Collective(2, 200_000_000_000)}, 0).seconds(v5e, 4)
  assert times == pytest.approx({"arithmetic": 1, "memory": 1, "interconnect": 1.5, "compiler's schedule": 2})


def test_what_is_missing_or_unknown_is_a_sentence(monkeypatch):
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find_spec(name))
  with pytest.raises(config_checks.ConfigError, match=r"libtpu: pip install -e '\.\[tpu\]'"):
    accelerator_cost.topology_mesh("v5e:2x2")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
  with pytest.raises(config_checks.ConfigError, match="no topology 'v5e:3x3'.*2x2, 2x4, 4x4"):
    accelerator_cost.topology_mesh("v5e:3x3")
  config = bn_x5.get_config("cifar10")
  config.data.name = "flowers"
  with pytest.raises(config_checks.ConfigError, match="flowers.*--eval_examples"):
    accelerator_cost.report(config, "", "v5e:2x2")


@pytest.mark.slow
@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: make test-optional")
@pytest.mark.parametrize("group_size", [8, 0])
def test_collectives_of_a_small_network_on_a_tpu(group_size):
  """Four chips: gradients in float32, statistics with at most one all-gather a depth of a module and direction."""
  config = bn_x5.get_config("cifar10")
  config.model.width, config.dtype, config.batch_size, config.batch_norm.group_size = 0.1, "bfloat16", 32, group_size
  config.eval.statistics = ("running",)
  cost = accelerator_cost.measure(config, "v5e:2x2")
  found = cost.train.collectives
  assert "all-to-all" not in found and "collective-permute" not in found
  gathers = found.get("all-gather", Collective(0, 0)).count
  # Three depths in each of ten modules and three layers in the stem, forward and backward.
  assert gathers == 1 if group_size else gathers <= 2 * (3 * 10 + 3)
  assert found["all-reduce"].count <= 4
  import jax

  from bn_inception import models

  shapes = jax.eval_shape(
    lambda: models.build(config).init(jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)), train=False)
  )["params"]
  kernels = sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(shapes) if path[-1].key == "kernel")
  assert found["all-reduce"].bytes >= 4 * kernels
