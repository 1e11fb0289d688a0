// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"strings"

	miekg "github.com/miekg/dns"

	"github.com/sif-project/sif/fabric"
)

// apex is the DNS zone that this package serves.
const apex = "sif."

// inApex reports whether a name in presentation form is the apex or below it.
func inApex(name string) bool { return miekg.IsSubDomain(apex, name) }

// inApexOfSearch reports whether a name is one under the apex with a search suffix, such as
// "svc.app.sif.example.com". Stub resolvers try these names before or after the one that is meant.
func inApexOfSearch(name string) bool {
	labels := miekg.SplitDomainName(strings.ToLower(name))
	for i, l := range labels {
		if i > 0 && i < len(labels)-1 && l+"." == apex {
			return true
		}
	}
	return false
}

// serviceName is a parsed name under the apex.
type serviceName struct {
	service  fabric.Ref
	zone     string // if empty, the nearest zone with a healthy endpoint
	endpoint string // if set, this endpoint of the zone alone
	port     portName
}

// portName names ports in the form of RFC 2782. The zero value names none.
type portName struct {
	protocol fabric.Protocol
	name     string // without the underscore; empty: above the names of ports
	asked    bool
}

// matches reports whether a port is one of those that are named.
func (n portName) matches(p Port) bool {
	return p.Protocol == n.protocol && (n.name == "" || p.Name == n.name)
}

// protocols are those that a name of a port can have.
var protocols = map[string]fabric.Protocol{"_tcp": fabric.TCP, "_udp": fabric.UDP}

// parseName parses the names of services, of endpoints and of ports that the package comment lists,
// ignoring case. It returns false for any other name.
func parseName(name string) (serviceName, bool) {
	labels := miekg.SplitDomainName(strings.ToLower(name))
	if n := len(labels); n == 0 || labels[n-1]+"." != apex {
		return serviceName{}, false
	}
	labels = labels[:len(labels)-1]
	var n serviceName
	for _, i := range []int{1, 0} { // a port may have the name of a protocol
		if i >= len(labels) {
			continue
		}
		protocol, ok := protocols[labels[i]]
		if !ok {
			continue
		}
		n.port = portName{protocol: protocol, asked: true}
		if i == 1 {
			if n.port.name, ok = strings.CutPrefix(labels[0], "_"); !ok || n.port.name == "" {
				return serviceName{}, false
			}
		}
		labels = labels[i+1:]
		break
	}
	if len(labels) == 4 && !n.port.asked {
		n.endpoint, labels = labels[0], labels[1:]
	}
	if len(labels) != 2 && len(labels) != 3 {
		return serviceName{}, false
	}
	for _, l := range labels {
		if fabric.CheckName(l) != nil {
			return serviceName{}, false
		}
	}
	if len(labels) == 3 {
		n.zone, labels = labels[0], labels[1:]
	}
	n.service = fabric.Ref{Domain: labels[1], Name: labels[0]}
	return n, true
}
