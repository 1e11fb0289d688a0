// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
)

// reportTimeout is the age from which the last report of a node is a problem: several times the
// interval at which nodes report.
const reportTimeout = 10 * time.Second

// StatusCommand is sif status.
type StatusCommand struct {
	Meta
	verbose bool
}

// Synopsis implements cli.Command.
func (c *StatusCommand) Synopsis() string { return "Show the state of the fabric" }

func (c *StatusCommand) usage() string {
	return `
Usage: sif status [options]

  Shows the controllers and which of them leads, the nodes of all zones and the
  revision that each enforces, their endpoints, the remaining life of
  certificates, what is degraded and why, and warnings about the graph, such as
  a lack of bindings.

  The exit code is 0 if nothing is degraded, warnings or not, 2 if something is,
  and 1 on an error.
`
}

func (c *StatusCommand) options() []*flag.FlagSet {
	o := newOptions("Status Options")
	c.jsonOption(o, "Print the status in JSON, with \"healthy\" and \"problems\".")
	o.BoolVar(&c.verbose, "verbose", false, "Show full IDs, IPv6 addresses and roles of endpoints, the encrypted links, what probes found of them and of the paths between zones, dropped packets, and what was put back.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *StatusCommand) run(ctx context.Context, _ []string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	status, err := client.Status(ctx)
	if err != nil {
		return fmt.Errorf("reading the status: %w", err)
	}
	now := time.Now()
	return c.showStatus(status, statusProblems(status, now), c.verbose, now)
}

// showStatus writes a status with its problems.
func (m *Meta) showStatus(status api.Status, problems []string, verbose bool, now time.Time) error {
	if err := m.output(struct {
		api.Status
		Healthy  bool     `json:"healthy"`
		Problems []string `json:"problems"`
	}{status, len(problems) == 0, problems}, func() string { return formatStatus(status, problems, verbose, now) }); err != nil {
		return err
	}
	if len(problems) > 0 {
		return exitDegraded
	}
	return nil
}

// statusProblems lists what is degraded, one sentence each.
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
	if why := outageText(s.Controller.Outage, now); why != "" {
		report("controller", "%s", why)
	}
	problems = append(problems, controllerProblems(s, now)...)
	for _, n := range s.Nodes {
		id := daemonOf(s, n)
		if n.Reported.IsZero() {
			report(id, "it has not reported since the controller started")
			continue
		}
		if age := now.Sub(n.Reported); age > reportTimeout {
			report(id, "it has not reported for %s", brief(age))
		} else {
			for _, why := range wayProblems(n, now) {
				report(id, "%s", why)
			}
		}
		if n.Sequence != s.Pointer.Sequence {
			report(id, "it enforces revision %d, not %d", n.Sequence, s.Pointer.Sequence)
		} else if n.Root != s.Pointer.Root {
			report(id, "it enforces a revision %d with another root, %.12s", n.Sequence, n.Root)
		}
		if n.Revocations < s.Revocations.Sequence {
			report(id, "it heeds list %d of removals and revocations, not %d: what was revoked since may still have rights there", n.Revocations, s.Revocations.Sequence)
		}
		if expired(n.CertificateExpires, now) {
			report(id, "its certificate has expired")
		}
		if why := outageText(n.Outage, now); why != "" {
			report(id, "%s", why)
		}
		for _, why := range n.Degraded {
			report(id, "%s", why)
		}
		for _, e := range n.Endpoints {
			name := fmt.Sprintf("endpoint %s of %s", shortID(e.Endpoint), e.Service)
			if e.Revoked != "" {
				continue // an operator has seen to it, and the table says so
			}
			switch {
			case len(e.Pending) > 0:
				report(id, "the connectivity of %s is not in force everywhere: %s", name, strings.Join(e.Pending, "; "))
			case !e.InForce:
				report(id, "the connectivity of %s is not in force", name)
			}
			if expired(e.Expires, now) && !e.Honoured {
				report(id, "the admission of %s has expired", name)
			}
			if expired(e.CertificateExpires, now) {
				report(id, "the certificate of %s has expired", name)
			}
		}
	}
	return problems
}

// daemonOf names the daemon that a status is of: by its node, and by the kind if the node has
// several daemons.
func daemonOf(s api.Status, n api.NodeStatus) string {
	several := slices.ContainsFunc(s.Nodes, func(o api.NodeStatus) bool { return o.ID() == n.ID() && o.Kind != n.Kind })
	if several {
		return fmt.Sprintf("%s (%s)", n.ID(), n.Kind)
	}
	return n.ID().String()
}

func expired(t, now time.Time) bool { return !t.IsZero() && !now.Before(t) }

