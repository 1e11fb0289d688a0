// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
)

// loadFilter loads the topology's passes into the internet namespace, which has no other rules.
func (l *Lab) loadFilter(ctx context.Context) error {
	if err := l.NFT(ctx, internetNS, l.Topology.filter()); err != nil {
		return fmt.Errorf("load the internet's filter: %w", err)
	}
	return nil
}

// NFT has nft(8) carry out commands in the namespace of a node, of a machine outside, or of the
// internet.
func (l *Lab) NFT(ctx context.Context, node, commands string) error {
	cmd := exec.CommandContext(ctx, "nsenter", "--net="+l.NetNS(node), "--", "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s\n%s", err, out, commands)
	}
	return nil
}

// filter returns the internet's rules in the language of nft(8): drop everything that is routed,
// except new flows that a pass names and packets of flows that began so.
func (t *Topology) filter() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "table inet internet {\n")
	groups := t.groups()
	for _, g := range slices.Sorted(maps.Keys(groups)) {
		for _, f := range families {
			if list := f.of(groups[g]); len(list) > 0 {
				fmt.Fprintf(&b, "  set %s%s { type %s; flags interval; elements = { %s } }\n", g, f.suffix, f.kind, strings.Join(list, ", "))
			}
		}
	}
	fmt.Fprintf(&b, "  chain forward {\n    type filter hook forward priority filter; policy drop;\n")
	fmt.Fprintf(&b, "    ct state established,related accept\n")
	for _, p := range t.Internet.Passes {
		for _, from := range p.From {
			for _, to := range p.To {
				for _, f := range families {
					if len(f.of(groups[from])) == 0 || len(f.of(groups[to])) == 0 {
						continue
					}
					pass := func(what string) {
						fmt.Fprintf(&b, "    ct state new %[1]s saddr @%[2]s%[3]s %[1]s daddr @%[4]s%[3]s %[5]s counter accept comment %[6]q\n", f.header, from, f.suffix, to, what, p.Name)
					}
					for proto, ports := range map[string][]string{"tcp": p.TCP, "udp": p.UDP} {
						if len(ports) > 0 {
							pass(fmt.Sprintf("%s dport { %s }", proto, strings.Join(ports, ", ")))
						}
					}
					if p.Any {
						pass("")
					}
				}
			}
		}
	}
	fmt.Fprintf(&b, "    counter comment \"dropped\"\n  }\n")
	// Packets to the internet namespace itself are dropped, except loopback, ping and the discovery
	// of IPv6 neighbours.
	fmt.Fprintf(&b, "  chain input {\n    type filter hook input priority filter; policy drop;\n    iif lo accept\n    icmp type echo-request accept\n    meta l4proto ipv6-icmp accept\n  }\n}\n")
	return b.String()
}

// family is how nft(8) writes what depends on the IP version.
type family struct {
	header, kind string
	suffix       string // of the names of sets
	is6          bool
}

var families = []family{{"ip", "ipv4_addr", "", false}, {"ip6", "ipv6_addr", "6", true}}

// of returns the addresses and subnets of this family.
func (f family) of(all []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(a string) bool { return a == "" || strings.Contains(a, ":") != f.is6 })
}

// groups returns the addresses of each group that a pass can name.
func (t *Topology) groups() map[string][]string {
	users := t.Internet.Users
	groups := map[string][]string{"users": {users.Subnet, users.Subnet6}}
	for _, n := range t.Nodes() {
		for _, g := range append(n.units(), "nodes") {
			groups[g] = append(groups[g], n.Address, n.Address6)
		}
	}
	for _, o := range t.Internet.Outside {
		groups["outside"] = append(groups["outside"], o.Addresses...)
	}
	return groups
}
