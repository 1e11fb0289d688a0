// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package jobs_test checks the graphs and jobs of the demo applications.
package jobs_test

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/hcl"
)

func TestGraphs(t *testing.T) {
	graph, diags := hcl.LoadGraph("getaway", "voting")
	must.SliceEmpty(t, diags)
	must.MapLen(t, 2, graph.Domains)
}
