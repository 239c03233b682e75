#!/usr/bin/env bash
# Deletes a TPU VM slice with everything on its disks; asks first.
#
#   tpu_scripts/delete.sh --name NAME --zone ZONE [options]
#
#   --name NAME        of the slice
#   --zone ZONE        such as us-central2-b
#   --project PROJECT  (default: gcloud's own)
#   --yes              does not ask
#   --dry-run          prints the commands instead of running them

# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

YES=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --yes) YES=1; shift ;;
    *) common_option "$@"; shift "$TAKEN" ;;
  esac
done
need_slice

options=()
if [[ -n $YES ]]; then options+=(--quiet); fi
tpu_vm delete ${options[@]+"${options[@]}"}
