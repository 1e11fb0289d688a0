#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Checks that dependencies point one way: a package imports its own directory's packages and those of lower layers.
#
#   main, e2e -> command -> controller, engine, agent -> hcl, bpf, api, cni-plugin, internal -> fabric
#
# Why: the model stays free of I/O, the daemons never grow into one another, and each can be understood by itself.
# internal may use api (the nodes are clients of the controller) and is used by every layer above fabric.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

module=$(go list -m)
# shellcheck disable=SC2016 # a template of go list
imports=$(go list -e -f '{{$p := .ImportPath}}{{range .Imports}}{{$p}} {{.}}{{"\n"}}{{end}}' ./...)
awk -v module="$module" '
  function part(path) { sub("^" module "/?", "", path); sub("/.*", "", path); return path }
  BEGIN {
    layer["fabric"] = 0
    layer["hcl"] = layer["bpf"] = layer["api"] = layer["cni-plugin"] = layer["internal"] = layer["jobs"] = 1
    layer["controller"] = layer["engine"] = layer["agent"] = 2
    layer["command"] = 3
    layer[""] = layer["e2e"] = 4
  }
  $2 !~ "^" module "(/|$)" { next }
  {
    from = part($1); to = part($2)
    if (from == to) next
    if (!(from in layer)) { print $1 ": " from " belongs to no layer: add it to tools/layering.sh"; bad = 1; next }
    if (!(to in layer)) { print $2 ": " to " belongs to no layer: add it to tools/layering.sh"; bad = 1; next }
    if (layer[to] < layer[from]) next
    if (layer[from] == 1 && to == "internal" && from != "api") next
    if (from == "internal" && to == "api") next
    print $1 " imports " $2 ": " from " must not know " to
    bad = 1
  }
  END { exit bad }
' <<<"$imports"
