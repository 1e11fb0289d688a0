// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/matrix"
)

// exitDisagreement is what `sif matrix` exits with when graph and network
// differ.
const exitDisagreement = 2

// MatrixCommand is `sif matrix`.
type MatrixCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *MatrixCommand) Synopsis() string { return "Compare the graph with what the network does" }

// Help implements cli.Command.
func (c *MatrixCommand) Help() string {
	return help(`
Usage: sif matrix [options]

  Probes every ordered pair of live endpoints on every port that any contract
  uses, over TCP and UDP, IPv4 and IPv6, and compares what arrives with what
  the graph declares. Of a large range of ports the ends and the middle are
  probed. A probe is a single packet, sent within the namespace of one endpoint
  and watched for in that of the other, so nobody need listen; where a declared
  pair has a listener, a request is completed as well.

  In the matrix, "=" means that declared flows pass, "." that nothing is
  declared and nothing passes, "!" that graph and network differ.

  Exits with 0 if all agree, with 2 if not, and with 1 if the controller cannot
  be asked.
`, `
Matrix Options:

  -filter=<domain>
    Only pairs with an endpoint of a service of this domain.

  -ip=<4|6|all>
    Default: all

  -json
    Print the outcome of every probe in JSON.

  -protocol=<tcp|udp|all>
    Default: all

  -window=<duration>
    How long each observation lasts. Default: 3s
`, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *MatrixCommand) AutocompleteFlags() complete.Flags {
	return controllerPredictions(complete.Flags{
		"-filter": complete.PredictAnything, "-json": complete.PredictNothing, "-window": complete.PredictAnything,
		"-ip": complete.PredictSet("4", "6", "all"), "-protocol": complete.PredictSet("tcp", "udp", "all"),
	})
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *MatrixCommand) AutocompleteArgs() complete.Predictor { return complete.PredictNothing }

// Run implements cli.Command.
func (c *MatrixCommand) Run(args []string) int {
	flags := c.flagSet("matrix")
	c.controllerFlags(flags)
	c.jsonFlag(flags)
	var options matrix.Options
	flags.StringVar(&options.Domain, "filter", "", "")
	ip := flags.String("ip", "all", "")
	protocol := flags.String("protocol", "all", "")
	window := flags.Duration("window", 3*time.Second, "")
	if code, ok := c.parseOptions(flags, args); !ok {
		return code
	}
	if *protocol != "all" {
		p, err := fabric.ParseProtocol(*protocol)
		if err != nil {
			return c.usage("matrix", "-protocol: %s", err)
		}
		if p != fabric.TCP && p != fabric.UDP {
			return c.usage("matrix", "-protocol: probes are of tcp or udp, not %s", p)
		}
		if p != fabric.TCP && p != fabric.UDP {
			return c.usage("matrix", "-protocol: %s is none of tcp, udp, all", p)
		}
		options.Protocols = []fabric.Protocol{p}
	}
	switch *ip {
	case "4":
		options.IPs = []int{4}
	case "6":
		options.IPs = []int{6}
	case "all":
	default:
		return c.usage("matrix", "-ip: %q is none of 4, 6, all", *ip)
	}
	if *window < 100*time.Millisecond || *window > time.Minute {
		return c.usage("matrix", "-window: %s is not between 100ms and 1m", *window)
	}
	client, err := c.client()
	if err != nil {
		return c.fail("reaching the controller", err)
	}
	ctx, stop := interruptible()
	defer stop()
	status, err := client.Status(ctx)
	if err != nil {
		return c.fail("reading the status", err)
	}
	reply, err := client.Graph(ctx)
	if err != nil {
		return c.fail("reading the graph", err)
	}
	if reply.Graph == nil {
		reply.Graph = &fabric.Graph{}
	}
	if options.Domain != "" && reply.Graph.Domains[options.Domain] == nil {
		c.UI.Error(fmt.Sprintf("The graph in force has no domain %q.", options.Domain))
		return 1
	}
	probes := matrix.Plan(status, reply.Graph, options)
	if len(probes) == 0 {
		c.UI.Error("There is nothing to probe: it takes two live endpoints and a contract.")
		return 1
	}
	report, err := matrix.Run(ctx, client, probes, *window, c.progress())
	if err != nil {
		return c.fail("probing", err)
	}
	code := 0
	if report.Agreed != report.Probes {
		code = exitDisagreement
	}
	if c.json {
		return max(code, c.outputJSON(report))
	}
	c.UI.Output(formatMatrix(report))
	return code
}

// progress tells, at most every few seconds, how far the probes are.
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
	// Rounding must not make 100 of what is less.
	percent := float64(int(r.Agreement*10)) / 10
	fmt.Fprintf(&b, "\n%d pairs, %d probes, %d requests completed, %.1f %% agreement", r.Pairs, r.Probes, r.Requests, percent)
	if r.Unproven > 0 {
		fmt.Fprintf(&b, "\n%d silent probes came from nodes without a declared flow to prove that their probes get out.", r.Unproven)
	}
	return b.String()
}

func end(e matrix.Endpoint) string {
	return fmt.Sprintf("%s %s on %s", e.Service, shortID(e.ID), e.Node)
}

// matrixView writes a row for each originating service and a column for each
// responding one.
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
