// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// LinkShowCommand is sif link show.
type LinkShowCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *LinkShowCommand) Synopsis() string { return "Show a link between zones and its tunnels" }

func (c *LinkShowCommand) usage() string {
	return `
Usage: sif link show [options] <name>

  Shows a link between zones that the graph in force declares: what its block
  says, and its tunnels. Each tunnel joins two processors; each of these says
  where it reaches the other, when they last agreed on keys, and what probes
  through the tunnel found.

  The exit code is 0 on success, whatever the state of the link, and 1 on an
  error or if no link has the name.
`
}

func (c *LinkShowCommand) options() []*flag.FlagSet {
	o := newOptions("Show Options")
	c.jsonOption(o, "Print the link in JSON.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *LinkShowCommand) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: <name>", predict: complete.PredictAnything}
}

func (c *LinkShowCommand) run(ctx context.Context, args []string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	list, err := client.Links(ctx)
	if err != nil {
		return fmt.Errorf("reading the link: %w", err)
	}
	var names []string
	for _, l := range list.Links {
		if linkName(l) == args[0] {
			return c.output(l, func() string { return linkText(l, time.Now()) })
		}
		names = append(names, linkName(l))
	}
	remedy := "sif link list lists them"
	if near := fabric.Nearest(args[0], names); near != "" {
		remedy = fmt.Sprintf("did you mean %q?", near)
	}
	return fmt.Errorf("reading the link: the graph has no link %q; %s", args[0], remedy)
}

func linkText(l api.LinkInfo, now time.Time) string {
	var b strings.Builder
	mtu := "that of the processors"
	if l.MTU > 0 {
		mtu = strconv.Itoa(l.MTU)
	}
	rows := [][]string{
		{"Link", linkName(l)}, {"Description", l.Description}, {"Between", betweenText(l)}, {"Labels", cmp.Or(strings.Join(l.Labels, ", "), "none")},
		{"Cost", fmt.Sprint(l.Cost)}, {"Endpoints", cmp.Or(l.Endpoints, fabric.DefaultEndpoints)}, {"MTU", mtu}, {"Tunnels", tunnelsText(l)},
		{"Declared", l.Pos.String()},
	}
	table(&b, slices.DeleteFunc(rows, func(r []string) bool { return r[1] == "" }))
	tunnels := [][]string{{"From", "To", "At", "Encrypted by", "Keys", "IPv4", "IPv6", "Reported"}}
	for _, t := range l.Tunnels {
		for i, e := range t.Ends {
			tunnels = append(tunnels, append([]string{e.Node.String(), t.Ends[1-i].Node.String()}, tunnelEndCells(e, now)...))
		}
	}
	section(&b, "Tunnels", tunnels)
	for _, w := range l.Warnings {
		fmt.Fprintf(&b, "\nWarning: %s\n", w)
	}
	return b.String()
}

func tunnelEndCells(e api.TunnelEnd, now time.Time) []string {
	at, device, keys, four, six, reported := "-", "-", "-", "-", "-", "never"
	if e.Link != nil {
		at, device = cmp.Or(e.Link.Endpoint, "not known yet"), cmp.Or(e.Link.Device, "-")
		if keys = "never"; !e.Link.LastHandshake.IsZero() {
			keys = brief(now.Sub(e.Link.LastHandshake)) + " ago"
		}
	}
	if e.Way != nil {
		four, six = foundText(e.Way.IPv4), foundText(e.Way.IPv6)
	}
	if !e.Reported.IsZero() {
		reported = brief(now.Sub(e.Reported)) + " ago"
	}
	return []string{at, device, keys, four, six, reported}
}

// foundText says what probes found: the state, and the round-trip time.
func foundText(f api.WayFound) string {
	if f.RTT > 0 && f.State == api.WayUp {
		return fmt.Sprintf("up, %s", f.RTT.Round(10*time.Microsecond))
	}
	return cmp.Or(string(f.State), "-")
}
