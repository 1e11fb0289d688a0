// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

// broadcasts returns the broadcast addresses of the subnets to which this machine is connected,
// ordered: what one packet to such an address reaches is everybody there, this machine included.
func broadcasts() ([]netip.Addr, error) {
	addresses, err := netlinksafe.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list the machine's addresses: %w", err)
	}
	var list []netip.Addr
	for _, x := range addresses {
		if x.IPNet == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(x.Broadcast.To4()); ok && !a.IsUnspecified() {
			list = append(list, a) // as somebody set it
		}
		address, mask := x.IP.To4(), x.Mask
		if ones, bits := mask.Size(); address == nil || bits != 32 || ones > 30 {
			continue // a single address, or a pair that has none
		}
		var last [4]byte
		for i := range last {
			last[i] = address[i] | ^mask[i]
		}
		list = append(list, netip.AddrFrom4(last))
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list), nil
}

// lookAtSubnets reads the broadcast addresses and reports whether they are others than before. What
// cannot be read stays as it was.
func (n *Node) lookAtSubnets() (changed bool, err error) {
	list, err := broadcasts()
	if err != nil {
		return false, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	changed = !slices.Equal(n.broadcasts, list)
	n.broadcasts = list
	return changed, nil
}
