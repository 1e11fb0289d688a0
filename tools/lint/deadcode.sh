#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Fails if a function cannot be reached from any of our programs, except those in deadcode.allow.
# What only tests call counts as unreachable.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# shellcheck disable=SC2016 # a Go template
format='{{$path := .Path}}{{range .Funcs}}{{printf "%s.%s %s\n" $path .Name .Position}}{{end}}'
programs=$(go list -tags e2e -f '{{if eq .Name "main"}}{{.ImportPath}}{{end}}' ./...)
# shellcheck disable=SC2086 # one argument for each program
found=$(go tool -modfile=tools/lint/go.mod deadcode -tags e2e -f "$format" $programs)

awk -v module="$(go list -m)/" '
  FNR == NR { if ($0 !~ /^(#|$)/) allowed[$1] = FNR; next }
  NF == 0 { next }
  { sub(module, "", $1) }
  $1 in allowed { needed[$1] = 1; next }
  { printf "%s: %s is not reachable from any program: delete it, or call it\n", $2, $1; bad = 1 }
  END {
    for (name in allowed) if (!(name in needed)) {
      printf "tools/lint/deadcode.allow:%d: %s is reachable or gone: delete the line\n", allowed[name], name; bad = 1
    }
    exit bad
  }' tools/lint/deadcode.allow <(echo "$found")
