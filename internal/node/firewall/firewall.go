// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package firewall is a node's firewall: the nftables table "inet sif" in the network namespace of
// the process. On the underlay it accepts only the encrypted links and management ports, and drops
// unencrypted packets with addresses of the fabric. It lets workloads reach nothing of the node
// except its resolver and the ports that it exposes, forwards packets between endpoints and links,
// which eBPF checks, and maps ports of the node to endpoints. What endpoints may reach outside with
// the node as exit it judges again, and translates to the node's address. It knows interfaces,
// addresses and ports, but no policy.
//
// A mode decides whether what comes from the underlay to other ports is dropped, or only counted by
// port.
//
// It does not affect packets that use neither the underlay nor an interface of the fabric. Where
// the chains of iptables would drop what the table accepts, it inserts rules there.
package firewall

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/ruleset"
)

// tableName is the name of the table in the inet family.
const tableName = "sif"

// Names of the counters of dropped packets, by what the packets tried to reach.
const (
	PlainFabricSource = "plain-fabric-source" // an address of the fabric, unencrypted on the underlay
	UnderlayInput     = "underlay-input"      // a port of the node that is not open to the underlay
	WorkloadInput     = "workload-input"      // a port of the node that is not open to workloads
	DNSFlood          = "dns-flood"           // the node's resolver, by a workload that sends it too much
	LinkInput         = "link-input"          // a port of the node, or no address of the fabric, through an encrypted link
	Forward           = "forward"             // forwarding that bypasses the fabric
	Published         = "published"           // a published port, by too many connections, or too many in a second
	Exit              = "exit"                // the outside by the node, without being in its sets
	ExitFlood         = "exit-flood"          // the outside by the node, by too many connections, or too many in a second
	NodeFlood         = "node-flood"          // a port that the node exposes, by a workload with too many connections
)

var counterNames = []string{PlainFabricSource, UnderlayInput, WorkloadInput, DNSFlood, LinkInput, Forward, Published, Exit, ExitFlood, NodeFlood}

// DNSPacketsPerSecond is the usual Config.DNSPackets.
const DNSPacketsPerSecond = 4000

// Port is a port of the node, or a protocol as a whole if the number is 0.
type Port struct {
	Protocol fabric.Protocol
	Number   uint16
}

// Config describes the node.
type Config struct {
	Underlay   string         // the interface towards other nodes
	Ranges     []netip.Prefix // the prefixes from which the pools of the fabric are assigned
	Management []Port         // open to the underlay
	Health     []netip.Addr   // the node's health addresses, at which probes come through links
	Exposed    []Exposed      // open to workloads
	// Agents opens the port for the agents of the zone on the health addresses, to the link to the
	// nodes of the zone.
	Agents bool
	// Published is how many connections to published ports may open in a second, and, counted
	// apart, how many to the outside with the node as exit.
	Published int
	// Links returns the UDP ports of the links, and Engine, unless it is nil, the TCP port of the
	// node's engine, 0 if it has none. All are open to the underlay. Each Apply calls both.
	Links  func() []uint16
	Engine func() uint16
	// Marks, unless it is nil, returns the marks that packets get by the interface by which they
	// come. Each Apply calls it.
	Marks func() map[string]uint32
	// DNSPackets is how many packets a second a workload may send to the node's resolver, not
	// counting those of its TCP connections, and an eighth of it at once. More are dropped before
	// they reach the socket that all workloads share.
	DNSPackets uint32
}

// Firewall manages the table. It is safe for concurrent use.
type Firewall struct {
	config Config

	mu          sync.Mutex
	chosen      setting
	known       bool // SetPorts has set ports
	ports       []PortMapping
	egressKnown bool // SetEgress has set egress
	egress      letOut
	uncut       uncut
	writing     opened // for the rules that are being written
	// written is the fingerprint of the table after it was written; empty before. Generation is
	// that of the kernel's rules when they were last known to be so.
	written    string
	generation uint32
	opened     opened            // when it was written
	mode       setting           // when it was written
	versions   map[string]string // of programs, by path
}

// New returns the firewall of a node, in mode Enforce. It does not change the kernel.
func New(c Config) *Firewall {
	return &Firewall{config: c, chosen: setting{mode: Enforce}, versions: map[string]string{}, uncut: uncut{exposed: true}}
}

