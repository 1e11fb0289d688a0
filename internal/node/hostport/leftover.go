// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hostport

import (
	"context"

	"github.com/sif-project/sif/internal/leftover"
	"github.com/sif-project/sif/internal/node/kernel"
)

// Leftovers returns what Ensure made in the node's namespace, in the order in which it is to be
// taken away: the ways before the rules that guard them. What is in the namespaces of endpoints
// goes with them.
func Leftovers() ([]leftover.Leftover, error) {
	list, err := leftover.Interfaces(slotInterface.MatchString)
	if err != nil {
		return nil, err
	}
	rules, err := kernel.RulesOf(routeProtocol)
	if err != nil {
		return list, err
	}
	list = append(list, rules...)
	there, err := exists()
	if err != nil || !there {
		return list, err
	}
	return append(list, leftover.Leftover{Kind: "nftables table", Name: "inet " + tableName, Remove: func(context.Context) error {
		return new(table).remove()
	}}), nil
}
