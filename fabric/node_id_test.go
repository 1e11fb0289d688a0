// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric_test

import (
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

func TestCompareNodeIDs(t *testing.T) {
	var ids []fabric.NodeID
	for _, text := range []string{"eu-west/p1", "eu/p1", "eu/p2", "eu1/p1"} {
		id, err := fabric.ParseNodeID(text)
		must.NoError(t, err)
		ids = append(ids, id)
	}
	sorted := slices.Clone(ids)
	slices.Reverse(sorted)
	slices.SortFunc(sorted, fabric.CompareNodeIDs)
	must.Eq(t, ids, sorted)
}
