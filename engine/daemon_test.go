// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

// A zone without a switch lacks nothing until there is a second zone.
func TestShutIn(t *testing.T) {
	carrier := fabric.Node{Zone: "a", Name: "p1", Kind: fabric.KindProcessor, NoSwitch: true}
	both := fabric.Node{Zone: "a", Name: "b1", Kind: fabric.KindBoth, NoSwitch: true}
	boundary := fabric.Node{Zone: "a", Name: "p2", Kind: fabric.KindProcessor}
	far := fabric.Node{Zone: "b", Name: "w1", Kind: fabric.KindWorkload}
	must.SliceEmpty(t, shutIn("a", nil))
	must.SliceEmpty(t, shutIn("a", []fabric.Node{carrier, both}))
	must.SliceEmpty(t, shutIn("a", []fabric.Node{carrier, both, boundary, far}))
	found := shutIn("a", []fabric.Node{carrier, both, far})
	must.Len(t, 1, found)
	must.StrContains(t, found[0], `no engine of zone a has a switch, so nothing passes between it and b: `)
}
