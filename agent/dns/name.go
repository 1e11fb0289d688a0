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
	service fabric.Ref
	zone    string // if empty, the nearest zone with a healthy endpoint
}

// parseName parses "<service>.<domain>.sif." and "<zone>.<service>.<domain>.sif.", ignoring case.
// It returns false for any other name.
func parseName(name string) (serviceName, bool) {
	labels := miekg.SplitDomainName(strings.ToLower(name))
	if n := len(labels); n != 3 && n != 4 || labels[n-1]+"." != apex {
		return serviceName{}, false
	}
	labels = labels[:len(labels)-1]
	for _, l := range labels {
		if fabric.CheckName(l) != nil {
			return serviceName{}, false
		}
	}
	var n serviceName
	if len(labels) == 3 {
		n.zone, labels = labels[0], labels[1:]
	}
	n.service = fabric.Ref{Domain: labels[1], Name: labels[0]}
	return n, true
}
