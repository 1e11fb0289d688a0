// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sif-project/sif/fabric"
)

// wholeProtocols are the names of protocols that underlay.management may open as a whole, because
// they have no ports, by their IANA numbers.
var wholeProtocols = map[string]fabric.Protocol{
	"icmp": fabric.ICMP, "igmp": 2, "ipip": 4, "gre": 47, "esp": 50, "ah": 51, "icmpv6": fabric.ICMPv6, "ospf": 89, "pim": 103, "vrrp": 112,
}

// ParseManagement parses what a node opens to the underlay: a port such as "tcp/22", or a protocol
// without ports such as "vrrp" or "proto/112", for which the port is 0.
func ParseManagement(s string) (fabric.Protocol, uint16, error) {
	name, number, numbered := strings.Cut(s, "/")
	switch whole, is := wholeProtocols[name]; {
	case is && numbered:
		return 0, 0, fmt.Errorf("%q: %s has no ports here: write %q", s, name, name)
	case is:
		return whole, 0, nil
	case name == "proto" && numbered:
		return parseProtocolNumber(s, number)
	case !numbered:
		if _, err := fabric.ParseProtocol(name); err == nil {
			return 0, 0, fmt.Errorf("%q would open all ports: name each, such as \"%s/22\"", s, name)
		}
		return 0, 0, fmt.Errorf("%q is not of the form protocol/port, such as \"tcp/22\", nor proto/number, nor one of %s",
			s, strings.Join(slices.Sorted(maps.Keys(wholeProtocols)), ", "))
	}
	protocol, ports, err := ParsePorts(s)
	if err == nil && ports.From != ports.To {
		err = fmt.Errorf("%q: expected a single port, not a range", s)
	}
	return protocol, ports.From, err
}

func parseProtocolNumber(s, number string) (fabric.Protocol, uint16, error) {
	n, err := strconv.ParseUint(number, 10, 8)
	if err != nil || n == 0 {
		return 0, 0, fmt.Errorf("%q: %q is not the number of a protocol, from 1 to 255", s, number)
	}
	p := fabric.Protocol(n)
	if slices.Contains(fabric.Protocols, p) && p.HasPorts() {
		return 0, 0, fmt.Errorf("%q would open all ports: name each, such as \"%s/22\"", s, p)
	}
	return p, 0, nil
}
