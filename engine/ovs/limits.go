// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sif-project/sif/internal/connlimit"
)

// limits are those of the connections of a zone.
type limits struct {
	zone     uint16
	datapath string // its type; empty before it was read
	connlimit.Limits
}

// LimitConnections sets how long connections of a zone of the bridge's datapath may be idle, and
// how many there may be: the switch refuses a further one and keeps those that it has. Repair keeps
// both so. The idle time of SCTP is fixed in Open vSwitch.
func (s *Switch) LimitConnections(ctx context.Context, zone uint16, l connlimit.Limits) error {
	s.limits = &limits{zone: zone, Limits: l}
	if _, err := s.repairLimits(ctx); err != nil {
		return fmt.Errorf("set the limits of connections of bridge %s: %w", s.config.Bridge, err)
	}
	return nil
}

// repairLimits compares the limits with what the switch has, corrects them, and returns what
// differed. ovs-vswitchd reads the idle times from the database when it starts; the most number of
// connections it forgets.
func (s *Switch) repairLimits(ctx context.Context) (changes []string, err error) {
	have, err := s.readIdle(ctx)
	if err != nil {
		return nil, err
	}
	s.limits.datapath = have.datapath
	if want := idleTimes(s.limits.Idle); !maps.Equal(have.times, want) {
		if err := s.writeIdle(ctx, have, want); err != nil {
			return nil, err
		}
		changes = append(changes, fmt.Sprintf("idle times of connections of zone %d", s.limits.zone))
	}
	datapath := have.datapath + "@ovs-" + have.datapath
	text, err := s.ask(ctx, "dpctl/ct-get-limits", datapath, fmt.Sprintf("zone=%d", s.limits.zone))
	if err != nil {
		return changes, err
	}
	want := fmt.Sprintf("zone=%d,limit=%d", s.limits.zone, s.limits.Switch)
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == want || strings.HasPrefix(line, want+",") {
			return changes, nil
		}
	}
	if err := s.control(ctx, "dpctl/ct-set-limits", datapath, want); err != nil {
		return changes, err
	}
	return append(changes, fmt.Sprintf("most connections of zone %d", s.limits.zone)), nil
}

// Datapath returns the type of the bridge's datapath, "system" or "netdev"; empty before
// LimitConnections was called.
func (s *Switch) Datapath() string {
	if s.limits == nil {
		return ""
	}
	return s.limits.datapath
}

// mostTracked is a parameter of the kernel, which has one for all network namespaces.
const mostTracked = "/proc/sys/net/netfilter/nf_conntrack_max"

// Confined returns what else limits the connections to fewer than LimitConnections allows, in a
// sentence with the remedy, or "". The kernel's datapath has its connections in the kernel's table.
func (s *Switch) Confined() string {
	if s.limits == nil || s.limits.datapath != "system" {
		return ""
	}
	text, err := os.ReadFile(mostTracked)
	if err != nil {
		return ""
	}
	return confined(strings.TrimSpace(string(text)), s.limits.Switch)
}

func confined(most string, limit int) string {
	if n, err := strconv.Atoi(most); err != nil || n >= limit {
		return ""
	}
	return fmt.Sprintf("the kernel tracks at most %s connections, of which the switch may have %d: run `sysctl -w net.netfilter.nf_conntrack_max=%d` "+
		"and put it into /etc/sysctl.d, or set connections { switch = %s }", most, limit, limit, most)
}

// idleState is what the database has of the idle times of a zone.
type idleState struct {
	datapath string         // its type
	row      string         // of table Datapath; empty if there is none
	zone     string         // row of table CT_Zone; empty if there is none
	times    map[string]int // in seconds, by state
}

