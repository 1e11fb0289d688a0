// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	wire "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

// tuple is one direction of a connection in the kernel's table.
type tuple struct {
	source, destination netip.Addr
	protocol            fabric.Protocol
	from, to            uint16 // ports; of an ICMP exchange, to is the type of its first message
}

// tracked is a translated connection in the kernel's table.
type tracked struct {
	family          uint8
	original, reply tuple
	raw             []byte // as the kernel told it, with its identity
}

// Attributes of a connection (enum ctattr_type of linux/netfilter/nfnetlink_conntrack.h).
const (
	ctaStatusMask = 26
	ctaMarkMask   = 21
)

// Bits of a connection's status.
const (
	ctSNAT = 1 << 4 // IPS_SRC_NAT
	ctDNAT = 1 << 5 // IPS_DST_NAT
)

// translated returns the connections whose status has all the bits. With a mark, it returns those
// that have it. The kernel walks its whole table for that, some milliseconds for a large one.
func translated(status, mark uint32) ([]tracked, error) {
	request := nl.NewNetlinkRequest((unix.NFNL_SUBSYS_CTNETLINK<<8)|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	// Kernels that do not know how to choose by status return all.
	request.AddData(nl.NewRtAttr(nl.CTA_STATUS, binary.BigEndian.AppendUint32(nil, status)))
	request.AddData(nl.NewRtAttr(ctaStatusMask, binary.BigEndian.AppendUint32(nil, status)))
	if mark != 0 {
		request.AddData(nl.NewRtAttr(nl.CTA_MARK, binary.BigEndian.AppendUint32(nil, mark)))
		request.AddData(nl.NewRtAttr(ctaMarkMask, binary.BigEndian.AppendUint32(nil, ^uint32(0))))
	}
	messages, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list the kernel's connections: %w", err)
	}
	var list []tracked
	for _, m := range messages {
		if t, ok := parseTracked(m, status, mark); ok {
			list = append(list, t)
		}
	}
	return list, nil
}

// genericHeader is the size of a nfgenmsg.
const genericHeader = 4

func parseTracked(message []byte, status, mark uint32) (t tracked, ok bool) {
	if len(message) < genericHeader {
		return t, false
	}
	t.family, t.raw = message[0], message[genericHeader:]
	attributes, err := wire.UnmarshalAttributes(t.raw)
	if err != nil {
		return t, false
	}
	var hasStatus, hasMark uint32
	for _, a := range attributes {
		switch a.Type &^ unix.NLA_F_NESTED {
		case nl.CTA_TUPLE_ORIG:
			t.original = parseTuple(a.Data)
		case nl.CTA_TUPLE_REPLY:
			t.reply = parseTuple(a.Data)
		case nl.CTA_STATUS:
			hasStatus = number32(a.Data)
		case nl.CTA_MARK:
			hasMark = number32(a.Data)
		}
	}
	return t, hasStatus&status == status && (mark == 0 || hasMark == mark)
}

func number32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// Attributes of a tuple (enum ctattr_l4proto).
const (
	ctaICMPType   = 5
	ctaICMPv6Type = 8
)

func parseTuple(b []byte) (t tuple) {
	parts, err := wire.UnmarshalAttributes(b)
	if err != nil {
		return t
	}
	for _, part := range parts {
		attributes, err := wire.UnmarshalAttributes(part.Data)
		if err != nil {
			return t
		}
		ip := part.Type&^unix.NLA_F_NESTED == nl.CTA_TUPLE_IP
		for _, a := range attributes {
			switch kind := a.Type &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER); {
			case ip && (kind == nl.CTA_IP_V4_SRC || kind == nl.CTA_IP_V6_SRC):
				t.source, _ = netip.AddrFromSlice(a.Data)
			case ip && (kind == nl.CTA_IP_V4_DST || kind == nl.CTA_IP_V6_DST):
				t.destination, _ = netip.AddrFromSlice(a.Data)
			case ip || len(a.Data) == 0:
			case kind == nl.CTA_PROTO_NUM:
				t.protocol = fabric.Protocol(a.Data[0])
			case kind == ctaICMPType || kind == ctaICMPv6Type:
				t.to = uint16(a.Data[0])
			case len(a.Data) < 2:
			case kind == nl.CTA_PROTO_SRC_PORT:
				t.from = binary.BigEndian.Uint16(a.Data)
			case kind == nl.CTA_PROTO_DST_PORT:
				t.to = binary.BigEndian.Uint16(a.Data)
			}
		}
	}
	return t
}

