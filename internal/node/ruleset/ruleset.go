// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package ruleset tells whether somebody else has changed a table of nftables. It knows tables,
// chains and the handles of rules, not what the rules are for. The elements of sets are left to
// those who know the sets.
package ruleset

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dormant is NFT_TABLE_F_DORMANT of <linux/netfilter/nf_tables.h>: the chains are not called.
const dormant = 1

// Generation returns the number of the kernel's rules in this namespace, which each transaction of
// anybody raises: while it is the same, so are all tables.
func Generation() (uint32, error) {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	request.AddData(&nl.Nfgenmsg{Version: nl.NFNETLINK_V0})
	messages, err := request.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN)
	if err != nil {
		return 0, fmt.Errorf("read the generation of nftables: %w", err)
	}
	const header = 4 // of a nfgenmsg
	for _, m := range messages {
		attributes, err := nl.ParseRouteAttr(m[min(header, len(m)):])
		if err != nil {
			return 0, fmt.Errorf("read the generation of nftables: %w", err)
		}
		for _, a := range attributes {
			if a.Attr.Type == unix.NFTA_GEN_ID && len(a.Value) >= 4 {
				return binary.BigEndian.Uint32(a.Value), nil
			}
		}
	}
	return 0, errors.New("read the generation of nftables: the kernel does not tell it")
}

// Describe describes a table of the family inet as it is in the kernel: its flags, its chains, and
// the handles and comments of its rules. The kernel gives a rule that is replaced another handle,
// so two equal descriptions mean that nobody changed these in between, and a table whose rules get
// other comments each time is told from one that was written again. It is empty if there is no
// table.
func Describe(conn *nftables.Conn, name string) (string, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("list the tables of nftables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == name })
	if i < 0 {
		return "", nil
	}
	var b strings.Builder
	b.WriteString(flags(tables[i].Flags))
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("list the chains of nftables: %w", err)
	}
	slices.SortFunc(chains, func(a, b *nftables.Chain) int { return cmp.Compare(a.Name, b.Name) })
	for _, c := range chains {
		if c.Table.Name != name {
			continue
		}
		fmt.Fprintf(&b, "chain %s", c.Name)
		if c.Policy != nil && c.Hooknum != nil && c.Priority != nil {
			fmt.Fprintf(&b, " policy %d hook %d priority %d", *c.Policy, *c.Hooknum, *c.Priority)
		}
		rules, err := conn.GetRules(tables[i], c)
		if err != nil {
			return "", fmt.Errorf("list the rules of chain %s: %w", c.Name, err)
		}
		for _, r := range rules {
			fmt.Fprintf(&b, " %d %x", r.Handle, r.UserData)
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}

// Dormant reports whether a description is that of a table that somebody switched off.
func Dormant(description string) bool { return strings.HasPrefix(description, flags(dormant)) }

func flags(f uint32) string { return fmt.Sprintf("flags %d\n", f) }
