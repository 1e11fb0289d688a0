// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
)

// NodeListCommand is sif node list.
type NodeListCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *NodeListCommand) Synopsis() string { return "List the nodes of the fabric" }

func (c *NodeListCommand) usage() string {
	return `
Usage: sif node list [options]

  Lists the registered nodes of all zones with their addresses, and the nodes
  that were removed lately. sif status shows what nodes enforce.
`
}

func (c *NodeListCommand) options() []*flag.FlagSet {
	o := newOptions("List Options")
	c.jsonOption(o, "Print the nodes in JSON.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *NodeListCommand) run(ctx context.Context, _ []string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	list, err := client.Nodes(ctx)
	if err != nil {
		return fmt.Errorf("listing the nodes: %w", err)
	}
	return c.output(list, func() string { return formatNodes(list, time.Now()) })
}

func formatNodes(list api.NodeList, now time.Time) string {
	var b strings.Builder
	nodes := [][]string{{"Zone", "Node", "Kind", "Underlay", "IPv4 pool", "IPv6 pool", "Endpoints", "Version", "Reported"}}
	for _, n := range list.Nodes {
		reported := "never"
		if !n.Reported.IsZero() {
			reported = brief(now.Sub(n.Reported)) + " ago"
		}
		nodes = append(nodes, []string{n.Node.Zone, n.Node.Name, string(n.Node.Kind), n.Node.Underlay.String(),
			n.Node.Pool4.String(), n.Node.Pool6.String(), fmt.Sprint(n.Endpoints), cmp.Or(n.Version, "-"), reported})
	}
	table(&b, nodes)
	removed := [][]string{{"Zone", "Node", "Removed", "Reason"}}
	for _, t := range list.Removed {
		removed = append(removed, []string{t.Node.Zone, t.Node.Name, brief(now.Sub(t.Removed)) + " ago", cmp.Or(t.Reason, "-")})
	}
	section(&b, "Removed", removed)
	return b.String()
}