func formatStatus(s api.Status, problems []string, verbose bool, now time.Time) string {
	var b strings.Builder
	revision := "none: no graph has been applied yet"
	if s.Pointer.Sequence > 0 {
		revision = fmt.Sprintf("%d, root %.12s, applied %s ago", s.Pointer.Sequence, s.Pointer.Root, brief(now.Sub(s.Pointer.Time)))
	}
	table(&b, [][]string{
		{"Fabric", s.Fabric},
		{"Revision", revision},
		{"Controller", fmt.Sprintf("%s, v%s, %s, certificate valid for %s", s.Controller.Address, s.Controller.Version, roleOf(s.Controller), remaining(s.Controller.CertificateExpires, now))},
		{"Revoked", revokedText(s.Revocations)},
	})
	state := func(n api.NodeStatus) string {
		switch daemon := daemonOf(s, n); {
		case slices.ContainsFunc(problems, func(p string) bool { return strings.HasPrefix(p, daemon+": ") }):
			return "degraded"
		case n.State != nil && n.State.Draining:
			return "draining"
		}
		return "healthy"
	}
	nodes := [][]string{{"Zone", "Node", "Kind", "Version", "Revision", "Endpoints", "Certificate", "Lasts", "Reported", "State"}}
	endpoints := [][]string{{"Service", "Endpoint", "Node", "IPv4", "Admission", "Certificate", "In force"}}
	if verbose {
		endpoints[0] = append(endpoints[0], "IPv6", "Originates", "Responds")
	}
	var links, drops, told, unnamed, refused, repaired, ports [][]string
	exits := [][]string{{"Zone", "Node", "Address", "Interface"}}
	published := [][]string{{"Port of the node", "Leads to", "Service", "Node"}}
	exposed := [][]string{{"Node", "Port", "Leads to"}}
	waiting := [][]string{{"Name", "Consul service", "Node", "Why"}}
	audited := [][]string{{"From", "To", "Port", "Contract", "Flows", "Last seen"}}
	for _, n := range s.Nodes {
		id := n.ID().String()
		row := []string{n.Zone, n.Node, string(n.Kind), "-", "-", "-", "-", "-", "never", state(n)}
		if !n.Reported.IsZero() {
			row = []string{n.Zone, n.Node, string(n.Kind), n.Version, fmt.Sprint(n.Sequence), fmt.Sprint(len(n.Endpoints)),
				remaining(n.CertificateExpires, now), lasts(n, now), brief(now.Sub(n.Reported)) + " ago", state(n)}
		}
		nodes = append(nodes, row)
		for _, e := range n.Exit {
			exits = append(exits, []string{n.Zone, n.Node, e.Address.String(), e.Interface})
		}
		for _, e := range n.Endpoints {
			endpoints = append(endpoints, endpointRow(n, e, verbose, now))
			for _, p := range e.Ports {
				published = append(published, []string{fmt.Sprintf("%s %s", p.Protocol, p.From), p.To.String(), e.Service.String(), id})
			}
		}
		for _, w := range n.Waiting {
			waiting = append(waiting, []string{w.Name, w.ConsulService, id, w.Why})
		}
		for _, p := range n.Exposed {
			exposed = append(exposed, []string{id, fmt.Sprintf("%s %d", p.Protocol, p.Port), p.To.String()})
		}
		for _, f := range n.Audited {
			audited = append(audited, []string{f.From.String(), f.To.String(), fmt.Sprintf("%s/%d", f.Protocol, f.Port), f.Contract.String(),
				fmt.Sprint(f.Count), brief(now.Sub(f.Last)) + " ago"})
		}
		for _, l := range n.Links {
			handshake := "never"
			if !l.LastHandshake.IsZero() {
				handshake = brief(now.Sub(l.LastHandshake)) + " ago"
			}
			links = append(links, []string{id, l.Peer, l.Device, handshake, fmt.Sprint(l.Rx), fmt.Sprint(l.Tx)})
		}
		for _, reason := range slices.Sorted(maps.Keys(n.Drops)) {
			drops = append(drops, []string{id, reason, fmt.Sprint(n.Drops[reason])})
		}
		for _, kind := range slices.Sorted(maps.Keys(n.Told)) {
			told = append(told, []string{id, kind, fmt.Sprint(n.Told[kind])})
		}
		for _, r := range n.RefusedNames {
			unnamed = append(unnamed, []string{id, r.Service.String(), r.Name, fmt.Sprint(r.Count), brief(now.Sub(r.Last)) + " ago"})
		}
		for _, reason := range slices.Sorted(maps.Keys(n.Refused)) {
			refused = append(refused, []string{id, reason, fmt.Sprint(n.Refused[reason])})
		}
		ports = append(ports, closedPorts(id, n.Firewall)...)
		for _, kind := range slices.Sorted(maps.Keys(n.Repaired)) {
			repaired = append(repaired, []string{id, kind, fmt.Sprint(n.Repaired[kind])})
		}
	}
	section(&b, "Controllers", controllerRows(s, now))
	section(&b, "Outages", outageRows(s, now))
	section(&b, "Nodes", nodes)
	section(&b, "Endpoints", endpoints)
	section(&b, "Revoked endpoints", revokedEndpoints(s, verbose))
	section(&b, "Not handed out by DNS", withheld(s, verbose))
	section(&b, "Attached, and waiting", waiting)
	section(&b, "Published ports", published)
	section(&b, "Ports that nodes expose to their workloads", exposed)
	section(&b, "Exit addresses, which the outside sees", exits)
	section(&b, "Allowed only by audit mode", audited)
	if verbose {
		section(&b, "How long daemons last by what they hold", lastsRows(s, now))
		section(&b, "Links", slices.Insert(links, 0, []string{"Node", "Peer", "Device", "Last handshake", "Bytes in", "Bytes out"}))
		section(&b, "Keys of links", linkKeys(s, now))
		waySections(&b, s)
		section(&b, "Dropped packets", slices.Insert(drops, 0, []string{"Node", "Reason", "Packets"}))
		section(&b, "Outside names that no contract names", slices.Insert(unnamed, 0, []string{"Node", "Service", "Name", "Questions", "Last"}))
		section(&b, "Refusals that workloads were told of", slices.Insert(told, 0, []string{"Node", "How", "Packets"}))
		section(&b, "Ports that are not open to the underlay", slices.Insert(ports, 0, []string{"Node", "Mode", "Port", "Process", "Packets"}))
		section(&b, "Refused because of a limit", slices.Insert(refused, 0, []string{"Node", "Limit", "Times"}))
		section(&b, "Changed by others and put back", slices.Insert(repaired, 0, []string{"Node", "What", "Times"}))
	}
	if len(s.Warnings) > 0 {
		b.WriteString("\nWarnings\n")
		for _, w := range s.Warnings {
			b.WriteString("  " + w + "\n")
		}
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
	if e.Revoked != "" {
		inForce = "revoked"
	}
	if verbose {
		id = e.Endpoint
	}
	admission := remaining(e.Expires, now)
	if e.Honoured {
		admission = "honoured"
	}
	row := []string{e.Service.String(), id, n.ID().String(), e.IPv4.String(), admission, remaining(e.CertificateExpires, now), inForce}
	if verbose {
		row = append(row, e.IPv6.String(), list(e.Roles.Originate), list(e.Roles.Respond))
	}
	return row
}

// revokedText counts what the list of removals and revocations contains.
func revokedText(r api.RevocationStatus) string {
	var parts []string
	for _, p := range []struct {
		n    int
		noun string
	}{{r.Removed, "node"}, {r.Services, "service"}, {r.Endpoints, "endpoint"}, {r.Certificates, "certificate"}} {
		if p.n > 0 {
			parts = append(parts, count(p.n, p.noun))
		}
	}
	if len(parts) == 0 {
		return "nothing"
	}
	text := fmt.Sprintf("%s, by list %d", strings.Join(parts, ", "), r.Sequence)
	if n := len(r.Behind); n > 0 {
		text += fmt.Sprintf("; %s do not heed it yet", count(n, "daemon"))
	}
	return text
}

// revokedEndpoints lists the endpoints that have no rights, and why.
func revokedEndpoints(s api.Status, verbose bool) (rows [][]string) {
	rows = [][]string{{"Service", "Endpoint", "Node", "Why"}}
	for _, n := range s.Nodes {
		for _, e := range n.Endpoints {
			if e.Revoked == "" {
				continue
			}
			id := shortID(e.Endpoint)
			if verbose {
				id = e.Endpoint
			}
			rows = append(rows, []string{e.Service.String(), id, n.ID().String(), e.Revoked})
		}
	}
	return rows
}

// lasts returns how long a daemon needs nothing of Vault and the controller.
func lasts(n api.NodeStatus, now time.Time) string {
	until, _ := n.Lasts()
	return remaining(until, now)
}

func lastsRows(s api.Status, now time.Time) [][]string {
	rows := [][]string{{"Node", "Daemon", "Lasts", "Then ends"}}
	for _, n := range s.Nodes {
		if until, what := n.Lasts(); !until.IsZero() {
			rows = append(rows, []string{n.ID().String(), n.Daemon(), remaining(until, now), what})
		}
	}
	return rows
}

// withheld lists the endpoints with which DNS does not answer, and why.
func withheld(s api.Status, verbose bool) (rows [][]string) {
	for _, n := range s.Nodes {
		for _, e := range n.Endpoints {
			if e.Withheld == "" {
				continue
			}
			id := shortID(e.Endpoint)
			if verbose {
				id = e.Endpoint
			}
			rows = append(rows, []string{e.Service.String(), id, n.ID().String(), e.Withheld})
		}
	}
	return slices.Insert(rows, 0, []string{"Service", "Endpoint", "Node", "Why"})
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

func remaining(t, now time.Time) string {
	switch {
	case t.IsZero():
		return "-"
	case expired(t, now):
		return "expired"
	}
	return brief(t.Sub(now))
}
