// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
)

// exitDegraded is what `sif status` exits with when something is wrong.
const exitDegraded = 2

// silentAfter is how old the last report of a node may be: several times the
// interval at which nodes report.
const silentAfter = 10 * time.Second

// StatusCommand is `sif status`.
type StatusCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *StatusCommand) Synopsis() string { return "Show the state of the fabric" }

// Help implements cli.Command.
func (c *StatusCommand) Help() string {
	return help(`
Usage: sif status [options]

  Shows the controller, the nodes of all zones, which revision each enforces,
  the endpoints on them, how long certificates are still valid, and what is
  degraded and why.

  Exits with 0 if all is well, with 2 if anything is degraded, and with 1 if
  the controller cannot be asked.
`, `
Status Options:

  -json
    Print the status in JSON, with "healthy" and "problems".

  -verbose
    Print full IDs, addresses and roles of endpoints, the encrypted links, and
    what was dropped.
`, controllerOptions)
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (c *StatusCommand) AutocompleteFlags() complete.Flags {
	return controllerPredictions(complete.Flags{"-json": complete.PredictNothing, "-verbose": complete.PredictNothing})
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (c *StatusCommand) AutocompleteArgs() complete.Predictor { return complete.PredictNothing }

// Run implements cli.Command.
func (c *StatusCommand) Run(args []string) int {
	flags := c.flagSet("status")
	c.controllerFlags(flags)
	c.jsonFlag(flags)
	verbose := flags.Bool("verbose", false, "")
	if code, ok := c.parseOptions(flags, args); !ok {
		return code
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
	now := time.Now()
	problems := statusProblems(status, now)
	code := 0
	if len(problems) > 0 {
		code = exitDegraded
	}
	if c.json {
		out := struct {
			api.Status
			Healthy  bool     `json:"healthy"`
			Problems []string `json:"problems"`
		}{status, len(problems) == 0, problems}
		return max(code, c.outputJSON(out))
	}
	c.UI.Output(formatStatus(status, problems, *verbose, now))
	return code
}

// statusProblems lists what is wrong, a sentence each.
func statusProblems(s api.Status, now time.Time) []string {
	problems := []string{}
	report := func(who, format string, args ...any) {
		problems = append(problems, who+": "+fmt.Sprintf(format, args...))
	}
	for _, why := range s.Controller.Degraded {
		report("controller", "%s", why)
	}
	if expired(s.Controller.CertificateExpires, now) {
		report("controller", "its certificate has expired")
	}
	for _, n := range s.Nodes {
		if n.Reported.IsZero() {
			report(n.ID().String(), "it has not reported since the controller started")
			continue
		}
		if age := now.Sub(n.Reported); age > silentAfter {
			report(n.ID().String(), "it has not reported for %s", brief(age))
		}
		if n.Sequence != s.Pointer.Sequence {
			report(n.ID().String(), "it enforces revision %d, not %d", n.Sequence, s.Pointer.Sequence)
		} else if n.Root != s.Pointer.Root {
			report(n.ID().String(), "it enforces a revision %d with another root, %.12s", n.Sequence, n.Root)
		}
		if expired(n.CertificateExpires, now) {
			report(n.ID().String(), "its certificate has expired")
		}
		for _, why := range n.Degraded {
			report(n.ID().String(), "%s", why)
		}
		for _, e := range n.Endpoints {
			name := fmt.Sprintf("endpoint %s of %s", shortID(e.Endpoint), e.Service)
			switch {
			case len(e.Pending) > 0:
				report(n.ID().String(), "the connectivity of %s is not in force everywhere: %s", name, strings.Join(e.Pending, "; "))
			case !e.InForce:
				report(n.ID().String(), "the connectivity of %s is not in force", name)
			}
			if expired(e.Expires, now) {
				report(n.ID().String(), "the admission of %s has expired", name)
			}
			if expired(e.CertificateExpires, now) {
				report(n.ID().String(), "the certificate of %s has expired", name)
			}
		}
	}
	return problems
}

func expired(t, now time.Time) bool { return !t.IsZero() && !now.Before(t) }

func formatStatus(s api.Status, problems []string, verbose bool, now time.Time) string {
	var b strings.Builder
	revision := "none: no graph has been applied yet"
	if s.Pointer.Sequence > 0 {
		revision = fmt.Sprintf("%d, root %.12s, applied %s ago", s.Pointer.Sequence, s.Pointer.Root, brief(now.Sub(s.Pointer.Time)))
	}
	role := "leads"
	if !s.Controller.Leader {
		role = "does not lead"
	}
	table(&b, [][]string{
		{"Fabric", s.Fabric},
		{"Revision", revision},
		{"Controller", fmt.Sprintf("%s, v%s, %s, certificate valid for %s", s.Controller.Address, s.Controller.Version, role, remaining(s.Controller.CertificateExpires, now))},
	})
	troubled := func(id string) string {
		if slices.ContainsFunc(problems, func(p string) bool { return strings.HasPrefix(p, id+": ") }) {
			return "degraded"
		}
		return "healthy"
	}
	nodes := [][]string{{"Zone", "Node", "Kind", "Version", "Revision", "Endpoints", "Certificate", "Reported", "State"}}
	endpoints := [][]string{{"Service", "Endpoint", "Node", "IPv4", "Admission", "Certificate", "In force"}}
	if verbose {
		endpoints[0] = append(endpoints[0], "IPv6", "Originates", "Responds")
	}
	var links, drops [][]string
	audited := [][]string{{"From", "To", "On", "Contract", "Flows", "Last"}}
	for _, n := range s.Nodes {
		row := []string{n.Zone, n.Node, string(n.Kind), "-", "-", "-", "-", "never", troubled(n.ID().String())}
		if !n.Reported.IsZero() {
			row = []string{n.Zone, n.Node, string(n.Kind), n.Version, fmt.Sprint(n.Sequence), fmt.Sprint(len(n.Endpoints)),
				remaining(n.CertificateExpires, now), brief(now.Sub(n.Reported)) + " ago", troubled(n.ID().String())}
		}
		nodes = append(nodes, row)
		for _, e := range n.Endpoints {
			endpoints = append(endpoints, endpointRow(n, e, verbose, now))
		}
		for _, f := range n.Audited {
			audited = append(audited, []string{f.From.String(), f.To.String(), fmt.Sprintf("%s/%d", f.Protocol, f.Port), f.Contract.String(),
				fmt.Sprint(f.Count), brief(now.Sub(f.Last)) + " ago"})
		}
		for _, l := range n.Links {
			shaken := "never"
			if !l.LastHandshake.IsZero() {
				shaken = brief(now.Sub(l.LastHandshake)) + " ago"
			}
			links = append(links, []string{n.ID().String(), l.Peer, shaken, fmt.Sprint(l.Rx), fmt.Sprint(l.Tx)})
		}
		for _, reason := range slices.Sorted(maps.Keys(n.Drops)) {
			drops = append(drops, []string{n.ID().String(), reason, fmt.Sprint(n.Drops[reason])})
		}
	}
	section(&b, "Nodes", nodes)
	section(&b, "Endpoints", endpoints)
	section(&b, "Would have been dropped, but for audit mode", audited)
	if verbose {
		section(&b, "Links", slices.Insert(links, 0, []string{"Node", "Peer", "Handshake", "Bytes in", "Bytes out"}))
		section(&b, "Dropped packets", slices.Insert(drops, 0, []string{"Node", "Reason", "Packets"}))
	}
	if len(problems) == 0 {
		b.WriteString("\nAll is well.")
		return b.String()
	}
	b.WriteString("\nDegraded\n")
	for _, p := range problems {
		b.WriteString("  " + p + "\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func endpointRow(n api.NodeStatus, e api.EndpointStatus, verbose bool, now time.Time) []string {
	id, inForce := shortID(e.Endpoint), "yes"
	if !e.InForce || len(e.Pending) > 0 {
		inForce = "no"
	}
	if verbose {
		id = e.Endpoint
	}
	row := []string{e.Service.String(), id, n.ID().String(), e.IPv4.String(), remaining(e.Expires, now), remaining(e.CertificateExpires, now), inForce}
	if verbose {
		row = append(row, e.IPv6.String(), list(e.Roles.Originate), list(e.Roles.Respond))
	}
	return row
}

// section writes a table under a title, unless it has a heading only.
func section(b *strings.Builder, title string, rows [][]string) {
	if len(rows) > 1 {
		b.WriteString("\n" + title + "\n")
		table(b, rows)
	}
}

// table writes rows in columns.
func table(b *strings.Builder, rows [][]string) {
	var columns strings.Builder
	w := tabwriter.NewWriter(&columns, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	w.Flush() // a Builder takes everything
	for line := range strings.Lines(columns.String()) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
}

func list[T fmt.Stringer](items []T) string {
	if len(items) == 0 {
		return "-"
	}
	names := make([]string, len(items))
	for i, item := range items {
		names[i] = item.String()
	}
	return strings.Join(names, ",")
}

// shortID is enough of an allocation's ID to know it by, as Nomad prints it.
func shortID(id string) string {
	if len(id) == 36 {
		return id[:8]
	}
	return id
}

func remaining(t, now time.Time) string {
	switch {
	case t.IsZero():
		return "-"
	case expired(t, now):
		return "expired"
	}
	return brief(t.Sub(now))
}

// brief prints a duration in its two largest units.
func brief(d time.Duration) string {
	d = max(d, 0).Round(time.Second)
	days, hours, minutes, seconds := int(d.Hours())/24, int(d.Hours())%24, int(d.Minutes())%60, int(d.Seconds())%60
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, hours)
	case hours > 0:
		return fmt.Sprintf("%dh%dm", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%dm%ds", minutes, seconds)
	}
	return fmt.Sprintf("%ds", seconds)
}
