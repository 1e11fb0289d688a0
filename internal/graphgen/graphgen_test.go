// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package graphgen

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

func TestGraphsAreSoundAndOfTheirShape(t *testing.T) {
	for _, shape := range []Shape{
		{Services: 1, Contracts: 1}, {Services: 10, Contracts: 50}, {Services: 30, Contracts: 100, Domain: 3, Hubs: 2, Cross: 0.5}, {Seed: 7, Services: 1000, Contracts: 5000},
	} {
		t.Run(fmt.Sprintf("%d services", shape.Services), func(t *testing.T) {
			g := Generate(shape)
			must.SliceEmpty(t, g.Check(time.Unix(0, 0)))
			must.SliceEmpty(t, g.Waiting())
			services, contracts := 0, 0
			for _, d := range g.Domains {
				services += len(d.Services)
				contracts += len(d.Contracts)
			}
			must.Eq(t, shape.Services, services)
			must.Eq(t, shape.Contracts, contracts)
			must.Eq(t, fabric.Compile(g).Root, fabric.Compile(Generate(shape)).Root)
		})
	}
}
