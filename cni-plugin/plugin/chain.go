// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package plugin

import (
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// chain appends our result to that of the plugins that ran before, as the specification requires of
// every plugin in a list. The indexes of our interfaces follow theirs.
func chain(previous, ours *current.Result) *current.Result {
	offset := len(previous.Interfaces)
	merged := &current.Result{
		CNIVersion: ours.CNIVersion,
		Interfaces: slices.Concat(previous.Interfaces, ours.Interfaces),
		IPs:        slices.Clone(previous.IPs),
		Routes:     slices.Concat(previous.Routes, ours.Routes),
		DNS:        ours.DNS,
	}
	for _, ip := range ours.IPs {
		moved := *ip
		if ip.Interface != nil {
			moved.Interface = current.Int(*ip.Interface + offset)
		}
		merged.IPs = append(merged.IPs, &moved)
	}
	if ours.DNS.IsEmpty() {
		merged.DNS = previous.DNS
	}
	return merged
}
