"""Images a second with BN and with BN folded away: python scripts/benchmark_inference.py --checkpoint=released/bn_x5"""

from absl import flags

from bn_inception import command_line

_CHECKPOINT = command_line.define_path(
  "checkpoint", None, "Run directory, release folder or the file of a peer.", hub=True, required=True
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images at a time.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 50, "Batches that each of the two classifies, in turn.", lower_bound=1)


def main() -> None:
  from bn_inception.tools import benchmark_inference

  print(benchmark_inference.folded_and_unfolded(_CHECKPOINT.value, _BATCH_SIZE.value, _ROUNDS.value).table())


if __name__ == "__main__":
  command_line.run(main)
