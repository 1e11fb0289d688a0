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

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/matrix"
)

// MatrixCommand is sif matrix.
type MatrixCommand struct {
	Meta
	domain   string
	ip       string
	protocol string
	window   time.Duration
}

// Synopsis implements cli.Command.
func (c *MatrixCommand) Synopsis() string { return "Compare the graph with probes of the network" }

func (c *MatrixCommand) usage() string {
	return `
Usage: sif matrix [options]

  Probes all ordered pairs of live endpoints on all ports that a contract uses,
  over TCP and UDP, IPv4 and IPv6, and compares which probes arrive with what
  the graph declares. Of a large port range, the first, the last and the middle
  port are probed. A probe is a single packet, sent in the network namespace of
  one endpoint and observed in that of the other, so that no listener is needed.
  If a declared pair has a listener, a request is completed as well.

  In the matrix, "=" means that declared flows pass, "." that no flow is
  declared and none passes, and "!" that the graph and the network differ.

  The exit code is 0 if all probes agree with the graph, 2 if some do not, and 1
  on an error.
`
}

func (c *MatrixCommand) options() []*flag.FlagSet {
	o := newOptions("Matrix Options")
	o.StringVar(&c.domain, "filter", "", "Probe only pairs with an endpoint of a service of this `domain`.")
	o.StringVar(&c.ip, "ip", "all", "The IP versions to probe: `4|6|all`. Default: all")
	c.jsonOption(o, "Print the outcome of each probe in JSON.")
	o.StringVar(&c.protocol, "protocol", "all", "The protocols to probe: `tcp|udp|all`. Default: all")
	o.DurationVar(&c.window, "window", 3*time.Second, "The `duration` of each observation, from 100ms to 1m. Default: 3s")
	return []*flag.FlagSet{c.generalOptions(), o}
}

// plan returns which pairs the options select.
func (c *MatrixCommand) plan() (matrix.Options, error) {
	options := matrix.Options{Domain: c.domain}
	switch c.protocol {
	case "tcp":
		options.Protocols = []fabric.Protocol{fabric.TCP}
	case "udp":
		options.Protocols = []fabric.Protocol{fabric.UDP}
	case "all":
	default:
		return options, usagef("-protocol: %q is not one of tcp, udp, all", c.protocol)
	}
	switch c.ip {
	case "4":
		options.IPs = []int{4}
	case "6":
		options.IPs = []int{6}
	case "all":
	default:
		return options, usagef("-ip: %q is not one of 4, 6, all", c.ip)
	}
	if c.window < 100*time.Millisecond || c.window > time.Minute {
		return options, usagef("-window: %s is not between 100ms and 1m", c.window)
	}
	return options, nil
}

func (c *MatrixCommand) run(ctx context.Context, _ []string) error {
	options, err := c.plan()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	status, err := client.Status(ctx)
	if err != nil {
		return fmt.Errorf("reading the status: %w", err)
	}
	reply, err := client.Graph(ctx)
	if err != nil {
		return fmt.Errorf("reading the graph: %w", err)
	}
	if reply.Graph == nil {
		reply.Graph = &fabric.Graph{}
	}
	if c.domain != "" && reply.Graph.Domains[c.domain] == nil {
		return c.report("The graph in force has no domain %q.", c.domain)
	}
	probes := matrix.Plan(status, reply.Graph, options)
	if len(probes) == 0 {
		return c.report("Nothing to probe: at least two live endpoints and a contract are required.")
	}
	report, err := matrix.Run(ctx, client, probes, c.window, c.progress())
	if err != nil {
		return fmt.Errorf("probing: %w", err)
	}
	if err := c.output(report, func() string { return formatMatrix(report) }); err != nil {
		return err
	}
	if report.Agreed != report.Probes {
		return exitDisagreement
	}
	return nil
}

// progress returns a function that shows, every few seconds, how many probes are done.
func (c *MatrixCommand) progress() func(done, all int) {
	last := time.Now()
	return func(done, all int) {
		if !c.json && time.Since(last) > 5*time.Second {
			last = time.Now()
			c.UI.Warn(fmt.Sprintf("%d of %d probes", done, all))
		}
	}
}

func formatMatrix(r matrix.Report) string {
	var b strings.Builder
	matrixView(&b, r)
	if bad := r.Disagreements(); len(bad) > 0 {
		rows := [][]string{{"From", "To", "Probe", "Declared", "Observed", "Why"}}
		for _, o := range bad {
			declared, observed := "no", "no"
			if o.Declared() {
				declared = o.Contract.String()
			}
			if o.Observed {
				observed = "yes"
			}
			rows = append(rows, []string{
				end(o.From), end(o.To), fmt.Sprintf("%s/%d IPv%d", o.Protocol, o.Port, o.IP), declared, observed, o.Why,
			})
		}
		section(&b, "Disagreements", rows)
	}
	// Round down: only full agreement is 100 %.
	percent := float64(int(r.Agreement*10)) / 10
	fmt.Fprintf(&b, "\n%d pairs, %d probes, %d requests completed, %.1f %% agreement", r.Pairs, r.Probes, r.Requests, percent)
	if r.Unproven > 0 {
		fmt.Fprintf(&b, "\n%d probes that did not arrive came from nodes without a declared flow, so nothing proves that their probes leave the node.", r.Unproven)
	}
	return b.String()
}

func end(e matrix.Endpoint) string {
	return fmt.Sprintf("%s %s on %s", e.Service, shortID(e.ID), e.Node)
}

// matrixView writes a row per originating service and a column per responding service.
func matrixView(b *strings.Builder, r matrix.Report) {
	type pair struct{ from, to fabric.Ref }
	rank := map[string]int{"": 0, ".": 1, "=": 2, "!": 3}
	cells := map[pair]string{}
	var services []fabric.Ref
	seen := map[fabric.Ref]bool{}
	for _, o := range r.Outcomes {
		for _, s := range []fabric.Ref{o.From.Service, o.To.Service} {
			if !seen[s] {
				seen[s] = true
				services = append(services, s)
			}
		}
		mark := "."
		switch {
		case !o.Agree:
			mark = "!"
		case o.Declared():
			mark = "="
		}
		p := pair{o.From.Service, o.To.Service}
		if rank[mark] > rank[cells[p]] {
			cells[p] = mark
		}
	}
	slices.SortFunc(services, fabric.CompareRefs)
	head := []string{"", "From \\ To"}
	for i := range services {
		head = append(head, fmt.Sprint(i+1))
	}
	rows := [][]string{head}
	for i, from := range services {
		row := []string{fmt.Sprint(i + 1), from.String()}
		for _, to := range services {
			row = append(row, cells[pair{from, to}])
		}
		rows = append(rows, row)
	}
	table(b, rows)
}
