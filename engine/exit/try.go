// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package exit

import (
	"fmt"
	"net/netip"

	"github.com/sif-project/sif/internal/node/kernel"
)

// Try tries whether this machine can be an exit: whether its kernel has what the rules, address
// translation and the veth need. It changes nothing outside a network namespace of its own.
func Try() error {
	return kernel.Try(func() error {
		c := Config{
			MTU: smallestMTU, PerEndpoint: 1, NewPerSecond: 1,
			Ranges: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd5f:7369:6600::/48")},
		}
		// Of the documentation ranges: whatever they are, the rules are the same.
		exits := []Address{{"lo", netip.MustParseAddr("192.0.2.1")}, {"lo", netip.MustParseAddr("2001:db8::1")}}
		if _, err := new(table).apply(c, exits); err != nil {
			return err
		}
		if _, err := ensureVeth(c.MTU); err != nil {
			return fmt.Errorf("the exit to the outside: %w", err)
		}
		return nil
	})
}
