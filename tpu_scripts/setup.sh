#!/usr/bin/env bash
# Copies this checkout to every worker of a slice and installs what it needs there.
#
#   tpu_scripts/setup.sh --name NAME --zone ZONE [options]
#
#   --name NAME        of the slice
#   --zone ZONE        such as us-central2-b
#   --project PROJECT  (default: gcloud's own)
#   --dir DIR          on the workers, below the home directory (default jaxllm)
#   --python PYTHON    on the workers, 3.11 or newer (default python3.11; installed by apt if absent)
#   --dry-run          prints the commands instead of running them
#
# Only committed files are copied. Run it again after a commit; what is installed is kept.

# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DIR=jaxllm PYTHON=python3.11
while [[ $# -gt 0 ]]; do
  case $1 in
    --dir) need_value "$@"; DIR=$2; shift 2 ;;
    --python) need_value "$@"; PYTHON=$2; shift 2 ;;
    *) common_option "$@"; shift "$TAKEN" ;;
  esac
done
need_slice

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
archive=${TMPDIR:-/tmp}/jaxllm-$NAME.tar.gz
run git -C "$root" archive --format=tar.gz --output="$archive" HEAD

# gcloud's scp takes its options after the files.
copy=(gcloud compute tpus tpu-vm scp "$archive" "$NAME:jaxllm.tar.gz" --zone "$ZONE" --worker all)
if [[ -n $PROJECT ]]; then copy+=(--project "$PROJECT"); fi
run "${copy[@]}"

d=$(quoted "$DIR") p=$(quoted "$PYTHON")
on_workers all "set -e; mkdir -p $d; tar -xzf jaxllm.tar.gz -C $d; cd $d; \
command -v $p >/dev/null || { sudo apt-get update -q; sudo apt-get install -q -y $p $p-venv; }; \
$p -m venv .venv; .venv/bin/python -m pip install -q -r requirements.txt 'jax[tpu]'; \
.venv/bin/python -c 'import jax; print(jax.__version__)'"
