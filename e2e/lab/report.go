// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"text/tabwriter"
)

// Command prepares a command that runs in a node's network namespace; "internet", "client" and
// the machines outside are nodes too. Down ends it like every process of the lab.
func (l *Lab) Command(ctx context.Context, node, program string, args ...string) (*exec.Cmd, error) {
	if !exists(l.NetNS(node)) {
		return nil, fmt.Errorf("lab %s has no node %q; its nodes are %s", l.Name, node, strings.Join(l.namespaces(), ", "))
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + l.NetNS(node), "--", program}, args...)...)
	cmd.Env = append(cmd.Environ(), labVariable+"="+l.Name)
	return cmd, nil
}

// Environment returns, as KEY=value, what consul, vault, nomad and sif need to reach the lab as its
// operator. The addresses are reachable from the lab's nodes and, with host access, from the
// machine itself.
func (l *Lab) Environment() []string {
	env := []string{
		"CONSUL_HTTP_ADDR=" + l.ConsulAddress(),
		"CONSUL_HTTP_TOKEN=" + l.Secrets.ConsulManagement,
		"CONSUL_CACERT=" + l.ServersCA(),
		"VAULT_ADDR=" + l.VaultAddress(),
		"VAULT_TOKEN=" + l.Secrets.VaultRoot,
		"VAULT_CACERT=" + l.ServersCA(),
		"NOMAD_ADDR=" + l.NomadAddress(),
		"NOMAD_TOKEN=" + l.Secrets.NomadOperator,
		"NOMAD_CACERT=" + l.ServersCA(),
	}
	if !l.ServersOnly {
		env = append(env,
			"SIF_HTTP_ADDR="+l.ControllerAddresses(),
			"SIF_TOKEN="+l.Secrets.ConsulOperator,
			"SIF_CACERT="+l.FabricCA(),
			"SIF_TRUST_DOMAIN="+l.Topology.TrustDomain,
		)
	}
	return env
}

// WriteStatus lists the lab's processes and reports whether all of them run.
func (l *Lab) WriteStatus(w io.Writer) (bool, error) {
	processes, err := l.Processes()
	if err != nil {
		return false, err
	}
	ok := true
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tZONE\tADDRESS\tDAEMON\tPID\tSTATE")
	list := func(node, zone, address string) {
		for _, p := range processes {
			if p.Node != node {
				continue
			}
			state := "running"
			if !p.alive() {
				state, ok = "ended", false
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\n", node, zone, address, p.Name, p.PID, state)
		}
	}
	for _, n := range l.Topology.Nodes() {
		list(n.Name, n.Zone, n.Address)
	}
	for _, o := range l.Topology.Internet.Outside {
		list(o.Name, "-", o.Addresses[0])
	}
	return ok, table.Flush()
}

// WriteSummary prints what runs where and what to try next.
func (l *Lab) WriteSummary(w io.Writer) error {
	processes, err := l.Processes()
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, z := range l.Topology.Zones {
		fmt.Fprintf(table, "zone %s\t%s\n", z.Name, z.Subnet)
		for _, n := range z.Nodes {
			var names []string
			for _, p := range processes {
				if p.Node == n.Name {
					names = append(names, p.Name)
				}
			}
			fmt.Fprintf(table, "  %s\t%s\t%s\t%s\n", n.Name, n.Address, n.Kind, strings.Join(names, ", "))
		}
	}
	if len(l.Topology.Internet.Outside) > 0 {
		fmt.Fprintf(table, "outside the fabric\n")
	}
	for _, o := range l.Topology.Internet.Outside {
		fmt.Fprintf(table, "  %s\t%s\t%s\n", o.Name, o.Addresses[0], strings.Join(o.Names, ", "))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	pages, err := l.Pages(context.Background())
	if err != nil {
		return err
	}
	if len(pages) > 0 {
		fmt.Fprintln(w)
	}
	for _, p := range pages {
		fmt.Fprintf(w, "%-14s %s\n", p.Job, p.URL)
	}
	prefix := "bin/sif-lab"
	if l.Name != "dev" {
		prefix += " -lab " + l.Name
	}
	_, err = fmt.Fprintf(w, `
Logs are in %s, secrets in %s. Next:
`, LogDir(l.Name), l.file())
	if err != nil {
		return err
	}
	fmt.Fprintf(table, "  eval \"$(%s env)\"\taddresses and tokens for consul, vault, nomad and sif\n", prefix)
	if !l.ServersOnly {
		fmt.Fprintf(table, "  bin/sif status\tnodes, revision, endpoints, certificates\n")
		fmt.Fprintf(table, "  bin/sif matrix\twho may reach whom, and who does reach whom\n")
	}
	fmt.Fprintf(table, "  %s exec %s -- ip addr\ta command on a node\n", prefix, l.Topology.Nodes(Processor, Workload)[0].Name)
	fmt.Fprintf(table, "  %s status\twhich daemons are running\n", prefix)
	fmt.Fprintf(table, "  %s down\tremove everything\n", prefix)
	return table.Flush()
}
