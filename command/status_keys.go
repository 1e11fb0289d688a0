// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// linkKeys shows how old the WireGuard key of each node is, and how its replacement goes.
func linkKeys(s api.Status, now time.Time) [][]string {
	rows := [][]string{{"Node", "Age", "Replaced after", "Now", "Waits for"}}
	for _, n := range s.Nodes {
		k := n.LinkKey
		if k == nil {
			continue
		}
		period, phase := "never", "in use"
		if k.Period > 0 {
			period = brief(k.Period)
		}
		switch k.Phase {
		case "":
		case fabric.LeaveLinks:
			phase = "is being left"
		default:
			phase = "new, is being taken up"
		}
		rows = append(rows, []string{n.ID().String(), brief(now.Sub(k.Made)), period, phase, strings.Join(k.Waiting, "; ")})
	}
	return rows
}
