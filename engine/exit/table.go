// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package exit

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/node/ruleset"
	"github.com/sif-project/sif/internal/wellknown"
)

// tableName is the name of the table in the inet family.
const tableName = "sif_exit"

// Names of the counters of dropped packets, by what the packets tried.
const (
	Spoofed = "exit-spoofed" // the sender's address is not of the side from which the packet came
	ToHost  = "exit-to-host" // between workloads and the processor itself
	Inside  = "exit-inside"  // to an interface that does not lead to the outside
	Unasked = "exit-unasked" // to a workload that did not ask
	Flood   = "exit-flood"   // more connections than one workload may have, or open in a second
)

var counterNames = []string{Spoofed, ToHost, Inside, Unasked, Flood}

// table is the nftables table, of which it remembers what it wrote.
type table struct {
	written string // the fingerprint after it was written; empty before
	exits   []Address
}

func tableOf() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

// apply writes the table in one transaction unless it is as it was written for the same addresses,
// and reports whether somebody else had changed it. The counters go on.
func (t *table) apply(c Config, exits []Address) (repaired bool, err error) {
	// All answers of the kernel come at once, and a buffer of the usual size is too small for them
	// on Linux 6.1.
	const room = 4 << 20
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetReadBuffer(room) }))
	if err != nil {
		return false, fmt.Errorf("set up the table %s: %w", tableName, err)
	}
	have, err := fingerprint(conn)
	if err != nil {
		return false, err
	}
	same := t.written != "" && have == t.written
	if same && slices.Equal(exits, t.exits) {
		return false, nil
	}
	repaired = t.written != "" && !same
	counted, err := counters()
	if err != nil {
		counted = nil // there is no table yet
	}
	if err := write(conn, c, exits, counted); err != nil {
		return repaired, fmt.Errorf("set up the table %s: %w", tableName, err)
	}
	t.exits = slices.Clone(exits)
	t.written, err = fingerprint(conn)
	return repaired, err
}

// write replaces the whole table.
func write(conn *nftables.Conn, c Config, exits []Address, counted map[string]uint64) error {
	t := conn.AddTable(tableOf())
	conn.DelTable(t) // deleting a missing one is an error
	conn.AddTable(t)
	for _, name := range counterNames {
		conn.AddObj(&nftables.NamedObj{Table: t, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{Packets: counted[name]}})
	}
	for _, f := range families {
		for _, set := range []*nftables.Set{f.openers(t), f.holders(t)} {
			if err := conn.AddSet(set, nil); err != nil {
				return err
			}
		}
		var elements []nftables.SetElement
		for _, x := range exits {
			if x.Addr.Is6() == f.ipv6 {
				elements = append(elements, nftables.SetElement{Key: interfaceName(x.Interface)})
			}
		}
		if err := conn.AddSet(f.outside(t), elements); err != nil {
			return err
		}
	}
	// A new table gives its rules the handles of those of the last one; the comment tells them
	// apart.
	comment := userdata.AppendString(nil, userdata.TypeComment, "sif "+rand.Text())
	for _, chain := range chains(t) {
		conn.AddChain(chain.Chain)
		for _, exprs := range chain.rules(c, exits) {
			conn.AddRule(&nftables.Rule{Table: t, Chain: chain.Chain, Exprs: exprs, UserData: comment})
		}
	}
	return conn.Flush()
}

// chain is a base chain and its rules.
type chain struct {
	*nftables.Chain
	rules func(Config, []Address) [][]expr.Any
}

func chains(t *nftables.Table) []chain {
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		policy := nftables.ChainPolicyAccept // other traffic is not affected
		return &nftables.Chain{Table: t, Name: name, Type: kind, Hooknum: hook, Priority: priority, Policy: &policy}
	}
	return []chain{
		{base("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw), raw},
		{base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter), input},
		{base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter), forward},
		{base("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter), output},
		{base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource), translate},
	}
}

// raw drops what has an address of the other side, before the kernel tracks it.
func raw(c Config, _ []Address) (rules [][]expr.Any) {
	for _, r := range c.Ranges {
		rules = append(rules, rule(from(wellknown.ExitInterface), within(source, r), accept()))
	}
	return append(rules, rule(from(wellknown.ExitInterface), drop(Spoofed)))
}

