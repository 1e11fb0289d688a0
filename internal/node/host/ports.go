// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package host

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/listener"
	"github.com/sif-project/sif/internal/wellknown"
)

const checkPorts = "ports"

// Port is a port of the node that a daemon listens on.
type Port struct {
	Protocol fabric.Protocol
	At       netip.AddrPort // an unspecified address is any
	For      string         // "the controller's API"
}

func (p Port) String() string {
	if p.At.Addr().IsUnspecified() {
		return fmt.Sprintf("%s port %d", strings.ToUpper(p.Protocol.String()), p.At.Port())
	}
	return fmt.Sprintf("%s port %s", strings.ToUpper(p.Protocol.String()), p.At)
}

// Resolver is where the endpoints of every workload node find its DNS server.
var Resolver = netip.AddrPortFrom(wellknown.LinkLocal4, wellknown.DNSPort)

// ResolverRemedy is what helps if another server has the port of Resolver.
const ResolverRemedy = "let it listen on addresses of its own only (dnsmasq: bind-dynamic, with an interface or listen-address)"

// isOurs reports whether a process is one of the fabric's daemons.
func isOurs(process string) bool { return strings.HasPrefix(process, "sif (") }

// Ports looks who has the ports that the daemons listen on.
func Ports(wanted []Port) []Finding {
	sockets, err := listener.All()
	if err != nil {
		return []Finding{failed(checkPorts, "the ports of the machine", err)}
	}
	var findings []Finding
	for _, p := range wanted {
		f := Finding{checkPorts, p.String(), Well, "is free, for " + p.For, ""}
		for _, s := range sockets {
			if !s.Receives(p.Protocol, p.At) {
				continue
			}
			who := s.Process()
			if isOurs(who) {
				f.Detail = "has " + p.For
				continue
			}
			if who == "" {
				who = "the kernel, or a process that cannot be seen,"
			}
			f.Result, f.Detail = Wrong, fmt.Sprintf("is taken: %s listens on %s, and %s needs it", who, s.Address, p.For)
			f.Remedy = "stop it, or give it another port"
			if p.At == Resolver {
				f.Remedy = ResolverRemedy
			}
			break
		}
		findings = append(findings, f)
	}
	return findings
}

// LinkPorts looks who has the UDP ports of which links take free ones. own are those that the
// node's links have.
func LinkPorts(own []uint16) Finding {
	const first, last = wellknown.FirstLinkPort, wellknown.LastLinkPort
	f := Finding{checkPorts, fmt.Sprintf("UDP ports %d-%d", first, last), Well, "are free, for the links", ""}
	sockets, err := listener.All()
	if err != nil {
		return failed(f.Check, f.Subject, err)
	}
	taken := map[uint16]string{}
	for _, s := range sockets {
		port := s.Address.Port()
		if s.Protocol != fabric.UDP || port < first || port > last || s.Address.Addr().IsLoopback() || slices.Contains(own, port) {
			continue
		}
		if who := s.Process(); !isOurs(who) {
			if who == "" {
				who = "the kernel, such as a WireGuard device of its own"
			}
			taken[port] = who
		}
	}
	var list []string
	for port := uint16(first); port <= last; port++ {
		if who, is := taken[port]; is && len(list) < 3 {
			list = append(list, fmt.Sprintf("%d by %s", port, who))
		}
	}
	switch {
	case len(taken) > last-first:
		f.Result, f.Detail, f.Remedy = Wrong, "are all taken: "+strings.Join(list, ", ")+", ...", "free some of them"
	case len(taken) > 0:
		f.Detail = fmt.Sprintf("have room for the links; %d are taken by others (%s), which the links leave alone", len(taken), strings.Join(list, ", "))
	}
	return f
}
