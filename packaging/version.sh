#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Prints the version of this checkout as shell assignments: VERSION (semantic, without "v"), COMMIT, DATE of the commit
# in UTC, and SOURCE_DATE_EPOCH. After a tag v1.2.3 follow 1.2.3+1.gCOMMIT, 1.2.3+2.gCOMMIT and so on, which package
# managers sort above it and below every later tag. What is set in the environment is kept.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.0.0-dev commit='' epoch=0
if git rev-parse --git-dir >/dev/null 2>&1; then
  commit=$(git rev-parse HEAD) epoch=$(git log -1 --format=%ct)
  if tag=$(git describe --tags --match 'v[0-9]*' --abbrev=0 2>/dev/null); then
    version=${tag#v} count=$(git rev-list --count "$tag..HEAD")
  else
    count=$(git rev-list --count HEAD)
  fi
  dirty=''
  [[ -z $(git status --porcelain --untracked-files=no) ]] || dirty=.changed
  if ((count > 0)) || [[ -n $dirty ]]; then
    version+=+$count.g${commit:0:10}$dirty
  fi
fi
: "${VERSION:=$version}" "${COMMIT:=$commit}" "${SOURCE_DATE_EPOCH:=$epoch}"
DATE=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
printf 'VERSION=%q COMMIT=%q DATE=%q SOURCE_DATE_EPOCH=%q\n' "$VERSION" "$COMMIT" "$DATE" "$SOURCE_DATE_EPOCH"
