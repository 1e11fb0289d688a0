// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/flow"
	"github.com/sif-project/sif/internal/retry"
)

const (
	// defaultFlows is how many records are shown if neither -last nor -since say how many.
	defaultFlows = 20
	// flowsPause is the time between two calls if the first one ended at once.
	flowsPause = time.Second
)

// FlowsCommand is sif flows.
type FlowsCommand struct {
	Meta
	filter flow.Filter
	last   int
	follow bool
	format string
	not    bool // the next term is reversed

	shown    map[fabric.NodeID]string // what was said last of a node that does not answer
	after    map[fabric.NodeID]string
	began    bool // the heading of the table was shown
	answered bool
	partial  bool // a node did not answer, or records are missing
}

// Synopsis implements cli.Command.
func (c *FlowsCommand) Synopsis() string { return "Show flows: what passed, what was refused, and why" }

func (c *FlowsCommand) usage() string {
	return `
Usage: sif flows [options]

  Shows what nodes recorded of flows: when one opened or was refused, why, the
  contract that allows it and where that is declared, and when it ended, how
  many packets and bytes passed. A flow between two endpoints is recorded at
  both ends. Each node keeps its last records in memory, 10,000 unless its
  configuration says otherwise.

  Without -last, -since and -follow, the last 20 records of the fabric. Of
  several options of one kind, one must hold; those of different kinds must all
  hold. -not reverses the option that follows it.

  What was refused in the last ten minutes:

      $ sif flows -since=10m -verdict=refused

  What opens from now on, except by one contract:

      $ sif flows -follow -event=opened -not -contract=shop/sql

  A <party> is a service or an external (domain/name, or domain/* for all of a
  domain), an endpoint's ID or at least 4 characters of it, an address, a prefix
  of addresses, a DNS name outside the fabric, or "node": the node itself.

  The token needs read access to all domains, or sees the flows of the domains
  that it may read, and of the other end what its packets show.

  The exit code is 0; 2 if a node did not answer, runs a version that records no
  flows, or made records faster than they could be read; and 1 on an error.
`
}

// term returns the function of an option that is a term of the filter.
func (c *FlowsCommand) term(field flow.Field) func(string) error {
	return func(v string) error {
		t := flow.Term{Field: field, Value: v, Not: c.not}
		c.not = false
		if err := t.Check(); err != nil {
			return err
		}
		c.filter.Terms = append(c.filter.Terms, t)
		return nil
	}
}

func (c *FlowsCommand) options() []*flag.FlagSet {
	c.filter, c.not = flow.Filter{}, false
	o := newOptions("Flows Options")
	o.BoolVar(&c.follow, "follow", false, "Go on with what nodes record from now on, until interrupted.")
	o.IntVar(&c.last, "last", 0, fmt.Sprintf("The newest so `many` records, at most %d.", api.MaxFlows))
	o.Func("since", "Only records from this `time` on: a time such as 2026-11-29T08:00:00Z, or how long ago, such as 10m.", optionalTime(&c.filter.Since))
	o.Func("until", "Only records up to this `time`, in the same form.", optionalTime(&c.filter.Until))
	o.Func("from", "Only flows from this `party`.", c.term(flow.From))
	o.Func("to", "Only flows to this `party`.", c.term(flow.To))
	o.Func("service", "Only flows from or to this `party`.", c.term(flow.Party))
	o.Func("domain", "Only flows from or to the `domain`, or by a contract of it.", c.term(flow.Domain))
	o.Func("verdict", "Only flows with this verdict: `allowed|audited|refused`. Audited ones pass only because of audit mode.", c.term(flow.ByVerdict))
	o.Func("event", "Only records of this kind: `opened|refused|goes-on|ended`. Refused flows end as well.", c.term(flow.ByEvent))
	o.Func("reason", "Only flows with this `reason`, such as no-contract.", c.term(flow.Reason))
	o.Func("contract", "Only flows that this `contract` (domain/name) allows.", c.term(flow.Contract))
	o.Func("zone", "Only flows from, to or recorded in this `zone`.", c.term(flow.Zone))
	o.Func("node", "Only what this `node` (zone/node) recorded.", c.term(flow.OnNode))
	o.Func("port", "Only flows to this `port`: 443, 8000-8080 or 53/udp; for icmp, the type.", c.term(flow.Port))
	o.Func("protocol", "Only flows of this `protocol`: tcp, udp, sctp, icmp, icmpv6, or a number.", c.term(flow.Protocol))
	o.BoolFunc("not", "Reverse the option that follows.", func(string) error {
		if c.not {
			return errors.New("two of them follow each other")
		}
		c.not = true
		return nil
	})
	o.StringVar(&c.format, "output", "compact", "How records are shown: `compact|table|json`. compact and json write a line for each. Default: compact")
	c.jsonOption(o, "The same as -output=json.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

// check returns what is wrong with the options.
func (c *FlowsCommand) check() error {
	if c.json {
		c.format = "json"
	}
	now := time.Now()
	switch {
	case !slices.Contains([]string{"compact", "table", "json"}, c.format):
		return usagef("-output: %q is not one of compact, table, json", c.format)
	case c.not:
		return usagef("-not: no option follows that it could reverse")
	case c.last < 0 || c.last > api.MaxFlows:
		return usagef("-last: must be from 1 to %d", api.MaxFlows)
	case c.filter.Since.After(now):
		return usagef("-since: %s is in the future", c.filter.Since.Format(time.RFC3339))
	case c.filter.Until.After(now) && !c.follow:
		return usagef("-until: %s is in the future; with -follow, records are shown until then", c.filter.Until.Format(time.RFC3339))
	case c.follow && !c.filter.Until.IsZero() && !c.filter.Until.After(now):
		return usagef("-until: %s has passed, so there is nothing to follow", c.filter.Until.Format(time.RFC3339))
	}
	if _, err := c.filter.Compile(); err != nil {
		return usageError{err}
	}
	return nil
}

func (c *FlowsCommand) run(ctx context.Context, _ []string) error {
	if err := c.check(); err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	c.shown, c.after = map[fabric.NodeID]string{}, map[fabric.NodeID]string{}
	if c.follow {
		if !c.filter.Until.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, c.filter.Until)
			defer cancel()
		}
		err = c.watch(ctx, client)
	} else {
		err = c.show(ctx, client)
	}
	if err != nil {
		return fmt.Errorf("reading flows: %w", err)
	}
	if c.partial {
		return exitDisagreement
	}
	return nil
}

