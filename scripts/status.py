"""Shows how runs stand: python scripts/status.py runs/bn_x5 runs/paper

A folder that holds runs stands for all of them. A run that is "silent" calls itself running, but has written nothing
for a quarter of an hour: it was killed, or hangs.
"""

import argparse

if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("runs", nargs="+", help="run directories, or folders that hold some")
  runs = parser.parse_args().runs

  from bn_inception import run_table
  from bn_inception.errors import UserError

  try:
    print(run_table.table(runs))
  except UserError as error:
    parser.error(str(error))
