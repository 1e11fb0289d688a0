// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
)

// wayProblems lists what probes of a node found wrong, one sentence each.
func wayProblems(n api.NodeStatus, now time.Time) []string {
	var list []string
	for _, w := range n.Ways {
		name := "the path to zone " + w.To
		if w.Link() {
			name = "the link to " + w.To
		}
		four, six := wayProblem(w.IPv4, now), wayProblem(w.IPv6, now)
		switch {
		case four == "" && six == "":
		case four != "" && w.IPv4.State == api.WayDown && w.IPv6.State == api.WayDown:
			list = append(list, fmt.Sprintf("%s is down: %s", name, four))
		default:
			for _, f := range []struct{ family, problem string }{{"IPv4", four}, {"IPv6", six}} {
				if f.problem != "" {
					list = append(list, fmt.Sprintf("%s over %s: %s", name, f.family, f.problem))
				}
			}
		}
	}
	return list
}

// wayProblem says what is wrong, or nothing.
func wayProblem(f api.WayFound, now time.Time) string {
	switch f.State {
	case api.WayDown:
		last := "no probe has been answered"
		if !f.Answered.IsZero() {
			last = "no probe has been answered for " + brief(now.Sub(f.Answered))
		}
		if f.Error != "" {
			last += ": " + f.Error
		}
		return last
	case api.WayLoss:
		return fmt.Sprintf("%d of the last %d probes were lost", f.Lost, f.Sent)
	case api.WayMTU:
		largest := "smaller ones do"
		if f.Passed > 0 {
			largest = fmt.Sprintf("the largest that pass have %d", f.Passed)
		}
		return fmt.Sprintf("packets of %d bytes do not pass, %s: let the underlay carry packets of %d bytes, or set link { mtu } of all nodes lower",
			f.Full, largest, f.Full+wireGuardOverhead)
	}
	return ""
}

// wireGuardOverhead is what an encrypted packet has more than the one in it, over IPv6, in bytes.
const wireGuardOverhead = 80

// wayRows shows what was found of one way, a row for each version of IP.
func wayRows(first []string, four, six api.WayFound) [][]string {
	var rows [][]string
	for _, f := range []struct {
		family string
		found  api.WayFound
	}{{"IPv4", four}, {"IPv6", six}} {
		loss, rtt, mtu := "-", "-", "-"
		if f.found.Sent > 0 {
			loss = fmt.Sprintf("%d of %d", f.found.Lost, f.found.Sent)
		}
		if f.found.RTT > 0 {
			rtt = f.found.RTT.Round(10 * time.Microsecond).String()
		}
		if f.found.Passed > 0 {
			mtu = fmt.Sprint(f.found.Passed)
		}
		row := append(append([]string{}, first...), f.family, string(cmp.Or(f.found.State, api.WayUnmeasured)), loss, rtt, mtu)
		rows = append(rows, row)
	}
	return rows
}

// waySections shows what probes found of all links and of all pairs of zones.
func waySections(b *strings.Builder, s api.Status) {
	links := [][]string{{"Node", "Link to", "IP", "State", "Lost", "Latency", "Path MTU"}}
	for _, n := range s.Nodes {
		for _, w := range n.Ways {
			if w.Link() {
				links = append(links, wayRows([]string{n.ID().String(), w.To}, w.IPv4, w.IPv6)...)
			}
		}
	}
	section(b, "Probed links", links)
	zones := [][]string{{"From zone", "To zone", "Nodes", "IP", "State", "Lost", "Latency", "Path MTU"}}
	for _, p := range s.ZonePairs() {
		zones = append(zones, wayRows([]string{p.From, p.To, fmt.Sprint(p.Nodes)}, p.IPv4, p.IPv6)...)
	}
	section(b, "Probed paths between zones", zones)
}
