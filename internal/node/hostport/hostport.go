// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package hostport gives a process that stays in the node's network namespace an endpoint that has
// a namespace of its own. A veth pair joins the two namespaces. What arrives at the endpoint's
// addresses on certain ports is led by the pair to where the process listens; what processes of a
// cgroup send to certain addresses is led by it to the endpoint, whose addresses it gets there. All
// of it is done by the kernel: nftables tables "inet sif_host" in both namespaces, routes and
// routing rules, so it goes on while none of our processes run.
//
// It knows namespaces, interfaces and nftables. It must not know policy: what an endpoint may send
// and receive is judged at the interface that joins its namespace to the fabric, as that of any
// other workload. Here it only matters that nobody else gets there: not others on the node, and
// nobody by the underlay.
//
// The functions work in the network namespace of the calling thread, which is the node's.
package hostport

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

// Port is a port on which a process is reached at its endpoint's addresses.
type Port struct {
	Protocol fabric.Protocol `json:"protocol"` // TCP or UDP
	Number   uint16          `json:"number"`
}

func (p Port) String() string { return fmt.Sprintf("%s/%d", p.Protocol, p.Number) }

// ParsePort parses "5432", which is a TCP port, "tcp/5432" or "udp/53".
func ParsePort(text string) (Port, error) {
	protocol, number, given := strings.Cut(text, "/")
	p := Port{Protocol: fabric.TCP}
	switch {
	case !given:
		number = protocol
	case protocol == "udp":
		p.Protocol = fabric.UDP
	case protocol != "tcp":
		return p, fmt.Errorf("port %q: the protocol must be tcp or udp, as in udp/53", text)
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 || number != strconv.FormatUint(n, 10) {
		return p, fmt.Errorf("port %q: a number from 1 to 65535 is needed, as in 5432 or udp/53", text)
	}
	p.Number = uint16(n)
	return p, nil
}

// MaxPorts is the number of ports that an attachment can have.
const MaxPorts = 64

// Attachment is the endpoint of a process of the node.
type Attachment struct {
	Slot       int        // of the node, from 0; no two attachments share one
	Interface  string     // of the endpoint's namespace, towards the fabric
	IPv4, IPv6 netip.Addr // of the endpoint
	MTU        int        // of Interface, in bytes
	Ports      []Port
	// Group is the cgroup whose processes send by the endpoint. Empty: none does.
	Group Group
	// Reached is what they reach by the endpoint, and Spared what of it they do not. What is in
	// neither goes the node's way, as if there were no endpoint.
	Reached, Spared []netip.Prefix
}

// Check returns an error if the attachment cannot be made.
func (a Attachment) Check() error {
	switch {
	case a.Slot < 0 || a.Slot >= wellknown.MaxHosts:
		return fmt.Errorf("slot %d is not one of the %d of a node", a.Slot, wellknown.MaxHosts)
	case !a.IPv4.Is4() || !a.IPv6.Is6() || a.IPv6.Is4In6():
		return fmt.Errorf("an endpoint has an IPv4 and an IPv6 address, not %s and %s", a.IPv4, a.IPv6)
	case len(a.Ports) == 0 && a.Group == "":
		return errors.New("neither a port nor a cgroup is given, so the endpoint would serve for nothing: give -port, -cgroup or -unit")
	case len(a.Ports) > MaxPorts:
		return fmt.Errorf("%d ports are given, %d is the most", len(a.Ports), MaxPorts)
	}
	for i, p := range a.Ports {
		switch {
		case p.Protocol != fabric.TCP && p.Protocol != fabric.UDP || p.Number == 0:
			return fmt.Errorf("port %s: only ports of TCP and UDP can be led to a process", p)
		case slices.Contains(a.Ports[:i], p):
			return fmt.Errorf("port %s is given twice", p)
		}
	}
	return nil
}

func (a Attachment) device() string { return wellknown.HostInterface(a.Slot) }

// ends returns the addresses of the pair of a family: in the node's namespace, in the endpoint's,
// and the endpoint's own.
func (a Attachment) ends(f family) (near, far, own netip.Addr) {
	if f.ipv6 {
		return wellknown.HostAddress(wellknown.HostNear6, a.Slot), wellknown.HostAddress(wellknown.HostFar6, a.Slot), a.IPv6
	}
	return wellknown.HostAddress(wellknown.HostNear4, a.Slot), wellknown.HostAddress(wellknown.HostFar4, a.Slot), a.IPv4
}
