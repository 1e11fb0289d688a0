// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hostport

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/kernel"
)

// Try reports what this kernel lacks for attachments, in a network namespace that ends with the
// trial. The cgroup matters only to what processes send.
func Try(withGroup bool) error {
	if withGroup {
		if _, err := hierarchy(); err != nil {
			return err
		}
	}
	sample := placed{Attachment: Attachment{
		Interface: "eth0", IPv4: netip.AddrFrom4([4]byte{192, 0, 2, 1}), IPv6: netip.MustParseAddr("2001:db8::1"), MTU: 1280,
		Ports: []Port{{fabric.TCP, 1}, {fabric.UDP, 1}},
	}, listens: map[Port][2]netip.Addr{}}
	for _, p := range sample.Ports {
		sample.listens[p] = [2]netip.Addr{families[0].loopback, families[1].loopback}
	}
	var missing []string
	for _, part := range []struct {
		what    string
		content content
	}{
		{"the expression \"socket wildcard\" of nftables (CONFIG_NFT_SOCKET, Linux 5.10)", content{chains: []chain{
			base("a", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityLead, received()),
		}}},
		{"the expressions \"notrack\" and \"fib\" of nftables (CONFIG_NFT_CT, CONFIG_NFT_FIB_INET)", content{chains: []chain{
			base("a", nftables.ChainTypeRoute, nftables.ChainHookOutput, priorityRaw, [][]expr.Any{untracked(), unicast()}),
		}}},
		{"translation by nftables (CONFIG_NFT_NAT)", content{chains: []chain{
			base("a", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, priorityAppear, [][]expr.Any{families[0].appearAs(sample.IPv4), families[1].appearAs(sample.IPv6)}),
		}}},
		{"what else the table " + tableName + " needs of nftables", nodeTable([]placed{sample})},
		{"what else the table " + tableName + " of an endpoint needs of nftables", endpointTable(sample.Attachment)},
	} {
		if err := kernel.Try(func() error { _, err := new(table).apply(part.content); return err }); err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", part.what, err))
		}
	}
	if withGroup {
		err := kernel.Try(func() error {
			// The kernel looks up no cgroup when it takes the rule.
			c := content{chains: []chain{base("a", nftables.ChainTypeRoute, nftables.ChainHookOutput, priorityMangle, [][]expr.Any{sentBy(1, 1)})}}
			_, err := new(table).apply(c)
			return err
		})
		if err != nil {
			missing = append(missing, fmt.Sprintf("the expression \"socket cgroupv2\" of nftables (CONFIG_NFT_SOCKET, CONFIG_SOCK_CGROUP_DATA, Linux 5.13), without which -cgroup and -unit do not work: %v", err))
		}
	}
	if len(missing) > 0 {
		return errors.New("this kernel lacks " + strings.Join(missing, "; and "))
	}
	return nil
}