// Trial returns a firewall with the same rules that knows nothing of what was written, for another
// network namespace.
func (f *Firewall) Trial() *Firewall { return New(f.config) }

// newConn returns a connection to nftables that can carry the largest transaction, and the kernel's
// answer to each of its messages: all come at once, and Linux 6.1 has no room for some 200 of them
// in a buffer of the usual size.
func newConn() (*nftables.Conn, error) {
	const room = 64 << 20 // an element of the largest set needs some 100 bytes
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(room), c.SetReadBuffer(room))
	}))
	if err != nil {
		return nil, fmt.Errorf("call nftables: %w", err)
	}
	return conn, nil
}

// Apply sets up or repairs the table in one transaction, so that each packet sees either the old or
// the new rules, and returns what others had changed since the last Apply. Apply keeps the counters
// in the table of an earlier process, its port mappings until SetPorts is called, and what it lets
// out until SetEgress is. Established connections continue.
func (f *Firewall) Apply() (repaired []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	open := f.open()
	unchanged := f.written != "" && open.equal(f.opened) && f.mode == f.chosen
	now, err := ruleset.Generation()
	if err != nil {
		return nil, err
	}
	if unchanged && now == f.generation {
		return nil, f.cut()
	}
	conn, err := newConn()
	if err != nil {
		return nil, fmt.Errorf("set up the node's firewall: %w", err)
	}
	have, err := f.fingerprint(conn)
	if err != nil {
		return nil, err
	}
	same := f.written != "" && have == f.written && f.intact(conn)
	if same && unchanged {
		f.generation = now
		return nil, f.cut()
	}
	if f.written != "" && !same {
		repaired = []string{"the nftables table inet " + tableName}
	}
	f.writing = open
	if err := f.writeOver(conn, have); err != nil {
		return nil, fmt.Errorf("set up the node's firewall: %w", err)
	}
	f.opened, f.mode = open, f.chosen
	if f.generation, err = ruleset.Generation(); err != nil {
		return repaired, err
	}
	if f.written, err = f.fingerprint(conn); err != nil {
		return repaired, err
	}
	return repaired, f.cut()
}

// intact reports whether the sets of SetEgress are as it wrote them.
func (f *Firewall) intact(conn *nftables.Conn) bool {
	if !f.egressKnown {
		return true
	}
	have, err := f.readEgress(conn)
	return err == nil && have.equal(f.egress)
}

// opened are the ports of the node's daemons, the marks of its links, and a limit, which may
// change.
type opened struct {
	links    []uint16
	engine   uint16
	tracking uint32 // translated connections that an address may have
	marks    map[string]uint32
}

func (o opened) equal(p opened) bool {
	return slices.Equal(o.links, p.links) && o.engine == p.engine && o.tracking == p.tracking && maps.Equal(o.marks, p.marks)
}

func (f *Firewall) open() opened {
	o := opened{links: slices.Clone(f.config.Links()), tracking: tracking()}
	if f.config.Engine != nil {
		o.engine = f.config.Engine()
	}
	if f.config.Marks != nil {
		o.marks = f.config.Marks()
	}
	return o
}

// writeOver writes the table over the one that is there.
func (f *Firewall) writeOver(conn *nftables.Conn, have string) error {
	familiar, err := f.familiar(conn)
	if err != nil {
		return err
	}
	if familiar && !ruleset.Dormant(have) {
		if err := f.write(conn, false); err == nil {
			return nil
		}
		// The table of another version may differ in what cannot be changed, such as a hook's
		// priority.
	}
	return f.write(conn, true)
}

// familiar reports whether the table, if it exists, has no other chains than ours.
func (f *Firewall) familiar(conn *nftables.Conn) (bool, error) {
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list the chains of nftables: %w", err)
	}
	ours := f.chains(f.table())
	for _, c := range chains {
		if c.Table.Name == tableName && !slices.ContainsFunc(ours, func(o chain) bool { return o.Name == c.Name }) {
			return false, nil
		}
	}
	return true, nil
}

func (f *Firewall) table() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

