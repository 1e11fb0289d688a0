// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// Reasons why an Open vSwitch cannot be used.
var (
	ErrNotInstalled = errors.New("ovs-vsctl is not installed")
	ErrNoDatabase   = errors.New("ovsdb-server does not answer")
	ErrNoSwitch     = errors.New("ovs-vswitchd does not answer")
)

// Survey is what an Open vSwitch is.
type Survey struct {
	Version  string // of ovs-vswitchd
	Datapath string // that a new bridge gets: "system" or "netdev"
	// Offload says that the datapath in user space handles segments of TCP, without which TCP does
	// not pass between veth interfaces.
	Offload bool
}

// Survey looks at the Open vSwitch, whose bridge need not exist. It changes nothing. The error
// wraps one of the reasons.
func (s *Switch) Survey(ctx context.Context) (v Survey, err error) {
	if _, err := exec.LookPath("ovs-vsctl"); err != nil {
		return v, fmt.Errorf("%w: %w", ErrNotInstalled, err)
	}
	offload, err := s.get(ctx, "Open_vSwitch", ".", "other_config:userspace-tso-enable")
	if err != nil {
		return v, fmt.Errorf("%w: %w", ErrNoDatabase, err)
	}
	text, err := s.ask(ctx, "version")
	if err != nil {
		return v, fmt.Errorf("%w: %w", ErrNoSwitch, err)
	}
	// "ovs-vswitchd (Open vSwitch) 3.1.0", and lines about its libraries.
	line, _, _ := strings.Cut(text, "\n")
	if fields := strings.Fields(line); len(fields) > 0 {
		v.Version = fields[len(fields)-1]
	}
	v.Datapath, v.Offload = s.config.Datapath, offload == "true"
	if v.Datapath == "" {
		v.Datapath = usualDatapath()
	}
	return v, nil
}

// get reads a column of the database. It returns "" if the row or the key does not exist.
func (s *Switch) get(ctx context.Context, table, record, column string) (string, error) {
	out, err := s.run(ctx, "ovs-vsctl", "--if-exists", "get", table, record, column)
	return strings.Trim(strings.TrimSpace(string(out)), `"`), err
}
