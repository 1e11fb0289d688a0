// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/sif-project/sif/internal/wellknown"
)

// way is what of the outside leaves by one exit: an address of the provider, and the domain of
// names that have addresses in a subnet.
type way struct {
	addr   string
	domain string
	subnet netip.Prefix
}

var (
	byZone = way{"203.0.113.10", "zone.bench.example", netip.MustParsePrefix("198.18.1.0/24")}
	byNode = way{"203.0.113.11", "node.bench.example", netip.MustParsePrefix("198.18.2.0/24")}
)

// egress measures what workloads send to the outside by both exits, each against namespaces that
// reach it over the same hops, but without programs and switch.
func egress(ctx context.Context, f *fabric, r *Report) error {
	streams := []int{1, 8}
	outside := func(w way) endpoint { return endpoint{f.NetNS(provider), netip.MustParseAddr(w.addr)} }
	whole, err := f.plainByZone(ctx, 4, 0)
	if err != nil {
		return err
	}
	const smallest = 1280 // of the exit of a switch in user space; see exit.MTU
	small, err := f.plainByZone(ctx, 5, smallest)
	if err != nil {
		return err
	}
	m, err := f.measure(streams,
		path{"by the zone", f.client, outside(byZone)}, path{"masquerade at the processor", whole, outside(byZone)},
		path{"masquerade at the processor, small packets", small, outside(byZone)},
	)
	if err != nil {
		return err
	}
	r.compare("to the outside by the zone's exit, against plain masquerade behind the same link", "masquerade", m[0], m[1], none, none)
	r.compare("the same, against plain masquerade of packets of the exit's MTU", "masquerade", m[0], m[2], none, none)
	r.note("to the outside by the zone's exit, while sending, of one core: %s", shares(m[0].cpu))

	plain, err := f.plainByNode(ctx)
	if err != nil {
		return err
	}
	if m, err = f.measure(streams,
		path{"by the node", f.client, outside(byNode)}, path{"masquerade at the node", plain, outside(byNode)},
	); err != nil {
		return err
	}
	r.compare("to the outside by the node, against plain masquerade there", "masquerade", m[0], m[1], none, none)
	return nil
}

// plainByZone makes a namespace on clientNode whose packets pass the link to the zone's processor
// as those of workloads do. There they go around the switch, and are masqueraded. mtu is that of
// its interface; 0: a workload's.
func (f *fabric) plainByZone(ctx context.Context, n, mtu int) (endpoint, error) {
	e, err := f.plain(ctx, clientNode, f.client, n)
	if err != nil {
		return e, err
	}
	link, device, err := f.linkNamespace(e.addr)
	if err != nil {
		return e, err
	}
	if mtu != 0 {
		if err := script(ctx, fmt.Sprintf("ip -n %s link set eth0 mtu %d", filepath.Base(e.netns), mtu)); err != nil {
			return e, err
		}
	}
	return e, script(ctx, fmt.Sprintf(`
		ip netns exec %[1]s nft -f - <<- END
			table inet bench%[2]d {
				chain prerouting {
					type filter hook prerouting priority -310
					ip saddr %[3]s meta mark set %[4]d
				}
			}
		END
		ip -n %[5]s link add bench%[2]d type veth peer name bench%[2]d netns %[6]s
		ip -n %[5]s addr add 192.0.2.%[7]d/31 dev bench%[2]d
		ip -n %[6]s addr add 192.0.2.%[8]d/31 dev bench%[2]d
		ip -n %[5]s link set bench%[2]d up
		ip -n %[6]s link set bench%[2]d up
		ip -n %[6]s rule add priority 5%[2]d iif %[9]s from %[3]s lookup 70%[2]d
		ip -n %[6]s route add default via 192.0.2.%[7]d table 70%[2]d
		ip -n %[6]s rule add priority 5%[2]d iif bench%[2]d to %[3]s lookup 71%[2]d
		ip -n %[6]s route add %[3]s/32 dev %[9]s table 71%[2]d
		ip -n %[5]s route add %[3]s/32 via 192.0.2.%[8]d
		ip netns exec %[5]s nft -f - <<- END
			table inet bench%[2]d {
				chain postrouting {
					type nat hook postrouting priority srcnat
					ip saddr %[3]s oifname "eth0" masquerade
				}
			}
		END
		`, f.Namespace(clientNode), n, e.addr, wellknown.ExitMark(0),
		f.Namespace(exitNode), link, 2*n, 2*n+1, device))
}

// linkNamespace returns the namespace and the device of the processor's link by which an address of
// its zone is reached.
func (f *fabric) linkNamespace(to netip.Addr) (namespace, device string, err error) {
	list, err := filepath.Glob(f.NetNS(exitNode) + "-*")
	if err != nil {
		return "", "", err
	}
	var said []error
	for _, path := range list {
		namespace = filepath.Base(path)
		out, err := exec.Command("ip", "-n", namespace, "route", "get", to.String()).CombinedOutput()
		if _, after, found := strings.Cut(string(out), " dev "+wellknown.LinkPrefix); err == nil && found {
			number, _, _ := strings.Cut(after, " ")
			return namespace, wellknown.LinkPrefix + number, nil
		}
		said = append(said, fmt.Errorf("%s: %s", namespace, out))
	}
	return "", "", fmt.Errorf("no link of %s leads to %s: %w", exitNode, to, errors.Join(said...))
}

// plainByNode makes a namespace on clientNode that is connected like a workload, and whose packets
// the node masquerades. It has an address and a name that are nothing to the fabric's programs and
// firewall.
func (f *fabric) plainByNode(ctx context.Context) (endpoint, error) {
	const name = "plain-by-node"
	e := endpoint{netns: f.NetNS(name), addr: netip.MustParseAddr("192.0.2.129")}
	mtu, err := mtuOf(f.client)
	if err != nil {
		return e, err
	}
	return e, script(ctx, fmt.Sprintf(`
		ip netns add %[1]s
		ip -n %[2]s link add benchnode mtu %[3]d type veth peer name eth0 mtu %[3]d netns %[1]s
		ip -n %[2]s addr add 192.0.2.128/31 dev benchnode
		ip -n %[2]s link set benchnode up
		ip -n %[1]s link set lo up
		ip -n %[1]s addr add %[4]s/31 dev eth0
		ip -n %[1]s link set eth0 up
		ip -n %[1]s route add default via 192.0.2.128
		ip netns exec %[2]s nft -f - <<- END
			table inet benchnode {
				chain postrouting {
					type nat hook postrouting priority srcnat
					ip saddr %[4]s oifname "eth0" masquerade
				}
			}
		END
		`, f.Namespace(name), f.Namespace(clientNode), mtu, e.addr))
}
