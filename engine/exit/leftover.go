// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package exit

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/nftables"

	"github.com/sif-project/sif/internal/leftover"
	"github.com/sif-project/sif/internal/wellknown"
)

// Leftovers returns what Ensure made on this machine, in the order in which it is to be taken away:
// the way before the rules that guard it. The routes go with their interface.
func Leftovers() ([]leftover.Leftover, error) {
	list, err := leftover.Interfaces(func(name string) bool { return name == wellknown.ExitInterface })
	if err != nil {
		return nil, err
	}
	conn, err := nftables.New()
	if err != nil {
		return list, fmt.Errorf("look for the table %s: %w", tableName, err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return list, fmt.Errorf("list the tables of nftables: %w", err)
	}
	if slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName }) {
		list = append(list, leftover.Leftover{Kind: "nftables table", Name: "inet " + tableName, Remove: func(context.Context) error {
			conn.DelTable(conn.AddTable(tableOf())) // deleting a missing table is an error
			if err := conn.Flush(); err != nil {
				return fmt.Errorf("delete the nftables table inet %s: %w", tableName, err)
			}
			return nil
		}})
	}
	return list, nil
}