// show shows what nodes have, the newest last.
func (c *FlowsCommand) show(ctx context.Context, client *api.Client) error {
	last := c.last
	if last == 0 && c.filter.Since.IsZero() {
		last = defaultFlows
	}
	var all []flow.Flow
	err := client.Flows(ctx, api.FlowsRequest{Filter: c.filter, Last: last}, func(m api.FlowsMessage) error {
		all = append(all, m.Flows...)
		c.note(m)
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(all, flow.Compare)
	if last > 0 && len(all) > last {
		all = all[len(all)-last:]
	}
	if len(all) == 0 && c.format != "json" {
		c.UI.Warn("No node has such a record.")
	}
	return c.write(all)
}

// watch shows what nodes record until ctx ends. A call lasts a minute; the next one goes on where
// it ended.
func (c *FlowsCommand) watch(ctx context.Context, client *api.Client) error {
	last := c.last
	for {
		began := time.Now()
		err := client.Flows(ctx, api.FlowsRequest{Filter: c.filter, Last: last, Follow: true, After: c.after}, func(m api.FlowsMessage) error {
			c.answered = true
			c.note(m)
			slices.SortStableFunc(m.Flows, flow.Compare)
			return c.write(m.Flows)
		})
		if ctx.Err() != nil {
			return nil
		}
		var refused *api.Error
		switch {
		case err != nil && (!c.answered || errors.As(err, &refused)):
			return err
		case err != nil:
			c.UI.Warn(fmt.Sprintf("Warning: %v; asking again", err))
		}
		last = 0
		if time.Since(began) < flowsPause && !retry.Sleep(ctx, flowsPause) {
			return nil
		}
	}
}

// note notes how far a node has told, and says once why it does not.
func (c *FlowsCommand) note(m api.FlowsMessage) {
	if m.Next != "" {
		c.after[m.Node] = m.Next
	}
	if m.Missed > 0 {
		c.partial = true
		c.UI.Warn(fmt.Sprintf("Warning: node %s: %s missing, because they came faster than they could be read", m.Node, count(int(m.Missed), "record")))
	}
	if m.Error == "" {
		delete(c.shown, m.Node)
		return
	}
	c.partial = true
	if c.shown[m.Node] != m.Error {
		c.shown[m.Node] = m.Error
		c.UI.Warn(flow.Printable(fmt.Sprintf("Warning: node %s: %s", m.Node, m.Error)))
	}
}

func (c *FlowsCommand) write(flows []flow.Flow) error {
	if len(flows) == 0 {
		return nil
	}
	switch c.format {
	case "json":
		var b bytes.Buffer
		lines := json.NewEncoder(&b)
		for _, f := range flows {
			if err := lines.Encode(f); err != nil {
				return fmt.Errorf("encoding the result: %w", err)
			}
		}
		c.UI.Output(strings.TrimSuffix(b.String(), "\n"))
	case "table":
		c.UI.Output(strings.TrimSuffix(c.table(flows), "\n"))
	default:
		for _, f := range flows {
			c.UI.Output(f.Time.Local().Format(time.StampMilli) + ": " + f.String())
		}
	}
	return nil
}

// table returns records in columns. Those that follow have no heading.
func (c *FlowsCommand) table(flows []flow.Flow) string {
	var rows [][]string
	if !c.began {
		c.began = true
		rows = append(rows, []string{"Time", "From", "To", "Protocol", "Event", "Why", "Sent", "Received", "Node"})
	}
	for _, f := range flows {
		why := f.Reason
		if f.Verdict != flow.Refuse && !f.Contract.IsZero() {
			why = f.Contract.String()
			if f.Place != "" {
				why += " " + f.Place
			}
			if f.Verdict == flow.Audit {
				why += " (audit)"
			}
		}
		event := string(f.Event)
		if f.Verdict == flow.Refuse && f.Event != flow.Refused {
			event = "refused, " + event
		}
		row := []string{f.Time.Local().Format(time.StampMilli), f.Source.String(), f.Destination.String(), f.Protocol, event, why,
			traffic(f.Sent), traffic(f.Received), f.Node.String() + " " + string(f.Side)}
		for i, cell := range row {
			row[i] = flow.Printable(cell)
		}
		rows = append(rows, row)
	}
	var b strings.Builder
	table(&b, rows)
	return b.String()
}

// traffic is packets and bytes: "3/180".
func traffic(t flow.Traffic) string { return fmt.Sprintf("%d/%d", t.Packets, t.Bytes) }
