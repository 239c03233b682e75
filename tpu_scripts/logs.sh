#!/usr/bin/env bash
# Shows the output of what run.sh started, or fetches it from every worker.
#
#   tpu_scripts/logs.sh --name NAME --zone ZONE [options]
#
#   --name NAME        of the slice
#   --zone ZONE        such as us-central2-b
#   --project PROJECT  (default: gcloud's own)
#   --dir DIR          on the workers (default jaxllm)
#   --worker N         whose log: a number or all (default 0)
#   --lines N          how many last lines (default 50)
#   --follow           go on showing new lines
#   --fetch FOLDER     copy the whole logs of that worker into a new or empty local FOLDER instead
#   --dry-run          prints the commands instead of running them

# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DIR=jaxllm WORKER=0 LINES_SHOWN=50 FOLLOW='' FETCH=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --dir) need_value "$@"; DIR=$2; shift 2 ;;
    --worker) need_value "$@"; WORKER=$2; shift 2 ;;
    --lines) need_value "$@"; LINES_SHOWN=$2; shift 2 ;;
    --follow) FOLLOW=1; shift ;;
    --fetch) need_value "$@"; FETCH=$2; shift 2 ;;
    *) common_option "$@"; shift "$TAKEN" ;;
  esac
done
need_slice
if [[ ! $WORKER =~ ^([0-9]+|all)$ ]]; then fail "--worker takes a number or all, got $WORKER"; fi
if [[ ! $LINES_SHOWN =~ ^[0-9]+$ ]]; then fail "--lines takes a number, got $LINES_SHOWN"; fi

if [[ -n $FETCH ]]; then
  if [[ $WORKER == all ]]; then fail '--fetch takes one --worker: all of them have the same names'; fi
  copy=(gcloud compute tpus tpu-vm scp --recurse "$NAME:$DIR/logs" "$FETCH" --zone "$ZONE")
  if [[ -n $PROJECT ]]; then copy+=(--project "$PROJECT"); fi
  run "${copy[@]}" --worker "$WORKER"
  exit
fi
tail=(tail -n "$LINES_SHOWN")
if [[ -n $FOLLOW ]]; then tail+=(-F); fi
on_workers "$WORKER" "$(quoted "${tail[@]}" "$DIR/logs/run.log")"
