# Arguments and the one place that runs gcloud; the other scripts source it. Not run by itself.
# shellcheck shell=bash disable=SC2034

set -euo pipefail

SCRIPT=$(basename "$0")
NAME='' ZONE='' PROJECT='' DRY_RUN=''

# Prints the script's own leading comment, which is its help.
usage() {
  sed -n '2,/^$/{s/^# \{0,1\}//;p;}' "$0"
}

fail() {
  printf '%s: %s\nTry %s --help.\n' "$SCRIPT" "$1" "$SCRIPT" >&2
  exit 2
}

# Takes the options that every script has; leaves how many words it took in TAKEN.
common_option() {
  TAKEN=0
  case $1 in
    --help | -h) usage; exit 0 ;;
    --dry-run) DRY_RUN=1; TAKEN=1 ;;
    --name | --zone | --project)
      need_value "$@"
      case $1 in
        --name) NAME=$2 ;;
        --zone) ZONE=$2 ;;
        --project) PROJECT=$2 ;;
      esac
      TAKEN=2
      ;;
    *) fail "unknown argument: $1" ;;
  esac
}

need_value() {
  if [[ $# -lt 2 || -z $2 || $2 == --* ]]; then fail "$1 needs a value"; fi
}

# need --zone "$ZONE" us-central2-b: fails where the value is empty, with an example.
need() {
  if [[ -z $2 ]]; then fail "$1 is missing, such as $1 $3"; fi
}

need_slice() {
  need --name "$NAME" my-slice
  need --zone "$ZONE" us-central2-b
}

# Runs a command, or prints it so that it can be pasted into a shell.
run() {
  if [[ -n $DRY_RUN ]]; then
    local words
    printf -v words '%q ' "$@"
    printf '%s\n' "${words% }"
  else
    "$@"
  fi
}

# gcloud compute tpus tpu-vm VERB NAME --zone ... and further words.
tpu_vm() {
  local verb=$1
  shift
  local command=(gcloud compute tpus tpu-vm "$verb" "$NAME" --zone "$ZONE")
  if [[ -n $PROJECT ]]; then command+=(--project "$PROJECT"); fi
  run "${command[@]}" "$@"
}

# Runs a line of shell on workers: on_workers all 'date'.
on_workers() {
  tpu_vm ssh --worker "$1" --command "$2"
}

# Quotes words for the shell of another machine.
quoted() {
  local words
  printf -v words '%q ' "$@"
  printf '%s' "${words% }"
}
