#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# run.sh [NAME...]: builds sif with each of the faults in this directory planted, lets sif-chaos look for it, and fails
# unless it finds what the fault's file says. The sources stay as they are: the build has an overlay.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../../..
cd "$root"
seed=${SEED:-1} length=${CHAOS:-60s}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# plant NAME DIR: builds sif with a fault into a directory with everything else that a lab needs.
plant() {
  local file copy
  mkdir -p "$2"
  file=$(sed -n 's,^+++ b/,,p' "$here/$1.patch")
  copy=$2/$(basename "$file")
  patch --quiet --output="$copy" "$file" "$here/$1.patch"
  printf '{"Replace": {"%s": "%s"}}\n' "$PWD/$file" "$copy" >"$2/overlay.json"
  go build -overlay "$2/overlay.json" -o "$2/sif" .
  ln -s "$PWD"/bin/{sif-cni,sif-demo,sif-internet,servers} "$2"
}

missed=0
(($# > 0)) || mapfile -t all < <(basename -s .patch "$here"/*.patch)
for name in "${@:-${all[@]}}"; do
  finds=$(sed -n 's/^Finds: //p' "$here/$name.patch")
  plant "$name" "$work/$name"
  SECONDS=0 code=0
  bin/sif-chaos -early -lab planted -bin "$work/$name" -seeds "$seed" -for "$length" >"$work/$name.log" 2>&1 || code=$?
  if ((code == 1)) && grep -A3 '^DID NOT HOLD' "$work/$name.log" | grep -qF -- "$finds"; then
    printf 'found in %3d s: %s: %s\n' "$SECONDS" "$name" "$(grep -m1 -F -- "$finds" "$work/$name.log")"
  else
    printf 'MISSED (exit code %d): %s; the end of its run:\n' "$code" "$name"
    tail -n 15 "$work/$name.log"
    missed=1
  fi
done
exit "$missed"
