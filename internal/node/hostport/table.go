// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hostport

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"

	"github.com/sif-project/sif/internal/node/ruleset"
)

// tableName is the name of the tables in the inet family, of the node's namespace and of those of
// endpoints.
const tableName = "sif_host"

// Names of the counters of dropped packets, by what the packets tried.
const (
	Input     = "host-input"     // the node, by an endpoint's namespace, without being led to a process
	Output    = "host-output"    // an endpoint's namespace, by others than its process
	Forward   = "host-forward"   // to go by the node between an endpoint's namespace and others
	Elsewhere = "host-elsewhere" // to leave by another interface than the endpoint's
	Inside    = "host-inside"    // a way through an endpoint's namespace that is not open
)

var counterNames = []string{Input, Output, Forward, Elsewhere, Inside}

func tableOf() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

// chain is a chain and its rules.
type chain struct {
	*nftables.Chain
	rules [][]expr.Any
}

// base returns a base chain. What no rule of it drops passes.
func base(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority int, rules [][]expr.Any) chain {
	policy := nftables.ChainPolicyAccept
	return chain{&nftables.Chain{
		Name: name, Type: kind, Hooknum: hook, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority)), Policy: &policy,
	}, rules}
}

// addresses is a set of addresses of a family.
type addresses struct {
	name     string
	family   family
	prefixes []netip.Prefix // none within another
}

func (a addresses) set() *nftables.Set {
	return &nftables.Set{Table: tableOf(), Name: a.name, KeyType: a.family.address, Interval: true}
}

// elements returns the first address of each prefix, and the one after its last, unless that is the
// last of all.
func (a addresses) elements() (elements []nftables.SetElement) {
	for _, p := range a.prefixes {
		elements = append(elements, nftables.SetElement{Key: p.Addr().AsSlice()})
		if after := last(p).Next(); after.IsValid() {
			elements = append(elements, nftables.SetElement{Key: after.AsSlice(), IntervalEnd: true})
		}
	}
	return elements
}

