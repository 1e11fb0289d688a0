// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/cli"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/flow"
)

func someFlows() []flow.Flow {
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.Local)
	w1 := fabric.NodeID{Zone: "aws1", Name: "w1"}
	opened := flow.Flow{
		Time: at, Event: flow.Opened, Verdict: flow.Allow, Reason: "allowed-contract", Node: w1, Side: flow.Sender, Protocol: "tcp",
		Source:      flow.End{Name: fabric.Ref{Domain: "shop", Name: "web"}, Address: netip.MustParseAddr("100.64.0.1"), Port: 4000},
		Destination: flow.End{Name: fabric.Ref{Domain: "shop", Name: "db"}, Address: netip.MustParseAddr("100.64.0.2"), Port: 5432},
		Contract:    fabric.Ref{Domain: "shop", Name: "sql"}, Place: "shop.sif.hcl:7", Sent: flow.Traffic{Packets: 1, Bytes: 60},
	}
	refused := opened
	refused.Time, refused.Event, refused.Verdict, refused.Reason, refused.Contract = at.Add(time.Second), flow.Ended, flow.Refuse, "no-\x1b[31mcontract", fabric.Ref{}
	return []flow.Flow{opened, refused}
}

func TestFlowsOutput(t *testing.T) {
	show := func(format string) string {
		ui := cli.NewMockUi()
		c := FlowsCommand{Meta: Meta{UI: ui}, format: format}
		must.NoError(t, c.write(nil))
		must.NoError(t, c.write(someFlows()[:1]))
		must.NoError(t, c.write(someFlows()[1:]))
		return ui.OutputWriter.String()
	}
	must.Eq(t, `Nov 29 12:00:00.000: shop/web (100.64.0.1:4000) -> shop/db (100.64.0.2:5432) tcp opened, allowed by shop/sql at shop.sif.hcl:7 [aws1/w1 sender]
Nov 29 12:00:01.000: shop/web (100.64.0.1:4000) -> shop/db (100.64.0.2:5432) tcp refused: no-[31mcontract; 1 packets 60 bytes in all [aws1/w1 sender]
`, show("compact"))
	must.Eq(t, `Time                 From                        To                         Protocol  Event   Why                      Sent  Received  Node
Nov 29 12:00:00.000  shop/web (100.64.0.1:4000)  shop/db (100.64.0.2:5432)  tcp       opened  shop/sql shop.sif.hcl:7  1/60  0/0       aws1/w1 sender
Nov 29 12:00:01.000  shop/web (100.64.0.1:4000)  shop/db (100.64.0.2:5432)  tcp  refused, ended  no-[31mcontract  1/60  0/0  aws1/w1 sender
`, show("table"))
	lines := strings.Split(strings.TrimSpace(show("json")), "\n")
	must.Len(t, 2, lines)
	var back flow.Flow
	must.NoError(t, json.Unmarshal([]byte(lines[0]), &back))
	must.True(t, back.Time.Equal(someFlows()[0].Time))
	back.Time = someFlows()[0].Time
	must.Eq(t, someFlows()[0], back)
}

// What is missing is said once, until the node answers again.
func TestFlowsNotes(t *testing.T) {
	ui := cli.NewMockUi()
	c := FlowsCommand{Meta: Meta{UI: ui}, shown: map[fabric.NodeID]string{}, after: map[fabric.NodeID]string{}}
	w1 := fabric.NodeID{Zone: "aws1", Name: "w1"}
	c.note(api.FlowsMessage{Node: w1, Next: "a.1"})
	must.False(t, c.partial)
	must.Eq(t, map[fabric.NodeID]string{w1: "a.1"}, c.after)
	for range 2 {
		c.note(api.FlowsMessage{Node: w1, Error: "it did not answer in time"})
	}
	must.True(t, c.partial)
	c.note(api.FlowsMessage{Node: w1, Next: "a.2", Missed: 3})
	c.note(api.FlowsMessage{Node: w1, Error: "it did not answer in time"})
	must.Eq(t, `Warning: node aws1/w1: it did not answer in time
Warning: node aws1/w1: 3 records missing, because they came faster than they could be read
Warning: node aws1/w1: it did not answer in time
`, ui.ErrorWriter.String())
	must.Eq(t, "a.2", c.after[w1])
}
