// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// tableDormant is NFT_TABLE_F_DORMANT of <linux/netfilter/nf_tables.h>: the chains are not called.
const tableDormant = 1

// fingerprint describes the table as it is in the kernel: its flags, its chains, the handles of its
// rules, and the elements of its sets. The kernel gives a rule that is replaced another handle, so
// two equal fingerprints mean that nobody changed anything in between. It is empty if there is no
// table.
func (f *Firewall) fingerprint(conn *nftables.Conn) (string, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("list the tables of nftables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	if i < 0 {
		return "", nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table flags %d\n", tables[i].Flags)
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("list the chains of nftables: %w", err)
	}
	slices.SortFunc(chains, func(a, b *nftables.Chain) int { return cmp.Compare(a.Name, b.Name) })
	for _, c := range chains {
		if c.Table.Name != tableName {
			continue
		}
		fmt.Fprintf(&b, "chain %s", c.Name)
		if c.Policy != nil && c.Hooknum != nil && c.Priority != nil {
			fmt.Fprintf(&b, " policy %d hook %d priority %d", *c.Policy, *c.Hooknum, *c.Priority)
		}
		rules, err := conn.GetRules(f.table(), c)
		if err != nil {
			return "", fmt.Errorf("list the rules of chain %s: %w", c.Name, err)
		}
		for _, r := range rules {
			fmt.Fprintf(&b, " %d", r.Handle)
		}
		b.WriteByte('\n')
	}
	for _, m := range newPortMaps(f.table()) {
		elements, err := conn.GetSetElements(m.Set)
		if err != nil {
			fmt.Fprintf(&b, "no set %s\n", m.Name)
			continue
		}
		var list []string
		for _, e := range elements {
			list = append(list, hex.EncodeToString(e.Key)+" "+hex.EncodeToString(e.Val))
		}
		slices.Sort(list)
		fmt.Fprintf(&b, "set %s %q\n", m.Name, list)
	}
	elements, err := conn.GetSetElements(enforcing(f.table()))
	if err != nil {
		b.WriteString("no mode\n")
	}
	for _, e := range elements {
		if e.Timeout == 0 { // others go by themselves
			fmt.Fprintf(&b, "enforcing %x\n", e.Key)
		}
	}
	return b.String(), nil
}

// dormant reports whether somebody switched the table off.
func dormant(fingerprint string) bool {
	return strings.HasPrefix(fingerprint, fmt.Sprintf("table flags %d\n", tableDormant))
}