func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// disjoint returns the prefixes of a family, ordered and without those within others: the
// kernel refuses elements that overlap.
func disjoint(list []netip.Prefix, f family) (result []netip.Prefix) {
	for _, p := range list {
		if p.Addr().Is6() == f.ipv6 {
			result = append(result, p.Masked())
		}
	}
	slices.SortFunc(result, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	kept := result[:0]
	for _, p := range result {
		if n := len(kept); n > 0 && kept[n-1].Contains(p.Addr()) {
			continue
		}
		kept = append(kept, p)
	}
	return kept
}

// content is what a table must contain.
type content struct {
	chains []chain
	sets   []addresses
}

// key tells two contents apart, without the elements of their sets.
func (c content) key() string {
	var b strings.Builder
	for _, s := range c.sets {
		fmt.Fprintf(&b, "%s\n", s.name)
	}
	for _, chain := range c.chains {
		fmt.Fprintf(&b, "%s\n", chain.Name)
		for _, r := range chain.rules {
			for _, e := range r {
				fmt.Fprintf(&b, "%T%+v ", e, e)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// members describes the elements of the sets.
func (c content) members() string {
	var b strings.Builder
	for _, s := range c.sets {
		fmt.Fprintf(&b, "%s %s\n", s.name, s.prefixes)
	}
	return b.String()
}

// table is an nftables table, of which it remembers what it wrote.
type table struct {
	written    string // the fingerprint after it was written; empty before
	generation uint32 // of the kernel's rules when they were last known to be so
	key        string
	members    string
}

// apply writes the table in one transaction unless it is as it was written, and reports whether
// somebody else had changed it. Counters and connections go on.
func (t *table) apply(want content) (repaired bool, err error) {
	now, err := ruleset.Generation()
	if err != nil {
		return false, err
	}
	key, members := want.key(), want.members()
	if t.written != "" && now == t.generation && t.key == key && t.members == members {
		return false, nil
	}
	conn, err := newConn()
	if err != nil {
		return false, err
	}
	have, err := fingerprint(conn, want.sets)
	if err != nil {
		return false, err
	}
	same := t.written != "" && have == t.written
	repaired = t.written != "" && !same && (t.key == key || !strings.HasPrefix(have, "flags"))
	switch {
	case same && t.key == key && t.members == members:
		t.generation = now
		return false, nil
	case same && t.key == key:
		err = fill(conn, want)
	default:
		err = write(conn, want)
	}
	if err != nil {
		return repaired, fmt.Errorf("set up the nftables table inet %s: %w", tableName, err)
	}
	t.key, t.members = key, members
	if t.generation, err = ruleset.Generation(); err != nil {
		return repaired, err
	}
	t.written, err = fingerprint(conn, want.sets)
	return repaired, err
}

// newConn returns a connection to nftables with room for all answers of the kernel at once.
func newConn() (*nftables.Conn, error) {
	const room = 4 << 20
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(room), c.SetWriteBuffer(room))
	}))
	if err != nil {
		return nil, fmt.Errorf("call nftables: %w", err)
	}
	return conn, nil
}

// write replaces the whole table.
func write(conn *nftables.Conn, want content) error {
	counted, err := counters(conn)
	if err != nil {
		return err
	}
	t := conn.AddTable(tableOf())
	conn.DelTable(t) // deleting a missing one is an error
	conn.AddTable(t)
	for _, name := range counterNames {
		conn.AddObj(&nftables.NamedObj{Table: t, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{Packets: counted[name]}})
	}
	for _, s := range want.sets {
		if err := conn.AddSet(s.set(), s.elements()); err != nil {
			return err
		}
	}
	// A new table gives its rules the handles of those of the last one; the comment tells them
	// apart.
	comment := userdata.AppendString(nil, userdata.TypeComment, "sif "+rand.Text())
	for _, c := range want.chains {
		c.Table = t
		conn.AddChain(c.Chain)
		for _, exprs := range c.rules {
			conn.AddRule(&nftables.Rule{Table: t, Chain: c.Chain, Exprs: exprs, UserData: comment})
		}
	}
	return conn.Flush()
}

// fill replaces the elements of the sets.
func fill(conn *nftables.Conn, want content) error {
	for _, s := range want.sets {
		set := s.set()
		conn.FlushSet(set)
		if elements := s.elements(); len(elements) > 0 {
			if err := conn.SetAddElements(set, elements); err != nil {
				return err
			}
		}
	}
	return conn.Flush()
}

// remove deletes the table, if it exists.
func (t *table) remove() error {
	conn, err := nftables.New()
	if err == nil {
		conn.DelTable(conn.AddTable(tableOf())) // deleting a missing table is an error
		err = conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("delete the nftables table inet %s: %w", tableName, err)
	}
	*t = table{}
	return nil
}

// exists reports whether there is a table.
func exists() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("call nftables: %w", err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list the tables of nftables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName }), nil
}

// fingerprint describes the table as it is in the kernel, with the elements of its sets. It is
// empty if there is no table.
func fingerprint(conn *nftables.Conn, sets []addresses) (string, error) {
	table, err := ruleset.Describe(conn, tableName)
	if err != nil || table == "" {
		return "", err
	}
	var b strings.Builder
	b.WriteString(table)
	for _, s := range sets {
		elements, err := conn.GetSetElements(s.set())
		if err != nil {
			fmt.Fprintf(&b, "no set %s\n", s.name)
			continue
		}
		var list []string
		for _, e := range elements {
			list = append(list, fmt.Sprint(hex.EncodeToString(e.Key), e.IntervalEnd))
		}
		slices.Sort(list)
		fmt.Fprintf(&b, "set %s %q\n", s.name, list)
	}
	return b.String(), nil
}

// counters returns the number of dropped packets by counter; none if there is no table.
func counters(conn *nftables.Conn) (map[string]uint64, error) {
	there, err := exists()
	if err != nil || !there {
		return nil, err
	}
	objects, err := conn.GetNamedObjects(tableOf())
	if err != nil {
		return nil, fmt.Errorf("read the counters of table %s: %w", tableName, err)
	}
	values := map[string]uint64{}
	for _, o := range objects {
		if named, ok := o.(*nftables.NamedObj); ok {
			if c, ok := named.Obj.(*expr.Counter); ok {
				values[named.Name] = c.Packets
			}
		}
	}
	return values, nil
}
