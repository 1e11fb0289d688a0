// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"net"
	"net/netip"

	"github.com/sif-project/sif/internal/limit"
)

// sharedListener closes connections of unknown askers and those above an asker's limit.
type sharedListener struct {
	net.Listener
	share *limit.Count[netip.Addr]
	known func(netip.Addr) bool
}

func (l sharedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		asker := addrOf(c.RemoteAddr())
		if l.known(asker) && l.share.Take(asker) {
			return limit.OnClose(c, func() { l.share.Release(asker) }), nil
		}
		c.Close()
	}
}

// addrOf returns the IP address of a UDP or TCP address.
func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
