// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// loadFilter loads the topology's passes into the internet namespace, which has no other rules.
func (l *Lab) loadFilter(ctx context.Context) error {
	rules := l.Topology.filter()
	cmd := exec.CommandContext(ctx, "nsenter", "--net="+l.NetNS(internetNS), "--", "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load the internet's filter: %w: %s\n%s", err, out, rules)
	}
	return nil
}

// filter returns the internet's rules in the language of nft(8): drop everything that is routed,
// except new flows that a pass names and packets of flows that began so.
func (t *Topology) filter() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "table inet internet {\n")
	groups := map[string][]string{"users": {t.Internet.Users.Subnet}}
	for _, n := range t.Nodes() {
		groups["nodes"] = append(groups["nodes"], n.Address)
		for _, kind := range n.units() {
			groups[kind] = append(groups[kind], n.Address)
		}
	}
	names := make([]string, 0, len(groups))
	for name := range groups {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "  set %s { type ipv4_addr; flags interval; elements = { %s } }\n", name, strings.Join(groups[name], ", "))
	}
	fmt.Fprintf(&b, "  chain forward {\n    type filter hook forward priority filter; policy drop;\n")
	fmt.Fprintf(&b, "    ct state established,related accept\n")
	for _, p := range t.Internet.Passes {
		for _, from := range p.From {
			for _, to := range p.To {
				if len(groups[from]) == 0 || len(groups[to]) == 0 {
					continue
				}
				for proto, ports := range map[string][]string{"tcp": p.TCP, "udp": p.UDP} {
					if len(ports) > 0 {
						fmt.Fprintf(&b, "    ct state new ip saddr @%s ip daddr @%s %s dport { %s } counter accept comment %q\n",
							from, to, proto, strings.Join(ports, ", "), p.Name)
					}
				}
			}
		}
	}
	fmt.Fprintf(&b, "    counter comment \"dropped\"\n  }\n")
	// Packets to the internet namespace itself are dropped, except loopback and ping.
	fmt.Fprintf(&b, "  chain input {\n    type filter hook input priority filter; policy drop;\n    iif lo accept\n    icmp type echo-request accept\n  }\n}\n")
	return b.String()
}
