// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// anyWindow is a parameter of the kernel: its datapath takes a segment for one of its connection
// whatever its sequence numbers are.
const anyWindow = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"

// IgnoreWindows makes connection tracking accept segments of TCP whose sequence numbers it does not
// expect, and Repair keep it so. A connection that took another way for a while comes back with
// such ones, and the switch must not drop them for what it remembers.
func (s *Switch) IgnoreWindows(ctx context.Context) error {
	s.windows.Store(true)
	if _, err := s.repairWindows(ctx); err != nil {
		return fmt.Errorf("make bridge %s ignore the windows of TCP: %w", s.config.Bridge, err)
	}
	return nil
}

// repairWindows corrects what IgnoreWindows did, and returns what differed. ovs-vswitchd forgets it
// when it ends.
func (s *Switch) repairWindows(ctx context.Context) (changes []string, err error) {
	if !s.windows.Load() {
		return nil, nil
	}
	datapath, err := s.datapathType(ctx)
	if err != nil {
		return nil, err
	}
	changes = []string{"whether windows of TCP are ignored"}
	if datapath != "netdev" {
		text, err := os.ReadFile(anyWindow)
		if err != nil || strings.TrimSpace(string(text)) == "1" {
			return nil, err
		}
		return changes, os.WriteFile(anyWindow, []byte("1"), 0)
	}
	const name = "netdev@ovs-netdev"
	text, err := s.ask(ctx, "dpctl/ct-get-tcp-seq-chk", name)
	if err != nil || !strings.Contains(text, "enabled") {
		return nil, err
	}
	return changes, s.control(ctx, "dpctl/ct-disable-tcp-seq-chk", name)
}
