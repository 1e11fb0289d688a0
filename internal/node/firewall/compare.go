// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// tableDormant is NFT_TABLE_F_DORMANT of <linux/netfilter/nf_tables.h>: the chains are not called.
const tableDormant = 1

// generation returns the number of the kernel's rules in this namespace, which each transaction of
// anybody raises: while it is the same, so are all tables.
func generation() (uint32, error) {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	request.AddData(&nl.Nfgenmsg{Version: nl.NFNETLINK_V0})
	messages, err := request.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN)
	if err != nil {
		return 0, fmt.Errorf("read the generation of nftables: %w", err)
	}
	for _, m := range messages {
		attributes, err := nl.ParseRouteAttr(m[min(genericHeader, len(m)):])
		if err != nil {
			return 0, fmt.Errorf("read the generation of nftables: %w", err)
		}
		for _, a := range attributes {
			if a.Attr.Type == unix.NFTA_GEN_ID {
				return number32(a.Value), nil
			}
		}
	}
	return 0, errors.New("read the generation of nftables: the kernel does not tell it")
}

// fingerprint describes the table as it is in the kernel: its flags, its chains, the handles of its
// rules, and the elements of its sets apart from those of SetEgress. The kernel gives a rule that
// is replaced another handle, so two equal fingerprints mean that nobody changed anything in
// between. It is empty if there is no table.
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
