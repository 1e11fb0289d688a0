// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	govs "github.com/digitalocean/go-openvswitch/ovs"
)

// setting is a column that must have a value, as JSON of ovs-vsctl (RFC 7047, section 5.1). Columns
// whose value is empty are cleared.
type setting struct{ column, want, set string }

const empty = `["set",[]]`

// What would let packets pass by the flow tables, or lose some of them.
var (
	bridgeSettings = []setting{
		{"fail_mode", `"` + string(govs.FailModeSecure) + `"`, string(govs.FailModeSecure)},
		{"protocols", `["set",["` + govs.ProtocolOpenFlow13 + `","` + govs.ProtocolOpenFlow14 + `"]]`, govs.ProtocolOpenFlow13 + "," + govs.ProtocolOpenFlow14},
		{"mcast_snooping_enable", "false", "false"},
		{"stp_enable", "false", "false"},
		{"rstp_enable", "false", "false"},
		{"controller", empty, ""},
		{"mirrors", empty, ""},
		{"netflow", empty, ""},
		{"sflow", empty, ""},
		{"ipfix", empty, ""},
	}
	portSettings = []setting{
		{"tag", empty, ""}, {"trunks", empty, ""}, {"vlan_mode", empty, ""}, {"qos", empty, ""},
	}
	interfaceSettings = []setting{
		{"ingress_policing_rate", "0", "0"}, {"ingress_policing_kpkts_rate", "0", "0"}, {"mtu_request", empty, ""},
	}
)

// Repair compares the settings of the bridge and of some of its ports, how it treats fragments and
// windows, and the limits of connections, with those that Create, AddPort, IgnoreWindows and
// LimitConnections gave them, corrects them, and returns what differed. A bridge that is missing is
// made; its ports must then be added again.
func (s *Switch) Repair(ctx context.Context, ports []string) (changes []string, err error) {
	tables := []struct {
		name     string
		records  []string
		settings []setting
	}{{"Bridge", []string{s.config.Bridge}, bridgeSettings}, {"Port", ports, portSettings}, {"Interface", ports, interfaceSettings}}
	args := []string{"--format=json"}
	for _, t := range tables {
		columns := "name"
		for _, x := range t.settings {
			columns += "," + x.column
		}
		args = append(args, "--", "--columns="+columns, "list", t.name)
	}
	out, err := s.run(ctx, "ovs-vsctl", args...)
	if err != nil {
		return nil, fmt.Errorf("read the settings of bridge %s: %w", s.config.Bridge, err)
	}
	var correct []string
	decoder := json.NewDecoder(bytes.NewReader(out))
	for _, t := range tables {
		var list struct{ Data [][]json.RawMessage }
		if err := decoder.Decode(&list); err != nil {
			return nil, fmt.Errorf("read the settings of table %s: %w", t.name, err)
		}
		found := false
		for _, row := range list.Data {
			name := ""
			if len(row) != len(t.settings)+1 || json.Unmarshal(row[0], &name) != nil || !slices.Contains(t.records, name) {
				continue
			}
			found = true
			for i, x := range t.settings {
				var have bytes.Buffer
				if json.Compact(&have, row[i+1]) != nil || have.String() == x.want {
					continue
				}
				changes = append(changes, fmt.Sprintf("%s of %s %s, which was %s", x.column, strings.ToLower(t.name), name, have.String()))
				if x.set == "" {
					correct = append(correct, "--", "clear", t.name, name, x.column)
				} else {
					correct = append(correct, "--", "set", t.name, name, x.column+"="+x.set)
				}
			}
		}
		if t.name == "Bridge" && !found {
			return []string{"bridge " + s.config.Bridge}, s.Create(ctx)
		}
	}
	if len(correct) > 0 {
		if _, err := s.run(ctx, "ovs-vsctl", correct[1:]...); err != nil {
			return changes, fmt.Errorf("correct the settings of bridge %s: %w", s.config.Bridge, err)
		}
	}
	more, err := s.repairFragments(ctx)
	changes = append(changes, more...)
	if err == nil {
		more, err = s.repairWindows(ctx)
		changes = append(changes, more...)
	}
	if err != nil || s.limits == nil {
		return changes, err
	}
	more, err = s.repairLimits(ctx)
	if err != nil {
		err = fmt.Errorf("correct the limits of connections of bridge %s: %w", s.config.Bridge, err)
	}
	return append(changes, more...), err
}
