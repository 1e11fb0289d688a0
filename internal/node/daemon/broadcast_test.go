// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"net/netip"
	"os/exec"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/testhost"
)

// The broadcast addresses of all subnets to which the machine is connected are known: by the length
// of the prefix, and as somebody set them.
func TestBroadcasts(t *testing.T) {
	testhost.RequireRoot(t)
	host, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, host.Close()); must.NoError(t, testutils.UnmountNS(host)) })
	for _, command := range [][]string{
		{"link", "add", "under0", "type", "veth", "peer", "name", "out0"},
		{"addr", "add", "192.0.2.1/24", "dev", "under0"},
		{"addr", "add", "198.51.100.9/29", "brd", "198.51.100.100", "dev", "out0"},
		{"addr", "add", "203.0.113.1/31", "dev", "out0"},
		{"addr", "add", "203.0.113.9/32", "dev", "out0"},
		{"addr", "add", "2001:db8::1/64", "dev", "out0"},
	} {
		out, err := exec.Command("nsenter", append([]string{"--net=" + host.Path(), "ip"}, command...)...).CombinedOutput()
		must.NoError(t, err, must.Sprintf("%q: %s", command, out))
	}
	n := &Node{}
	must.NoError(t, host.Do(func(ns.NetNS) error {
		changed, err := n.lookAtSubnets()
		must.NoError(t, err)
		must.True(t, changed)
		changed, err = n.lookAtSubnets()
		must.NoError(t, err)
		must.False(t, changed)
		return nil
	}))
	var reserved []string
	for _, p := range n.reserved(nil) {
		reserved = append(reserved, p.String())
	}
	must.Eq(t, []string{"192.0.2.255/32", "198.51.100.15/32", "198.51.100.100/32"}, reserved)
	n.Self.Underlay = netip.MustParseAddr("192.0.2.1")
	must.SliceLen(t, 4, n.reserved(nil))
}
