// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package firewall is a node's own firewall: the nftables table "inet sif" in
// the network namespace of the process. It admits on the underlay only the
// encrypted links and management, keeps addresses of the fabric from coming in
// the clear, lets workloads at nothing of the node but its resolver, forwards
// for them nothing but what eBPF decides, and maps ports of the node to
// endpoints. It knows interfaces, addresses and ports, and no policy.
//
// What has to do neither with the underlay nor with an interface of the fabric
// it leaves alone: other networks of the node go on as they were.
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

// tableName is the name of the table, of family inet.
const tableName = "sif"

// Names of the counters: packets that were dropped, by what they tried.
const (
	PlainFabricSource = "plain-fabric-source" // an address of the fabric, in the clear on the underlay
	UnderlayInput     = "underlay-input"      // something of the node that is not open to the underlay
	WorkloadInput     = "workload-input"      // something of the node that is not open to workloads
	LinkInput         = "link-input"          // something of the node, through an encrypted link
	Forward           = "forward"             // a way past the fabric
)

var counterNames = []string{PlainFabricSource, UnderlayInput, WorkloadInput, LinkInput, Forward}

// Port is a port of the node that is open to the underlay.
type Port struct {
	Protocol fabric.Protocol
	Number   uint16
}

// Config says what the node is.
type Config struct {
	Underlay   string         // the interface by which the node reaches others
	Ranges     []netip.Prefix // what the pools of the fabric are taken from
	Management []Port         // open to the underlay
}

// PortMapping leads a port of the node to an endpoint.
type PortMapping struct {
	Protocol fabric.Protocol
	HostIP   netip.Addr // zero, or unspecified: every IPv4 address of the node
	HostPort uint16
	To       netip.AddrPort // IPv4
}

// Firewall is the table. It is safe for concurrent use.
type Firewall struct {
	config Config

	mu    sync.Mutex
	known bool // whether SetPorts said which ports there are
	ports []PortMapping
}

// New returns the firewall of a node and changes nothing yet.
func New(c Config) *Firewall {
	return &Firewall{config: c}
}

// Apply makes the table be as it should, in one transaction: no packet sees
// less than the old or the new rules. A table that an earlier process left is
// taken over with its counters, and with its port mappings until SetPorts.
// Established connections go on.
func (f *Firewall) Apply() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("set up the node's firewall: %w", err)
	}
	familiar, err := f.familiar(conn)
	if err != nil {
		return err
	}
	if familiar {
		if err := f.write(conn, false); err == nil {
			return nil
		}
		// Something of ours has another form, such as a hook's priority.
	}
	if err := f.write(conn, true); err != nil {
		return fmt.Errorf("set up the node's firewall: %w", err)
	}
	return nil
}

// familiar reports whether the table, if there is one, has no other chains
// than ours.
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

// write sends the whole table as one transaction. With anew, the old one goes
// in the same transaction.
func (f *Firewall) write(conn *nftables.Conn, anew bool) error {
	table := conn.AddTable(f.table())
	if anew {
		conn.DelTable(table)
		conn.AddTable(table)
	}
	for _, name := range counterNames {
		conn.AddObj(&nftables.NamedObj{Table: table, Name: name, Type: nftables.ObjTypeCounter, Obj: newCounter()})
	}
	maps := newPortMaps(table)
	for _, s := range maps.sets() {
		if err := conn.AddSet(s, nil); err != nil {
			return err
		}
	}
	if f.known {
		if err := maps.fill(conn, f.ports); err != nil {
			return err
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

// SetPorts replaces all port mappings, in one transaction. Connections that
// were mapped before go on until they end.
func (f *Firewall) SetPorts(ports []PortMapping) error {
	if err := checkPorts(ports); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known && slices.Equal(f.ports, ports) {
		return nil // Apply repairs what somebody else changed
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("map ports of the node: %w", err)
	}
	if err := newPortMaps(f.table()).fill(conn, ports); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("map ports of the node: %w", err)
	}
	f.ports, f.known = slices.Clone(ports), true
	return nil
}

// Counters returns how many packets were dropped, by the counter's name, since
// the table was made.
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
		if name, packets, ok := counted(o); ok {
			counters[name] = packets
		}
	}
	if len(counters) == 0 {
		return nil, errors.New("read the firewall's counters: the table is gone")
	}
	return counters, nil
}

// Remove takes the table away, if it is there.
func (f *Firewall) Remove() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("remove the node's firewall: %w", err)
	}
	conn.DelTable(conn.AddTable(f.table())) // to remove what is not there would be an error
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove the node's firewall: %w", err)
	}
	return nil
}
