// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"context"
	"fmt"
	"strings"

	of "github.com/sif-project/sif/engine/openflow"
)

// fragmentSetting is one of the datapath in user space, which puts fragments together to track
// them. The kernel's datapath has the kernel's own settings.
type fragmentSetting struct{ shown, command, family, value string }

// By default, fragments of less than 1,200 bytes (IPv4) and 1,280 bytes (IPv6) are dropped, unless
// they are last, and 1,000 are kept at once: the 48 of 20 datagrams of the greatest size. The least
// size is that which Open vSwitch permits, the number the greatest one.
var fragmentSettings = []fragmentSetting{
	{"min v4 frag size", "dpctl/ipf-set-min-frag", "v4", "400"},
	{"min v6 frag size", "dpctl/ipf-set-min-frag", "v6", "400"},
	{"max num frags (v4/v6)", "dpctl/ipf-set-max-nfrags", "", "5000"},
}

// repairFragments compares how the bridge treats fragments with what flows expect, corrects it, and
// returns what differed. ovs-vswitchd forgets it when it ends.
func (s *Switch) repairFragments(ctx context.Context) (changes []string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("correct how bridge %s treats fragments: %w", s.config.Bridge, err)
		}
	}()
	conn, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	changed, err := matchFragments(ctx, conn)
	if err != nil {
		return nil, err
	}
	if changed {
		changes = append(changes, "how fragments are matched")
	}
	kind, err := s.datapathType(ctx)
	if err != nil || kind != "netdev" {
		return changes, err
	}
	const datapath = "netdev@ovs-netdev"
	text, err := s.ask(ctx, "dpctl/ipf-get-status", datapath)
	if err != nil {
		return changes, err
	}
	have := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			have[name] = strings.TrimSpace(value)
		}
	}
	for _, x := range fragmentSettings {
		if have[x.shown] == x.value {
			continue
		}
		params := []string{datapath}
		if x.family != "" {
			params = append(params, x.family)
		}
		if err := s.control(ctx, x.command, append(params, x.value)...); err != nil {
			return changes, err
		}
		changes = append(changes, fmt.Sprintf("%s of fragments, which was %s", x.shown, have[x.shown]))
	}
	return changes, nil
}

// matchFragments makes the bridge match first fragments by their ports.
func matchFragments(ctx context.Context, conn *of.Conn) (changed bool, err error) {
	mode, err := conn.Fragments(ctx)
	if err != nil || mode == of.FragmentsByFirst {
		return false, err
	}
	return true, conn.SetFragments(ctx, of.FragmentsByFirst)
}
