#!/usr/bin/env bash
# One task of a cluster job (slurm.sh starts it): runs a command and keeps in a file the first exit code, of all tasks,
# that is not 0. That is the cause; the codes of the tasks that are then ended with the job step tell nothing.
#
#   scripts/launch/task.sh FILE COMMAND...
set -u
file=$1
shift
# The scheduler signals this shell too: the command answers.
trap : TERM INT
"$@"
code=$?
if [ "$code" -ne 0 ]; then
  (set -o noclobber && echo "$code" > "$file") 2> /dev/null
fi
# After these every task comes to its end by itself, so that none may be killed while it writes a checkpoint.
case $code in
  3 | 143) exit 0 ;;
esac
exit "$code"
