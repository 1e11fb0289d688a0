// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/cnicall"
)

// EndpointListCommand is sif endpoint list.
type EndpointListCommand struct {
	Meta
	nodeAgent
	zone, node, service string
	local               bool
}

// Synopsis implements cli.Command.
func (c *EndpointListCommand) Synopsis() string { return "List the endpoints of the fabric" }

func (c *EndpointListCommand) usage() string {
	return `
Usage: sif endpoint list [options]

  Lists the endpoints of all zones, as far as the token may read their domains:
  the service, the node, the addresses, and what each of them is: the job and
  group of an allocation, a virtual machine, or the name and the Consul service
  of what was attached. What is attached and waits is listed below them.

  With -local it lists what is attached on this machine from outside Nomad, and
  asks only the agent here. That needs root, and no controller.
`
}

func (c *EndpointListCommand) options() []*flag.FlagSet {
	o := newOptions("List Options")
	c.jsonOption(o, "Print the endpoints in JSON.")
	o.StringVar(&c.zone, "zone", "", "Only endpoints of this `zone`.")
	o.StringVar(&c.node, "node", "", "Only endpoints of this `node`, as zone/node or by its name.")
	o.StringVar(&c.service, "service", "", "Only endpoints of this `service`, as domain/service, or of a domain.")
	o.BoolVar(&c.local, "local", false, "List what is attached on this machine, by its agent.")
	c.add(o)
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *EndpointListCommand) run(ctx context.Context, _ []string) error {
	if c.local {
		if c.zone+c.node+c.service != "" {
			return usagef("-local lists all that is attached here: it goes without -zone, -node and -service.")
		}
		list, err := c.list(ctx, time.Now())
		if err != nil {
			return fmt.Errorf("listing what is attached here: %w", err)
		}
		return c.output(list, func() string { return attachedTable(list, time.Now()) })
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	list, err := client.Endpoints(ctx)
	if err != nil {
		return fmt.Errorf("listing the endpoints: %w", err)
	}
	list.Endpoints = slices.DeleteFunc(list.Endpoints, func(e api.Endpoint) bool {
		return !c.selects(e.Host()) || c.service != "" && c.service != e.Service.String() && c.service != e.Service.Domain
	})
	list.Waiting = slices.DeleteFunc(list.Waiting, func(w api.NodeWaiting) bool {
		return !c.selects(fabric.NodeID{Zone: w.Zone, Name: w.Node}) || c.service != ""
	})
	return c.output(list, func() string { return formatEndpoints(list) })
}

// selects reports whether endpoints of a node are listed.
func (c *EndpointListCommand) selects(id fabric.NodeID) bool {
	return (c.zone == "" || c.zone == id.Zone) && (c.node == "" || c.node == id.Name || c.node == id.String())
}

func formatEndpoints(list api.EndpointList) string {
	var b strings.Builder
	rows := [][]string{{"Endpoint", "Service", "Node", "IPv4", "IPv6", "Origin", "In force"}}
	for _, e := range list.Endpoints {
		rows = append(rows, []string{shortID(e.Endpoint), serviceText(e.Service), e.Host().String(), addressText(e.IPv4), addressText(e.IPv6), originText(e.Origin), inForceText(e.EndpointStatus)})
	}
	table(&b, rows)
	waiting := [][]string{{"Name", "Consul service", "Node", "Why"}}
	for _, w := range list.Waiting {
		waiting = append(waiting, []string{w.Name, w.ConsulService, w.Zone + "/" + w.Node, w.Why})
	}
	section(&b, "Attached, and waiting", waiting)
	return b.String()
}

func inForceText(e api.EndpointStatus) string {
	if e.Revoked != "" {
		return "revoked"
	}
	if !e.InForce || len(e.Pending) > 0 {
		return "no"
	}
	return "yes"
}

// originText says what an endpoint is.
func originText(o fabric.Origin) string {
	switch {
	case o.Attached != "":
		return fmt.Sprintf("attached %s (Consul service %s)", o.Attached, o.Consul)
	case o.Job == "":
		return "-"
	}
	text := o.Job + "/" + o.Group
	if o.Namespace != "" && o.Namespace != fabric.DefaultNamespace {
		text = o.Namespace + ":" + text
	}
	if o.VM {
		text += " (VM)"
	}
	return text
}

func attachedTable(list []cnicall.Attached, now time.Time) string {
	if len(list) == 0 {
		return "Nothing is attached here."
	}
	var b strings.Builder
	rows := [][]string{{"Name", "Consul service", "Endpoint", "Service", "IPv4", "IPv6", "Namespace", "Attached"}}
	waiting := [][]string{{"Name", "Why"}}
	for _, a := range list {
		rows = append(rows, []string{a.Name, a.ConsulService, shortID(a.Endpoint), serviceText(a.FabricService), addressText(a.IPv4), addressText(a.IPv6), cmp.Or(a.Space.Path, "-"), brief(now.Sub(a.Since)) + " ago"})
		if a.Waits != "" {
			waiting = append(waiting, []string{a.Name, a.Waits})
		}
	}
	table(&b, rows)
	section(&b, "Waiting", waiting)
	return b.String()
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

func serviceText(r fabric.Ref) string {
	if r.IsZero() {
		return "-"
	}
	return r.String()
}
