// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
)

// setHealthAddresses gives the node its health addresses. IPv4 has host scope, so that the kernel
// never chooses it as the source of other packets.
func setHealthAddresses(self fabric.Node) error {
	lo, err := raiseLoopback()
	if err != nil {
		return err
	}
	for _, a := range []struct {
		addr  netip.Addr
		scope int
		flags int
	}{{self.Health4(), unix.RT_SCOPE_HOST, 0}, {self.Health6(), unix.RT_SCOPE_UNIVERSE, unix.IFA_F_NODAD}} {
		if err := netlink.AddrReplace(lo, &netlink.Addr{IPNet: hostPrefix(a.addr), Scope: a.scope, Flags: a.flags}); err != nil {
			return fmt.Errorf("add the health address %s to the loopback interface: %w", a.addr, err)
		}
	}
	return nil
}
