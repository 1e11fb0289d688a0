// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command generate writes the reference page and the JSON schema of the graph language to docs/. It
// is run in the directory of package hcl, by go generate.
package main

import (
	"log"
	"os"

	"github.com/sif-project/sif/hcl"
)

func main() {
	for name, content := range map[string][]byte{
		"../docs/graph-reference.md": hcl.Reference(),
		"../docs/graph.schema.json":  hcl.JSONSchema(),
	} {
		if err := os.WriteFile(name, content, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}