// write writes the whole table in one transaction. With anew set, the transaction first deletes the
// old one.
func (f *Firewall) write(conn *nftables.Conn, anew bool) error {
	table := conn.AddTable(f.table())
	if anew {
		conn.DelTable(table)
		conn.AddTable(table)
	}
	for _, name := range append(slices.Clone(counterNames), forwardReported) {
		conn.AddObj(&nftables.NamedObj{Table: table, Name: name, Type: nftables.ObjTypeCounter, Obj: newCounter()})
	}
	for _, set := range f.ownSets(table) {
		if err := conn.AddSet(set, nil); err != nil {
			return err
		}
	}
	if f.egressKnown {
		if err := f.fillEgress(conn, f.egress); err != nil {
			return err
		}
	}
	if err := f.chosen.fill(conn, table); err != nil {
		return err
	}
	maps := newPortMaps(table)
	for _, m := range maps {
		if err := conn.AddSet(m.Set, nil); err != nil {
			return err
		}
		if f.known {
			if err := m.fill(conn, f.ports); err != nil {
				return err
			}
		}
	}
	chains := f.chains(table)
	for _, c := range chains { // a chain must be there when a rule of another one names it
		conn.AddChain(c.Chain)
		conn.FlushChain(c.Chain)
	}
	for _, c := range chains {
		for _, exprs := range c.rules(f, maps) {
			conn.AddRule(&nftables.Rule{Table: table, Chain: c.Chain, Exprs: exprs})
		}
	}
	return conn.Flush()
}

// ownSets returns the sets whose content is no mapping.
func (f *Firewall) ownSets(table *nftables.Table) []*nftables.Set {
	sets := []*nftables.Set{dnsAskers(table).Set, hits(table), enforcing(table)}
	for _, list := range [][]sources{outRates(table), outgoing(table), callers(table), neighbours(table)} {
		for _, s := range list {
			sets = append(sets, s.Set)
		}
	}
	for _, s := range returnings(table) {
		sets = append(sets, s.Set)
	}
	for _, s := range egressSets(table) {
		sets = append(sets, s.Set)
	}
	for _, s := range withheldSets(table) {
		sets = append(sets, s.Set)
	}
	return sets
}

// SetPorts replaces all port mappings in one transaction. Each mapping must pass Check, and none
// may overlap another one. Connections with a removed mapping end: the kernel forgets them. The
// list must be complete from the first call on.
func (f *Firewall) SetPorts(ports []PortMapping) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known && slices.Equal(f.ports, ports) {
		return f.cut() // Apply repairs changes from outside
	}
	if err := f.writePorts(ports); err != nil {
		return fmt.Errorf("map ports of the node: %w", err)
	}
	return f.cut()
}

func (f *Firewall) writePorts(ports []PortMapping) error {
	conn, err := newConn()
	if err != nil {
		return err
	}
	have, err := f.fingerprint(conn)
	if err != nil {
		return err
	}
	before, err := ruleset.Generation()
	if err != nil {
		return err
	}
	for _, m := range newPortMaps(f.table()) {
		if err := m.fill(conn, ports); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil {
		return err
	}
	f.uncut.ports = f.uncut.ports || !f.known || slices.ContainsFunc(f.ports, func(p PortMapping) bool { return !slices.Contains(ports, p) })
	f.ports, f.known = slices.Clone(ports), true
	if f.written == "" || have != f.written {
		return nil // the next Apply repairs what others changed
	}
	if f.written, err = f.fingerprint(conn); err != nil {
		return err
	}
	if after, err := ruleset.Generation(); err == nil && f.generation == before && after == before+1 {
		f.generation = after // nobody else changed anything
	}
	return nil
}

// Counters returns the number of dropped packets by counter, since the table was created.
func (f *Firewall) Counters() (map[string]uint64, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("read the firewall's counters: %w", err)
	}
	objects, err := conn.GetNamedObjects(f.table())
	if err != nil {
		return nil, fmt.Errorf("read the firewall's counters: %w", err)
	}
	counters := map[string]uint64{}
	for _, o := range objects {
		if name, packets, ok := counted(o); ok && name != forwardReported {
			counters[name] = packets
		}
	}
	if len(counters) == 0 {
		return nil, errors.New("read the firewall's counters: the table does not exist")
	}
	return counters, nil
}

// Remove deletes the table if it exists, and what Admit inserted elsewhere.
func (f *Firewall) Remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("remove the node's firewall: %w", err)
	}
	return errors.Join(f.removeTable(), f.withdraw(conn))
}

func (f *Firewall) removeTable() error {
	conn, err := nftables.New()
	if err == nil {
		conn.DelTable(conn.AddTable(f.table())) // deleting a missing table is an error
		err = conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("remove the node's firewall: %w", err)
	}
	return nil
}
