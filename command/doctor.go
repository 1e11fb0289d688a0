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

	"github.com/sif-project/sif/internal/doctor"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/machine"
	"github.com/sif-project/sif/internal/node/host"
)

// DoctorCommand is sif doctor.
type DoctorCommand struct {
	Meta
	examined     doctor.Options
	kinds, pools string
}

// Synopsis implements cli.Command.
func (c *DoctorCommand) Synopsis() string { return "Check whether this machine is fit for the fabric" }

func (c *DoctorCommand) usage() string {
	return `
Usage: sif doctor [options]

  Checks whether this machine has what it needs to be a part of the fabric, and
  what on it stands against the fabric: the kernel and its features, WireGuard,
  Open vSwitch, kernel parameters, other firewalls, ports, addresses, the MTU of
  the underlay, clocks, disks, systemd, and whether Vault, Consul, Nomad and the
  controller can be reached with the rights that the daemons need. What a check
  finds wrong comes with what mends it, a command where there is one.

  The command changes nothing on the machine: what the kernel can do is tried in
  a network namespace that ends with the trial. Kernel modules may be loaded by
  that. On a machine that has joined, the command logs in to Vault, Consul and
  Nomad as the daemons do, and ends the tokens of Vault and Consul at once; that
  of Nomad ends by itself. It should run as root; otherwise it skips a part.

  Before the machine has joined, the servers are those of the environment
  (VAULT_ADDR, CONSUL_HTTP_ADDR, NOMAD_ADDR and so on) or of the options.
  Afterwards, the configuration files say where they are.

  The exit code is 0 if the machine is fit, with warnings or without, 2 if
  something is wrong, and 1 on an error.
`
}

func (c *DoctorCommand) options() []*flag.FlagSet {
	c.examined = doctor.Options{}
	o := newOptions("Doctor Options")
	o.StringVar(&c.kinds, "kind", "", "What the machine is for: a `list` of controller, processor and workload, separated by commas. "+
		"Default: what the configuration files say, and workload before the machine has joined.")
	o.StringVar(&c.examined.ConfigDir, "config-dir", machine.DefaultConfigDir, "The `path` to the directory of the configuration files. Default: "+machine.DefaultConfigDir)
	o.StringVar(&c.examined.Vault, "vault-addr", "", "The `address` of Vault before the machine has joined. Overrides VAULT_ADDR.")
	o.StringVar(&c.examined.VaultCA, "vault-ca-file", "", "The `path` to a PEM file of the CA of Vault's certificate. Overrides VAULT_CACERT.")
	o.StringVar(&c.examined.Consul, "consul-addr", "", "The `address` of the Consul agent before the machine has joined. Overrides CONSUL_HTTP_ADDR.")
	o.StringVar(&c.examined.Nomad, "nomad-addr", "", "The `address` of the Nomad agent before the machine has joined. Overrides NOMAD_ADDR.")
	o.StringVar(&c.examined.Controller, "controller-addr", "", "The `address` of the controller before the machine has joined, as host:port.")
	o.StringVar(&c.pools, "pools", "", "The pools of the fabric before the machine has joined: a `list` of prefixes, separated by commas. Default: the controller's default.")
	c.jsonOption(o, "Print an array of checks in JSON, each with \"check\", \"subject\", \"result\" (well, warning, error or skipped), \"detail\" and \"remedy\".")
	return []*flag.FlagSet{o}
}

func (c *DoctorCommand) run(ctx context.Context, _ []string) error {
	for _, text := range listed(c.kinds) {
		kind := join.Kind(text)
		if !slices.Contains([]join.Kind{join.Controller, join.Processor, join.Workload}, kind) {
			return usagef("-kind: %q is not one of controller, processor, workload", text)
		}
		c.examined.Kinds = append(c.examined.Kinds, kind)
	}
	for _, text := range listed(c.pools) {
		pool, err := netip.ParsePrefix(text)
		if err != nil {
			return usagef("-pools: %q is not a prefix such as 100.64.0.0/10", text)
		}
		c.examined.Pools = append(c.examined.Pools, pool.Masked())
	}
	findings, err := doctor.Examine(ctx, c.examined)
	if err != nil {
		return fmt.Errorf("examining this machine: %w", err)
	}
	if err := c.output(findings, func() string { return formatFindings(findings) }); err != nil {
		return err
	}
	if slices.ContainsFunc(findings, func(f host.Finding) bool { return f.Result == host.Wrong }) {
		return exitUnfit
	}
	return ctx.Err()
}

// listed splits a list that is separated by commas.
func listed(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}

func formatFindings(findings []host.Finding) string {
	var b strings.Builder
	results := map[host.Result]int{}
	for _, f := range findings {
		results[f.Result]++
		fmt.Fprintf(&b, "%-8s %-13s %s %s\n", f.Result, f.Check, f.Subject, f.Detail)
		if f.Remedy != "" {
			fmt.Fprintf(&b, "%-22s -> %s\n", "", f.Remedy)
		}
	}
	b.WriteString("\n")
	switch errors, warnings := results[host.Wrong], results[host.Warning]; {
	case errors > 0:
		fmt.Fprintf(&b, "This machine is not fit: %s, %s.", count(errors, "error"), count(warnings, "warning"))
	case warnings > 0:
		fmt.Fprintf(&b, "This machine is fit, with %s.", count(warnings, "warning"))
	default:
		b.WriteString("This machine is fit.")
	}
	if n := results[host.Skipped]; n > 0 {
		fmt.Fprintf(&b, " %s skipped.", count(n, "check"))
	}
	return b.String()
}
