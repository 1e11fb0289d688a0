// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
)

// EndpointShowCommand is sif endpoint show.
type EndpointShowCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *EndpointShowCommand) Synopsis() string { return "Show an endpoint" }

func (c *EndpointShowCommand) usage() string {
	return `
Usage: sif endpoint show [options] <endpoint>

  Shows an endpoint as its node last reported it. It is named by its ID or the
  beginning of it, by one of its addresses, or by the name under which it was
  attached. The token must have read access to the domain of its service.
`
}

func (c *EndpointShowCommand) options() []*flag.FlagSet {
	o := newOptions("Show Options")
	c.jsonOption(o, "Print the endpoint in JSON.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *EndpointShowCommand) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: <endpoint>", predict: complete.PredictAnything}
}

func (c *EndpointShowCommand) run(ctx context.Context, args []string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	list, err := client.Endpoints(ctx)
	if err != nil {
		return fmt.Errorf("reading the endpoint: %w", err)
	}
	found := endpointsNamed(list.Endpoints, args[0])
	switch len(found) {
	case 0:
		for _, w := range list.Waiting {
			if w.Name == args[0] || strings.HasPrefix(w.Endpoint, args[0]) {
				return fmt.Errorf("reading the endpoint: %q is attached to node %s/%s, and has no endpoint now: %s", w.Name, w.Zone, w.Node, w.Why)
			}
		}
		return fmt.Errorf("reading the endpoint: no endpoint that the token may read is named %q; `sif endpoint list` lists them", args[0])
	case 1:
		return c.output(found[0], func() string { return endpointText(found[0], time.Now()) })
	}
	var names []string
	for _, e := range found {
		names = append(names, fmt.Sprintf("%s on %s", e.Endpoint, e.Host()))
	}
	return fmt.Errorf("reading the endpoint: %q may be any of %d: %s", args[0], len(found), strings.Join(names, ", "))
}

// endpointsNamed returns the endpoints that a name may mean. One whose whole ID or name it is is
// preferred.
func endpointsNamed(list []api.Endpoint, name string) []api.Endpoint {
	var exact, begins []api.Endpoint
	if name == "" {
		return nil
	}
	for _, e := range list {
		switch {
		case e.Endpoint == name, e.Origin.Attached == name, e.IPv4.String() == name, e.IPv6.String() == name:
			exact = append(exact, e)
		case strings.HasPrefix(e.Endpoint, name):
			begins = append(begins, e)
		}
	}
	if len(exact) > 0 {
		return exact
	}
	return begins
}

func endpointText(e api.Endpoint, now time.Time) string {
	var b strings.Builder
	rows := [][]string{
		{"Endpoint", e.Endpoint}, {"Service", serviceText(e.Service)}, {"Origin", originText(e.Origin)}, {"Node", e.Host().String()},
		{"IPv4", addressText(e.IPv4)}, {"IPv6", addressText(e.IPv6)},
		{"Originates", list(e.Roles.Originate)}, {"Responds", list(e.Roles.Respond)},
		{"In force", inForceText(e.EndpointStatus)},
		{"Admission", remaining(e.Expires, now)}, {"Certificate", remaining(e.CertificateExpires, now)}, {"Reported", brief(now.Sub(e.Reported)) + " ago"},
	}
	for _, p := range e.Pending {
		rows = append(rows, []string{"Pending", p})
	}
	for _, p := range e.Ports {
		rows = append(rows, []string{"Published", fmt.Sprintf("%s %s leads to %s", p.Protocol, p.From, p.To)})
	}
	for _, k := range e.Checks {
		rows = append(rows, []string{"Check", fmt.Sprintf("%s/%d", k.Protocol, k.Port)})
	}
	if p := e.Process; p != nil {
		rows = append(rows, []string{"Process", hostProcessText(*p)})
	}
	table(&b, rows)
	return b.String()
}

// hostProcessText says what a process of its node has of the endpoint.
func hostProcessText(p api.Process) string {
	var parts []string
	for _, port := range p.Ports {
		if slices.Contains(p.Silent, port) {
			port += " (nobody listens)"
		}
		parts = append(parts, port)
	}
	text := "of the node"
	if len(parts) > 0 {
		text += ", reached on " + strings.Join(parts, ", ")
	}
	if p.Cgroup == "" {
		return text + ", sends nothing by the endpoint"
	}
	text += ", sends as cgroup " + p.Cgroup
	if p.NoCgroup {
		text += " (which does not exist now)"
	}
	return text
}