// input lets workloads reach nothing of the processor.
func input(Config, []Address) [][]expr.Any {
	return [][]expr.Any{rule(from(wellknown.ExitInterface), drop(ToHost))}
}

// output lets the processor tell workloads why a packet did not go on, and nothing else.
func output(Config, []Address) (rules [][]expr.Any) {
	for _, f := range families {
		for _, kind := range f.reports {
			rules = append(rules, rule(to(wellknown.ExitInterface), icmp(f.icmp, kind), accept()))
		}
	}
	return append(rules, rule(to(wellknown.ExitInterface), drop(ToHost)))
}

func forward(c Config, _ []Address) (rules [][]expr.Any) {
	in, out := from(wellknown.ExitInterface), to(wellknown.ExitInterface)
	// Both ends of a TCP connection learn at once which segments fit, although the path between
	// processor and workload may be wider, and that beyond the processor as well.
	for _, f := range families {
		for _, way := range [][]expr.Any{in, out} {
			rules = append(rules, rule(way, f.is(), segmentsUpTo(uint16(c.MTU)-f.headers)))
		}
	}
	for _, r := range c.Ranges {
		rules = append(rules, rule(out, within(source, r), drop(Spoofed)))
	}
	rules = append(rules, rule(out, answering(), ongoing(), translated(), accept()), rule(out, drop(Unasked)))
	for _, f := range families {
		outside := rule(in, f.is(), f.leaving())
		rules = append(rules,
			rule(outside, ongoing(), accept()),
			rule(outside, opening(), f.opensMoreThan(c.NewPerSecond), drop(Flood)),
			rule(outside, opening(), f.hasMoreThan(c.PerEndpoint), drop(Flood)),
			rule(outside, opening(), accept()))
	}
	return append(rules, rule(in, drop(Inside)))
}

// translate gives connections of workloads the address of the interface by which they leave.
func translate(c Config, exits []Address) (rules [][]expr.Any) {
	for _, x := range exits {
		for _, r := range c.Ranges {
			if r.Addr().Is6() == x.Addr.Is6() {
				rules = append(rules, rule(to(x.Interface), within(source, r), becomes(x.Addr)))
			}
		}
	}
	return rules
}

// fingerprint describes the table as it is in the kernel, with the interfaces to the outside. It is
// empty if there is no table.
func fingerprint(conn *nftables.Conn) (string, error) {
	table, err := ruleset.Describe(conn, tableName)
	if err != nil || table == "" {
		return "", err
	}
	var b strings.Builder
	b.WriteString(table)
	for _, f := range families {
		elements, err := conn.GetSetElements(f.outside(tableOf()))
		if err != nil {
			b.WriteString("no set\n")
		}
		var names []string
		for _, e := range elements {
			names = append(names, string(e.Key))
		}
		slices.Sort(names)
		fmt.Fprintf(&b, "%q\n", names)
	}
	return b.String(), nil
}

// counters returns the number of dropped packets by counter.
func counters() (map[string]uint64, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("read the counters of table %s: %w", tableName, err)
	}
	objects, err := conn.GetNamedObjects(tableOf())
	if err != nil {
		return nil, fmt.Errorf("read the counters of table %s: %w", tableName, err)
	}
	values := map[string]uint64{}
	for _, o := range objects {
		named, ok := o.(*nftables.NamedObj)
		if !ok {
			continue
		}
		if c, ok := named.Obj.(*expr.Counter); ok {
			values[named.Name] = c.Packets
		}
	}
	if len(values) == 0 {
		return nil, errors.New("read the counters of table " + tableName + ": it does not exist")
	}
	return values, nil
}

// family is an address family.
type family struct {
	ipv6                   bool
	name                   string
	version, icmp          byte
	address                nftables.SetDatatype
	sourceOffset, addrSize uint32
	reports                []byte // types of ICMP messages that report errors
	headers                uint16 // bytes of those of IP and TCP without options
}

var families = []family{
	{false, "4", unix.NFPROTO_IPV4, unix.IPPROTO_ICMP, nftables.TypeIPAddr, 12, 4, []byte{3, 11, 12}, 40},
	{true, "6", unix.NFPROTO_IPV6, unix.IPPROTO_ICMPV6, nftables.TypeIP6Addr, 8, 16, []byte{1, 2, 3, 4}, 60},
}

// outside is the set of interfaces to the outside.
func (f family) outside(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "outside" + f.name, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
}

