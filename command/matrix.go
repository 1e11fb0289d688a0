// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
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
	outside  string
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

  With -outside, every endpoint also sends requests to addresses outside the
  fabric, on all those ports. At each address something must answer on every
  port, over TCP and UDP. Services whose contracts name NAME ask for its
  addresses first; for all other services just the address counts.

  The exit code is 0 if all probes agree with the graph, 2 if some do not, and 1
  on an error.
`
}

func (c *MatrixCommand) options() []*flag.FlagSet {
	o := newOptions("Matrix Options")
	o.StringVar(&c.domain, "filter", "", "Probe only pairs with an endpoint of a service of this `domain`.")
	o.StringVar(&c.ip, "ip", "all", "The IP versions to probe: `4|6|all`. Default: all")
	c.jsonOption(o, "Print the outcome of each probe in JSON.")
	o.StringVar(&c.outside, "outside", "", "Also probe these addresses outside the fabric: `[NAME=]ADDRESS,...`.")
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
	var targets []matrix.Target
	for text := range strings.SplitSeq(c.outside, ",") {
		if c.outside == "" {
			break
		}
		target, err := matrix.ParseTarget(strings.TrimSpace(text))
		if err != nil {
			return usagef("-outside: %s", err)
		}
		targets = append(targets, target)
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
	outside := matrix.PlanOutside(status, reply.Graph, reservedIn(status), targets, options)
	if len(probes)+len(outside) == 0 {
		return c.report("Nothing to probe: at least two live endpoints and a contract are required.")
	}
	report, err := matrix.Run(ctx, client, probes, c.window, c.progress())
	if err != nil {
		return fmt.Errorf("probing: %w", err)
	}
	if err := matrix.RunOutside(ctx, client, outside, &report, c.progress()); err != nil {
		return fmt.Errorf("probing the outside: %w", err)
	}
	if err := c.output(report, func() string { return formatMatrix(report) }); err != nil {
		return err
	}
	if report.Agreed != report.Probes {
		return exitDisagreement
	}
	return nil
}

// reservedIn returns what the status tells of addresses that no external has.
func reservedIn(status api.Status) (known fabric.Outside) {
	for _, n := range status.Nodes {
		for _, p := range []netip.Prefix{n.Pool4, n.Pool6} {
			if p.IsValid() {
				known.Ranges = append(known.Ranges, p)
			}
		}
	}
	return known
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
	outsideView(&b, r)
	bad, badOutside := r.Disagreements()
	if len(bad)+len(badOutside) > 0 {
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
		for _, o := range badOutside {
			declared, answered := "no", "no"
			if o.Declared() {
				declared = o.Contract.String()
			}
			if o.Answered {
				answered = "yes"
			}
			rows = append(rows, []string{
				end(o.From), o.To.String(), fmt.Sprintf("%s/%d to %s", o.Protocol, o.Port, o.To.Address), declared, answered, o.Why,
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
	if r.Untried > 0 {
		fmt.Fprintf(&b, "\n%d requests were not tried, because they begin inside virtual machines, where nodes can open no connection.", r.Untried)
	}
	if r.Unanswered > 0 {
		fmt.Fprintf(&b, "\n%d probes that failed were for addresses outside that answered nobody, so nothing proves that the fabric refused them.", r.Unanswered)
	}
	return b.String()
}

func end(e matrix.Endpoint) string {
	return fmt.Sprintf("%s %s on %s", e.Service, shortID(e.ID), e.Node)
}

// matrixRank orders the marks of a cell: the one with the highest rank is shown.
var matrixRank = map[string]int{"": 0, ".": 1, "=": 2, "!": 3}

func matrixMark(agree, declared bool) string {
	switch {
	case !agree:
		return "!"
	case declared:
		return "="
	}
	return "."
}

// matrixView writes a row per originating service and a column per responding service.
func matrixView(b *strings.Builder, r matrix.Report) {
	type pair struct{ from, to fabric.Ref }
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
		mark, p := matrixMark(o.Agree, o.Declared()), pair{o.From.Service, o.To.Service}
		if matrixRank[mark] > matrixRank[cells[p]] {
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

// outsideView writes a row per service and a column per target outside.
func outsideView(b *strings.Builder, r matrix.Report) {
	if len(r.Outside) == 0 {
		return
	}
	type pair struct {
		from fabric.Ref
		to   matrix.Target
	}
	cells := map[pair]string{}
	var services []fabric.Ref
	var targets []matrix.Target
	for _, o := range r.Outside {
		if !slices.Contains(services, o.From.Service) {
			services = append(services, o.From.Service)
		}
		if !slices.Contains(targets, o.To) {
			targets = append(targets, o.To)
		}
		mark, p := matrixMark(o.Agree, o.Declared()), pair{o.From.Service, o.To}
		if matrixRank[mark] > matrixRank[cells[p]] {
			cells[p] = mark
		}
	}
	head := []string{"From \\ To"}
	for _, to := range targets {
		head = append(head, to.String())
	}
	rows := [][]string{head}
	for _, from := range services {
		row := []string{from.String()}
		for _, to := range targets {
			row = append(row, cells[pair{from, to}])
		}
		rows = append(rows, row)
	}
	section(b, "Outside", rows)
}
