// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/fabric"
)

// Mode says what happens to packets from the underlay to ports of the node that are not open, and
// to those that the node routes between others. All other rules hold in both modes.
type Mode string

const (
	Report  Mode = "report"  // they are counted, and pass
	Enforce Mode = "enforce" // they are counted and dropped
)

// forwardReported counts what is routed between others in mode Report.
const forwardReported = "forward-reported"

// setting is a mode and, if it is Enforce for a time only, when the kernel goes back to Report.
type setting struct {
	mode  Mode
	until time.Time
}

// SetMode sets the mode; the next Apply makes it so. With until, the kernel itself goes back from
// Enforce to Report at that time, even if no process of ours runs then.
func (f *Firewall) SetMode(m Mode, until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.chosen = setting{m, until}
}

// enforcing is the set of protocol families for which closed ports are closed. Its elements can
// expire.
func enforcing(table *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: table, Name: "enforcing", KeyType: nftables.TypeNFProto, HasTimeout: true}
}

// fill makes the set say what the mode is.
func (s setting) fill(conn *nftables.Conn, table *nftables.Table) error {
	set := enforcing(table)
	conn.FlushSet(set)
	var timeout time.Duration
	if !s.until.IsZero() {
		timeout = time.Until(s.until)
	}
	if s.mode == Report || timeout < 0 {
		return nil
	}
	if err := conn.SetAddElements(set, []nftables.SetElement{
		{Key: []byte{unix.NFPROTO_IPV4}, Timeout: timeout}, {Key: []byte{unix.NFPROTO_IPV6}, Timeout: timeout},
	}); err != nil {
		return fmt.Errorf("set the mode of the node's firewall: %w", err)
	}
	return nil
}

// enforced matches packets while the mode is Enforce.
func enforced() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: enforcing(nil).Name},
	}
}

// hitsKept is how long a port is remembered after its last packet.
const hitsKept = 24 * time.Hour

// hits is the set of closed ports that packets came to, with a counter each.
func hits(table *nftables.Table) *nftables.Set {
	return &nftables.Set{
		Table: table, Name: "hits", Dynamic: true, HasTimeout: true, Size: 65535, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
	}
}

// note counts the packet by its protocol and destination port.
func note(p fabric.Protocol) []expr.Any {
	const first = unix.NFT_REG32_00
	return slices.Concat(protocol(byte(p)), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: first},
		&expr.Payload{DestRegister: first + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Dynset{SrcRegKey: first, SetName: hits(nil).Name, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: hitsKept,
			Exprs: []expr.Any{newCounter()}},
	})
}

// noteOthers counts the packets that neither TCP nor UDP nor ICMP carries, by protocol.
func noteOthers() []expr.Any {
	const first = unix.NFT_REG32_00
	var exprs []expr.Any
	for _, p := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		exprs = append(exprs, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{p}})
	}
	return append(exprs,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: first},
		&expr.Immediate{Register: first + 1, Data: []byte{0, 0}},
		&expr.Dynset{SrcRegKey: first, SetName: hits(nil).Name, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: hitsKept,
			Exprs: []expr.Any{newCounter()}})
}

// count counts the packet.
func count(counter string) []expr.Any {
	return []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter}}
}

// Hit is a port of the node that is not open to the underlay, or a protocol with port 0, and how
// many packets came to it that opened something, dropped or not. It is forgotten a day after the
// last one.
type Hit struct {
	Port
	Packets uint64
}

// Hits returns the ports that were hit, and how many packets the node routed between others that
// Enforce drops.
func (f *Firewall) Hits() (list []Hit, forwarded uint64, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, 0, fmt.Errorf("read what the firewall counted: %w", err)
	}
	elements, err := conn.GetSetElements(hits(f.table()))
	if err != nil {
		return nil, 0, fmt.Errorf("read what the firewall counted: %w", err)
	}
	for _, e := range elements {
		if len(e.Key) < 6 || e.Counter == nil {
			continue
		}
		list = append(list, Hit{Port{fabric.Protocol(e.Key[0]), binary.BigEndian.Uint16(e.Key[4:])}, e.Counter.Packets})
	}
	slices.SortFunc(list, func(a, b Hit) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Number, b.Number))
	})
	objects, err := conn.GetNamedObjects(f.table())
	if err != nil {
		return nil, 0, fmt.Errorf("read what the firewall counted: %w", err)
	}
	for _, o := range objects {
		if name, packets, ok := counted(o); ok && name == forwardReported {
			forwarded = packets
		}
	}
	return list, forwarded, nil
}

// Open returns the ports that are open to the underlay, apart from those of endpoints.
func (f *Firewall) Open() []Port {
	list := slices.Clone(f.config.Management)
	open := f.open()
	for _, link := range open.links {
		list = append(list, Port{fabric.UDP, link})
	}
	if open.engine != 0 {
		list = append(list, Port{fabric.TCP, open.engine})
	}
	return list
}
