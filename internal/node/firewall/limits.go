// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The kernel's table of connections belongs to the node: a workload that could fill it would cut
// everybody's. What workloads open through the node's translation therefore has a rate and a
// number, both counted by source address before the table contains the connection.

// share is the part of the kernel's table that one address may fill.
const share = 32

// fewest is the number of translated connections that an address may have at least.
const fewest = 64

// tracking returns how many translated connections an address of an endpoint may have.
func tracking() uint32 {
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return fewest // the kernel tracks nothing yet
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fewest
	}
	return uint32(max(n/share, fewest))
}

// sources is a set of the addresses that sent something lately, with a state each.
type sources struct {
	*nftables.Set
	ipv6 bool
}

// setSize bounds the sets to which packets add elements.
const setSize = 65535

// sourcesOf returns the set of each family. The state of rated ones is a rate, which is forgotten
// after a minute; otherwise it is connections, which the kernel forgets when they have ended.
func sourcesOf(table *nftables.Table, name string, rated bool) []sources {
	one := func(name string, address nftables.SetDatatype, ipv6 bool) sources {
		return sources{&nftables.Set{Table: table, Name: name, KeyType: address, Dynamic: true, HasTimeout: rated, Size: setSize}, ipv6}
	}
	return []sources{one(name+"4", nftables.TypeIPAddr, false), one(name+"6", nftables.TypeIP6Addr, true)}
}

// dnsAskers are those that asked the resolver, outRates and outgoing those that opened something to
// the outside by the node, callers those with connections to ports that the node exposes, and
// neighbours those with connections to published ports of their own node.
func dnsAskers(table *nftables.Table) sources  { return sourcesOf(table, "dns_askers", true)[0] }
func outRates(table *nftables.Table) []sources { return sourcesOf(table, "exit_rates", true) }
func outgoing(table *nftables.Table) []sources { return sourcesOf(table, "exit_connections", false) }
func callers(table *nftables.Table) []sources  { return sourcesOf(table, "node_connections", false) }
func neighbours(table *nftables.Table) []sources {
	return sourcesOf(table, "published_connections", false)
}

// over matches packets of a source whose state exceeds a limit.
func (s sources) over(limit expr.Any) []expr.Any {
	version, offset, length := byte(unix.NFPROTO_IPV4), source.offset4, uint32(4)
	if s.ipv6 {
		version, offset, length = unix.NFPROTO_IPV6, source.offset6, 16
	}
	update := &expr.Dynset{SrcRegKey: 1, SetName: s.Name, Operation: uint32(unix.NFT_DYNSET_OP_ADD), Exprs: []expr.Any{limit}}
	if s.HasTimeout {
		update.Operation, update.Timeout = uint32(unix.NFT_DYNSET_OP_UPDATE), time.Minute
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(version),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}, update,
	}
}

// perSecond is exceeded by more packets than rate in a second, and burst at once.
func perSecond(rate, burst uint32) expr.Any {
	return &expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(rate), Burst: burst, Unit: expr.LimitTimeSecond, Over: true}
}

// connections is exceeded by more than n connections at once.
func connections(n uint32) expr.Any {
	return &expr.Connlimit{Count: n, Flags: expr.NFT_CONNLIMIT_F_INV}
}

// returning is the set of the answers that connections of endpoints to published ports of their own
// node get: the kernel must track them, which it does not do with other packets between endpoints.
// An element lives as long as its connection.
type returning struct {
	*nftables.Set
	ipv6 bool
}

func returnings(table *nftables.Table) []returning {
	one := func(name string, address nftables.SetDatatype, ipv6 bool) returning {
		return returning{ipv6: ipv6, Set: &nftables.Set{
			Table: table, Name: name, Dynamic: true, Size: setSize, Concatenation: true,
			KeyType: nftables.MustConcatSetType(address, nftables.TypeInetProto, nftables.TypeInetService),
		}}
	}
	return []returning{one("published_answers4", nftables.TypeIPAddr, false), one("published_answers6", nftables.TypeIP6Addr, true)}
}

// key loads an address of the packet, its protocol, and a port into registers from the given one.
func (r returning) key(first uint32, s side, port uint32) []expr.Any {
	offset, length := s.offset4, uint32(4)
	if r.ipv6 {
		offset, length = s.offset6, 16
	}
	return []expr.Any{
		&expr.Payload{DestRegister: first, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: first + length/4},
		&expr.Payload{DestRegister: first + length/4 + 1, Base: expr.PayloadBaseTransportHeader, Offset: port, Len: 2},
	}
}

// expect adds the source of the packet, which opens a connection. The registers up to the given one
// stay as they are.
func (r returning) expect(first uint32) []expr.Any {
	return append(r.key(first, source, 0), &expr.Dynset{
		SrcRegKey: first, SetName: r.Name, Operation: uint32(unix.NFT_DYNSET_OP_ADD), Exprs: []expr.Any{&expr.Connlimit{Count: 1 << 30}},
	})
}

// expected matches packets to such a source.
func (r returning) expected() []expr.Any {
	version := byte(unix.NFPROTO_IPV4)
	if r.ipv6 {
		version = unix.NFPROTO_IPV6
	}
	const first = unix.NFT_REG32_00
	return slices.Concat([]expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(version)},
		r.key(first, destination, 2), []expr.Any{&expr.Lookup{SourceRegister: first, SetName: r.Name}})
}
