#!/usr/bin/env bash
# Starts one command on every worker of a slice; it goes on when this shell or the network ends.
#
#   tpu_scripts/run.sh --name NAME --zone ZONE [options] -- COMMAND...
#   tpu_scripts/run.sh --name pod --zone us-central2-b -- \
#       .venv/bin/python -m jaxllm.train --config=configs/llama.py:1b --workdir=/mnt/runs/1b
#
#   --name NAME        of the slice
#   --zone ZONE        such as us-central2-b
#   --project PROJECT  (default: gcloud's own)
#   --dir DIR          on the workers, where the command runs (default jaxllm)
#   --stop             sends SIGTERM to what the last run.sh started, which saves and ends
#   --dry-run          prints the commands instead of running them
#
# Output goes to logs/run.log in DIR on each worker, with the process id in logs/run.pid; logs.sh
# shows it. A second command is refused while the first one runs.

# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DIR=jaxllm STOP='' COMMAND=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --dir) need_value "$@"; DIR=$2; shift 2 ;;
    --stop) STOP=1; shift ;;
    --) shift; COMMAND=("$@"); break ;;
    *) common_option "$@"; shift "$TAKEN" ;;
  esac
done
need_slice

d=$(quoted "$DIR")
if [[ -n $STOP ]]; then
  on_workers all "kill -TERM \$(cat $d/logs/run.pid)"
  exit
fi
if [[ ${#COMMAND[@]} -eq 0 ]]; then fail 'the command is missing: put it after --'; fi

# trap, setsid, nohup: neither the end of the ssh session nor its terminal reaches the command.
on_workers all "set -e; trap '' HUP; cd $d; mkdir -p logs; \
if ps -o stat= -p \"\$(cat logs/run.pid 2>/dev/null)\" 2>/dev/null | grep -qv '^Z'; \
then echo 'a command is still running; stop it with run.sh --stop' >&2; exit 1; fi; \
setsid nohup $(quoted "${COMMAND[@]}") >> logs/run.log 2>&1 < /dev/null & echo \$! > logs/run.pid"
