#!/usr/bin/env bash
# Creates a TPU VM slice.
#
#   tpu_scripts/create.sh --name NAME --zone ZONE --type TYPE [options]
#
#   --name NAME        of the slice
#   --zone ZONE        such as us-central2-b
#   --type TYPE        accelerator type, such as v4-32 or v5litepod-16
#   --version VERSION  software image (default tpu-ubuntu2204-base)
#   --project PROJECT  (default: gcloud's own)
#   --spot             cheaper, may be taken away at any time; runs resume by themselves
#   --dry-run          prints the commands instead of running them

# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

TYPE='' VERSION=tpu-ubuntu2204-base SPOT=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --type) need_value "$@"; TYPE=$2; shift 2 ;;
    --version) need_value "$@"; VERSION=$2; shift 2 ;;
    --spot) SPOT=1; shift ;;
    *) common_option "$@"; shift "$TAKEN" ;;
  esac
done
need_slice
need --type "$TYPE" v4-32

options=(--accelerator-type "$TYPE" --version "$VERSION")
if [[ -n $SPOT ]]; then options+=(--spot); fi
tpu_vm create "${options[@]}"