// mostWorkloads bounds the sets of workloads.
const mostWorkloads = 1 << 18

// openers is the set of workloads that opened connections lately, each with its rate.
func (f family) openers(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "openers" + f.name, KeyType: f.address, Dynamic: true, HasTimeout: true, Size: mostWorkloads}
}

// holders is the set of workloads that have connections, each with those.
func (f family) holders(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "holders" + f.name, KeyType: f.address, Dynamic: true, Size: mostWorkloads}
}

// is matches packets of the family.
func (f family) is() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(f.version)}
}

// leaving matches packets that leave by an interface to the outside.
func (f family) leaving() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: f.outside(nil).Name}}
}

// opensMoreThan matches packets beyond a number of them a second of one sender.
func (f family) opensMoreThan(perSecond int) []expr.Any {
	return f.each(f.openers(nil), time.Minute, &expr.Limit{
		Type: expr.LimitTypePkts, Rate: uint64(perSecond), Burst: uint32(perSecond), Unit: expr.LimitTimeSecond, Over: true,
	})
}

// hasMoreThan matches packets of a sender with more connections than a number.
func (f family) hasMoreThan(connections int) []expr.Any {
	const over = 1 // NFT_CONNLIMIT_F_INV
	return f.each(f.holders(nil), 0, &expr.Connlimit{Count: uint32(connections), Flags: over})
}

// each evaluates an expression for each sender apart.
func (f family) each(set *nftables.Set, timeout time.Duration, e expr.Any) []expr.Any {
	operation := uint32(unix.NFT_DYNSET_OP_UPDATE)
	if timeout == 0 {
		operation = unix.NFT_DYNSET_OP_ADD
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.sourceOffset, Len: f.addrSize},
		&expr.Dynset{SrcRegKey: 1, SetName: set.Name, Operation: operation, Timeout: timeout, Exprs: []expr.Any{e}},
	}
}

// Expressions of the nftables virtual machine. Each function loads what it compares into register
// 1; the rule continues if it matches.

func rule(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func equal(data ...byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func interfaceName(name string) []byte {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return padded
}

func from(device string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, equal(interfaceName(device)...)}
}

func to(device string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, equal(interfaceName(device)...)}
}

func icmp(protocol, kind byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal(protocol),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}, equal(kind),
	}
}

// side is the position of an address in the IPv4 and the IPv6 header.
type side struct{ offset4, offset6 uint32 }

var source = side{12, 8}

func within(s side, p netip.Prefix) []expr.Any {
	p = p.Masked()
	f, offset := families[0], s.offset4
	if p.Addr().Is6() {
		f, offset = families[1], s.offset6
	}
	mask := make([]byte, f.addrSize)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(f.is(),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrSize},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.addrSize, Mask: mask, Xor: make([]byte, f.addrSize)},
		equal(p.Addr().AsSlice()...))
}

// ongoing matches packets of connections that were accepted, and reports about them.
func ongoing() []expr.Any {
	return conntrack(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// opening matches the first packet of a connection.
func opening() []expr.Any { return conntrack(expr.CtKeySTATE, expr.CtStateBitNEW) }

// translated matches packets of connections whose sender's address was translated.
func translated() []expr.Any {
	const sourceNAT = 1 << 4 // IPS_SRC_NAT
	return conntrack(expr.CtKeySTATUS, sourceNAT)
}

// answering matches packets to whom opened the connection.
func answering() []expr.Any {
	const reply = 1 // IP_CT_DIR_REPLY
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, equal(reply)}
}

func conntrack(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// segmentsUpTo lowers the size of segments that a TCP packet asks for.
func segmentsUpTo(size uint16) []expr.Any {
	const (
		flags, syn, reset = 13, 0x02, 0x04
		maxSegment        = 2 // the option, RFC 9293
	)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal(unix.IPPROTO_TCP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flags, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | reset}, Xor: []byte{0}}, equal(syn),
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, size)},
		&expr.Exthdr{SourceRegister: 1, Type: maxSegment, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	}
}

// becomes translates the sender's address.
func becomes(a netip.Addr) []expr.Any {
	version := uint32(unix.NFPROTO_IPV4)
	if a.Is6() {
		version = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: version, RegAddrMin: 1},
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

// drop counts and drops the packet.
func drop(counter string) []expr.Any {
	return []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter}, &expr.Verdict{Kind: expr.VerdictDrop}}
}
