#!/usr/bin/env bash
# One task of a cluster job (slurm.sh starts the task). The task runs a command. FILE keeps the first exit code of all
# tasks that is not 0, because this code names the cause. Tasks that end later, with the job step, have codes that tell
# nothing.
#
#   scripts/launch/task.sh FILE COMMAND...
set -u
file=$1
shift
# The scheduler signals this shell too. Only the command answers the signal.
trap : TERM INT
"$@"
code=$?
if [ "$code" -ne 0 ]; then
  (set -o noclobber && echo "$code" > "$file") 2> /dev/null
fi
# After these codes every task ends by itself. No task may be killed while it writes a checkpoint.
case $code in
  3 | 143) exit 0 ;;
esac
exit "$code"
