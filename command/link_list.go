// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"strings"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// LinkListCommand is sif link list.
type LinkListCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *LinkListCommand) Synopsis() string { return "List the links between zones" }

func (c *LinkListCommand) usage() string {
	return `
Usage: sif link list [options]

  Lists the links between zones that the graph in force declares, and how many
  of their tunnels carry packets, as the processors at both ends last measured.
  A graph without link blocks links all processors of different zones.

  The exit code is 0 on success, whatever the state of the links, and 1 on an
  error. sif link show lists the tunnels of one.
`
}

func (c *LinkListCommand) options() []*flag.FlagSet {
	o := newOptions("List Options")
	c.jsonOption(o, "Print the links in JSON.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *LinkListCommand) run(ctx context.Context, _ []string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	list, err := client.Links(ctx)
	if err != nil {
		return fmt.Errorf("listing the links: %w", err)
	}
	return c.output(list, func() string { return formatLinks(list) })
}

func formatLinks(list api.LinkList) string {
	var b strings.Builder
	rows := [][]string{{"Link", "Between", "Labels", "Cost", "Endpoints", "Tunnels"}}
	for _, l := range list.Links {
		rows = append(rows, []string{linkName(l), betweenText(l), cmp.Or(strings.Join(l.Labels, ","), "-"), fmt.Sprint(l.Cost),
			cmp.Or(l.Endpoints, fabric.DefaultEndpoints), tunnelsText(l)})
	}
	table(&b, rows)
	for _, l := range list.Links {
		for _, w := range l.Warnings {
			fmt.Fprintf(&b, "\nWarning: %s\n", w)
		}
	}
	return b.String()
}

// linkName names a link; the one that a graph without link blocks implies has no name.
func linkName(l api.LinkInfo) string { return cmp.Or(l.Name, "(implied)") }

func betweenText(l api.LinkInfo) string {
	return fmt.Sprintf("%s and %s", l.Between[0], l.Between[1])
}

// tunnelsText counts the tunnels of a link that carry packets.
func tunnelsText(l api.LinkInfo) string {
	if l.Disabled {
		return "disabled"
	}
	up := 0
	for _, t := range l.Tunnels {
		if t.Up() {
			up++
		}
	}
	return fmt.Sprintf("%d of %d up", up, len(l.Tunnels))
}