// forget removes a connection from the kernel's table.
func (t tracked) forget() error {
	request := nl.NewNetlinkRequest((unix.NFNL_SUBSYS_CTNETLINK<<8)|nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: t.family, Version: nl.NFNETLINK_V0})
	request.AddRawData(t.raw)
	if _, err := request.Execute(unix.NETLINK_NETFILTER, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("end a translated connection to %s port %d: %w", t.original.destination, t.original.to, err)
	}
	return nil
}

// uncut says which connections may be in the kernel's table that nothing allows any more.
type uncut struct{ egress, ports, exposed bool }

// cut ends the translated connections that nothing allows any more. The caller must hold mu.
func (f *Firewall) cut() error {
	if f.uncut.egress {
		allowed := f.egress.index()
		if err := forgetUnless(ctSNAT, wellknown.ExitMarkNode, func(t tracked) bool { return allowed.has(t.original) }); err != nil {
			return err
		}
		f.uncut.egress = false
	}
	if f.uncut.ports {
		within := func(a netip.Addr) bool {
			return slices.ContainsFunc(f.config.Ranges, func(p netip.Prefix) bool { return p.Contains(a) })
		}
		if err := forgetUnless(ctDNAT, 0, func(t tracked) bool { return !within(t.reply.source) || f.mapped(t) }); err != nil {
			return err
		}
		f.uncut.ports = false
	}
	if f.uncut.exposed {
		own := func(a netip.Addr) bool { return a == wellknown.LinkLocal4 || a == wellknown.LinkLocal6 }
		if err := forgetUnless(ctDNAT, 0, func(t tracked) bool { return !own(t.original.destination) || f.exposes(t) }); err != nil {
			return err
		}
		f.uncut.exposed = false
	}
	return nil
}

// forgetUnless ends the connections with that status and mark that keep does not keep.
func forgetUnless(status, mark uint32, keep func(tracked) bool) error {
	list, err := translated(status, mark)
	errs := []error{err}
	for _, t := range list {
		if !keep(t) {
			errs = append(errs, t.forget())
		}
	}
	return errors.Join(errs...)
}

// mapped reports whether a port mapping is the reason for a connection's translation.
func (f *Firewall) mapped(t tracked) bool {
	return slices.ContainsFunc(f.ports, func(p PortMapping) bool {
		return p.Protocol == t.original.protocol && p.From.Port() == t.original.to && (p.From.Addr().IsUnspecified() || p.From.Addr() == t.original.destination) &&
			p.To == netip.AddrPortFrom(t.reply.source, t.reply.from)
	})
}

// exposes reports whether a port of the node that is open to workloads is the reason for a
// connection's translation.
func (f *Firewall) exposes(t tracked) bool {
	return slices.ContainsFunc(f.opened.allowed(f.config.Exposed), func(e Exposed) bool {
		return e.Protocol == t.original.protocol && e.At() == netip.AddrPortFrom(t.original.destination, t.original.to) &&
			e.To == netip.AddrPortFrom(t.reply.source, t.reply.from)
	})
}

// egressIndex finds entries by endpoint, protocol, and whether the destination is withheld.
type egressIndex struct {
	letOut
	entries map[egressKey][]Egress
}

type egressKey struct {
	endpoint netip.Addr
	protocol fabric.Protocol
	withheld bool
}

func (l letOut) index() egressIndex {
	index := egressIndex{l, map[egressKey][]Egress{}}
	for withheld, list := range map[bool][]Egress{false: l.wide, true: l.listed} {
		for _, e := range list {
			key := egressKey{e.Endpoint, e.Protocol, withheld}
			index.entries[key] = append(index.entries[key], e)
		}
	}
	return index
}

// has reports whether an entry allows packets of that direction.
func (i egressIndex) has(t tuple) bool {
	return slices.ContainsFunc(i.entries[egressKey{t.source, t.protocol, i.withholds(netip.PrefixFrom(t.destination, t.destination.BitLen()))}], func(e Egress) bool {
		return e.Prefix.Contains(t.destination) && e.Ports.Contains(t.to)
	})
}
