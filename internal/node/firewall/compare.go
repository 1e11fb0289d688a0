// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/sif-project/sif/internal/node/ruleset"
)

// fingerprint describes the table as it is in the kernel, with the elements of its sets apart from
// those of SetEgress. It is empty if there is no table.
func (f *Firewall) fingerprint(conn *nftables.Conn) (string, error) {
	table, err := ruleset.Describe(conn, tableName)
	if err != nil || table == "" {
		return "", err
	}
	var b strings.Builder
	b.WriteString(table)
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
