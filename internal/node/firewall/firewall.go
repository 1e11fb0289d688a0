// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package firewall is a node's firewall: the nftables table "inet sif" in the network namespace of
// the process. On the underlay it accepts only the encrypted links and management ports, and drops
// unencrypted packets with addresses of the fabric. It lets workloads reach nothing of the node
// except its resolver, forwards only packets between endpoints and links, which eBPF checks, and
// maps ports of the node to endpoints. It knows interfaces, addresses and ports, but no policy.
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
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"

	"github.com/sif-project/sif/fabric"
)

// tableName is the name of the table in the inet family.
const tableName = "sif"

// Names of the counters of dropped packets, by what the packets tried to reach.
const (
	PlainFabricSource = "plain-fabric-source" // an address of the fabric, unencrypted on the underlay
	UnderlayInput     = "underlay-input"      // a port of the node that is not open to the underlay
	WorkloadInput     = "workload-input"      // a port of the node that is not open to workloads
	DNSFlood          = "dns-flood"           // the node's resolver, by a workload that sends it too much
	LinkInput         = "link-input"          // a port of the node, through an encrypted link
	Forward           = "forward"             // forwarding that bypasses the fabric
	Published         = "published"           // a published port, of which too many connections opened in a second
)

var counterNames = []string{PlainFabricSource, UnderlayInput, WorkloadInput, DNSFlood, LinkInput, Forward, Published}

// DNSPacketsPerSecond is the usual Config.DNSPackets.
const DNSPacketsPerSecond = 4000

// Port is a port of the node that is open to the underlay.
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
	Published  int            // connections to published ports that may open in a second
	// Links returns the UDP ports of the links, and Engine, unless it is nil, the TCP port of the
	// node's engine, 0 if it has none. All are open to the underlay. Each Apply calls both.
	Links  func() []uint16
	Engine func() uint16
	// DNSPackets is how many packets a second a workload may send to the node's resolver, not
	// counting those of its TCP connections, and an eighth of it at once. More are dropped before
	// they reach the socket that all workloads share.
	DNSPackets uint32
}

// Firewall manages the table. It is safe for concurrent use.
type Firewall struct {
	config Config

	mu     sync.Mutex
	chosen setting
	known  bool // SetPorts has set ports
	ports  []PortMapping
	// written is the fingerprint of the table after it was written; empty before.
	written  string
	opened   opened            // when it was written
	mode     setting           // when it was written
	versions map[string]string // of programs, by path
}

// New returns the firewall of a node, in mode Enforce. It does not change the kernel.
func New(c Config) *Firewall {
	return &Firewall{config: c, chosen: setting{mode: Enforce}, versions: map[string]string{}}
}

// Trial returns a firewall with the same rules that knows nothing of what was written, for another
// network namespace.
func (f *Firewall) Trial() *Firewall { return New(f.config) }

// Apply sets up or repairs the table in one transaction, so that each packet sees either the old or
// the new rules, and returns what others had changed since the last Apply. Apply keeps the counters
// in the table of an earlier process, and its port mappings until SetPorts is called. Established
// connections continue.
func (f *Firewall) Apply() (repaired []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("set up the node's firewall: %w", err)
	}
	have, err := f.fingerprint(conn)
	if err != nil {
		return nil, err
	}
	same := f.written != "" && have == f.written
	open := f.open()
	if same && slices.Equal(open.links, f.opened.links) && open.engine == f.opened.engine && f.mode == f.chosen {
		return nil, nil
	}
	if f.written != "" && !same {
		repaired = []string{"the nftables table inet " + tableName}
	}
	if err := f.writeOver(conn, have); err != nil {
		return nil, fmt.Errorf("set up the node's firewall: %w", err)
	}
	f.opened, f.mode = open, f.chosen
	f.written, err = f.fingerprint(conn)
	return repaired, err
}

// opened are the ports of the node's daemons, which may change.
type opened struct {
	links  []uint16
	engine uint16
}

func (f *Firewall) open() opened {
	o := opened{links: slices.Clone(f.config.Links())}
	if f.config.Engine != nil {
		o.engine = f.config.Engine()
	}
	return o
}

// writeOver writes the table over the one that is there.
func (f *Firewall) writeOver(conn *nftables.Conn, have string) error {
	familiar, err := f.familiar(conn)
	if err != nil {
		return err
	}
	if familiar && !dormant(have) {
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
	for _, set := range []*nftables.Set{dnsAskers(table), hits(table), enforcing(table)} {
		if err := conn.AddSet(set, nil); err != nil {
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
	for _, c := range f.chains(table) {
		conn.AddChain(c.Chain)
		conn.FlushChain(c.Chain)
		for _, exprs := range c.rules(f, maps) {
			conn.AddRule(&nftables.Rule{Table: table, Chain: c.Chain, Exprs: exprs})
		}
	}
	return conn.Flush()
}

// SetPorts replaces all port mappings in one transaction. Each mapping must pass Check, and none
// may overlap another one. Connections with a removed mapping continue until they end.
func (f *Firewall) SetPorts(ports []PortMapping) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known && slices.Equal(f.ports, ports) {
		return nil // Apply repairs changes from outside
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("map ports of the node: %w", err)
	}
	have, err := f.fingerprint(conn)
	if err != nil {
		return fmt.Errorf("map ports of the node: %w", err)
	}
	for _, m := range newPortMaps(f.table()) {
		if err := m.fill(conn, ports); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("map ports of the node: %w", err)
	}
	f.ports, f.known = slices.Clone(ports), true
	if f.written == "" || have != f.written {
		return nil // the next Apply repairs what others changed
	}
	if f.written, err = f.fingerprint(conn); err != nil {
		return fmt.Errorf("map ports of the node: %w", err)
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
