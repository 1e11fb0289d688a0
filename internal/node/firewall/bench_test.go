// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall_test

import (
	"fmt"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/testhost"
)

// BenchmarkSetEgress adds and removes one address among many, as a name does that resolves to
// another one.
func BenchmarkSetEgress(b *testing.B) {
	testhost.RequireRoot(b)
	for _, n := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			node, err := testutils.NewNS()
			must.NoError(b, err)
			defer func() { must.NoError(b, node.Close()); must.NoError(b, testutils.UnmountNS(node)) }()
			must.NoError(b, node.Do(func(ns.NetNS) error {
				f := firewall.New(config)
				_, err := f.Apply()
				must.NoError(b, err)
				var list []firewall.Egress
				for i := range n {
					list = append(list, out(workloadAddress, fmt.Sprintf("203.%d.%d.1/32", i>>8, i&255), fabric.TCP, 443, 443))
				}
				must.NoError(b, f.SetEgress(list, nil))
				more := append(list, out(workloadAddress, "198.51.100.1/32", fabric.TCP, 443, 443))
				for b.Loop() {
					must.NoError(b, f.SetEgress(more, nil))
					must.NoError(b, f.SetEgress(list, nil))
				}
				return nil
			}))
		})
	}
}