func (s *Switch) readIdle(ctx context.Context) (have idleState, err error) {
	out, err := s.run(ctx, "ovs-vsctl", "--format=json",
		"--", "--columns=datapath_type", "list", "Bridge", s.config.Bridge,
		"--", "--columns=_uuid,datapaths", "list", "Open_vSwitch",
		"--", "--columns=_uuid,ct_zones", "list", "Datapath",
		"--", "--columns=_uuid,timeout_policy", "list", "CT_Zone",
		"--", "--columns=_uuid,timeouts", "list", "CT_Timeout_Policy")
	if err != nil {
		return have, err
	}
	decoder := json.NewDecoder(bytes.NewReader(out))
	var bridges struct{ Data [][]string }
	if err := decoder.Decode(&bridges); err != nil || len(bridges.Data) != 1 || len(bridges.Data[0]) != 1 {
		return have, fmt.Errorf("read the datapath of bridge %s: it is not one text: %w", s.config.Bridge, err)
	}
	have.datapath = bridges.Data[0][0]
	var tables [4]map[string]json.RawMessage // Open_vSwitch, Datapath, CT_Zone, CT_Timeout_Policy
	for i := range tables {
		if tables[i], err = decodeRows(decoder); err != nil {
			return have, fmt.Errorf("read the idle times of connections: %w", err)
		}
	}
	for _, datapaths := range tables[0] { // it has one row
		have.row = reference(member(datapaths, have.datapath))
	}
	have.zone = reference(member(tables[1][have.row], fmt.Sprint(s.limits.zone)))
	policy := reference(tables[2][have.zone])
	have.times = map[string]int{}
	for _, pair := range pairs(tables[3][policy]) {
		var state string
		var seconds int
		if json.Unmarshal(pair[0], &state) == nil && json.Unmarshal(pair[1], &seconds) == nil {
			have.times[state] = seconds
		}
	}
	return have, nil
}

func (s *Switch) writeIdle(ctx context.Context, have idleState, want map[string]int) error {
	var times []string
	for _, state := range slices.Sorted(maps.Keys(want)) {
		times = append(times, fmt.Sprintf("%s=%d", state, want[state]))
	}
	args := append([]string{"add-zone-tp", have.datapath, fmt.Sprintf("zone=%d", s.limits.zone)}, times...)
	switch {
	case have.row == "":
		args = append([]string{
			"--id=@datapath", "create", "Datapath", "datapath_version=0", "--",
			"set", "Open_vSwitch", ".", "datapaths:" + have.datapath + "=@datapath", "--",
		}, args...)
	case have.zone != "":
		args = []string{
			"--id=@policy", "create", "CT_Timeout_Policy", "timeouts={" + strings.Join(times, ",") + "}", "--",
			"set", "CT_Zone", have.zone, "timeout_policy=@policy",
		}
	}
	_, err := s.run(ctx, "ovs-vsctl", args...)
	return err
}

// decodeRows decodes a table of two columns, of which the first is _uuid: the second one by the
// first. Values are as in RFC 7047, section 5.1.
func decodeRows(decoder *json.Decoder) (map[string]json.RawMessage, error) {
	var table struct{ Data [][]json.RawMessage }
	if err := decoder.Decode(&table); err != nil {
		return nil, err
	}
	rows := map[string]json.RawMessage{}
	for _, row := range table.Data {
		if len(row) == 2 {
			rows[reference(row[0])] = row[1]
		}
	}
	return rows, nil
}

// reference returns the row that a value refers to, or "" if it refers to none.
func reference(value json.RawMessage) string {
	var pair []string
	if json.Unmarshal(value, &pair) != nil || len(pair) != 2 || pair[0] != "uuid" {
		return ""
	}
	return pair[1]
}

// pairs returns the keys and values of a map.
func pairs(value json.RawMessage) (list [][2]json.RawMessage) {
	var tagged []json.RawMessage
	if json.Unmarshal(value, &tagged) != nil || len(tagged) != 2 || string(tagged[0]) != `"map"` {
		return nil
	}
	if json.Unmarshal(tagged[1], &list) != nil {
		return nil
	}
	return list
}

// member returns the value of a key, which may be a text or a number, in a map.
func member(value json.RawMessage, key string) json.RawMessage {
	for _, pair := range pairs(value) {
		if strings.Trim(string(pair[0]), `"`) == key {
			return pair[1]
		}
	}
	return nil
}

// idleTimes translates the limits into the states of CT_Timeout_Policy in ovs-vswitchd.conf.db(5),
// in seconds. Of a segment that is not acknowledged, Linux knows two further states, which we do
// not want to be shorter.
func idleTimes(idle connlimit.Idle) map[string]int {
	times := map[string]int{}
	for _, group := range []struct {
		limit  time.Duration
		states []string
	}{
		{idle.TCPOpening, []string{"tcp_syn_sent", "tcp_syn_sent2", "tcp_syn_recv"}},
		{idle.TCPEstablished, []string{"tcp_established", "tcp_retransmit", "tcp_unack"}},
		{idle.TCPClosing, []string{"tcp_fin_wait", "tcp_close_wait", "tcp_last_ack"}},
		{idle.TCPClosed, []string{"tcp_time_wait", "tcp_close"}},
		{idle.UDP, []string{"udp_first", "udp_single", "udp_multiple"}},
		{idle.ICMP, []string{"icmp_first", "icmp_reply"}},
	} {
		for _, state := range group.states {
			times[state] = int(group.limit.Seconds())
		}
	}
	return times
}
