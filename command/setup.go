// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/vaultclient"
	"github.com/sif-project/sif/internal/wellknown"
)

// envSettingsMount names the mount of Vault in which a fabric's settings are.
const envSettingsMount = "SIF_SETTINGS_MOUNT"

// SetupCommand is sif setup.
type SetupCommand struct {
	Meta
	check, dryRun, destroy, approved bool
	settings                         join.Settings // as given
	environment                      join.Settings // as the servers' own variables say
	vaultCA, consulCA, nomadCA       string
}

// Synopsis implements cli.Command.
func (c *SetupCommand) Synopsis() string { return "Set up Vault, Consul and Nomad for a fabric" }

func (c *SetupCommand) usage() string {
	return `
Usage: sif setup [options]

  Makes what a fabric needs in Vault, Consul and Nomad: mounts, keys, roles,
  policies, and the log-in of its machines. Run it once for each cluster, with
  administrators' tokens; run it again after an upgrade, or to see and mend what
  others changed. It can be interrupted, and run again.

  The servers and tokens are those of their own clients: VAULT_ADDR,
  VAULT_TOKEN, VAULT_CACERT, CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN,
  CONSUL_CACERT, NOMAD_ADDR, NOMAD_TOKEN, NOMAD_CACERT and so on. Vault
  1.11.0, Consul 1.10.0 and Nomad 1.5.4 are the oldest that can do it.

  If standard input is a terminal, the command shows what it would write and
  asks for approval. Otherwise it writes without asking. Everything that it
  makes says whose it is; what belongs to somebody else is never changed, and
  refused by name. Settings that are not given are those of the last set-up,
  which are in Vault.

  A second fabric on the same Vault and Nomad, with a Consul of its own, needs
  another -fabric and another -prefix.

  The exit code is 0 if everything is as it must be, 1 if the command failed,
  and, with -check, 2 if something differs.
`
}

func (c *SetupCommand) options() []*flag.FlagSet {
	o := newOptions("Setup Options")
	o.BoolVar(&c.check, "check", false, "Say what differs, write nothing, and end with exit code 2 if something does.")
	o.BoolVar(&c.dryRun, "dry-run", false, "Say what would be done, and write nothing. The exit code is 0.")
	o.BoolVar(&c.destroy, "destroy", false, "Take away what a set-up made, the fabric's keys and all its machines' credentials included, and nothing else. "+
		"A fabric that runs ends by that.")
	o.BoolVar(&c.approved, "auto-approve", false, "Write without asking.")
	c.jsonOption(o, "Print the result in JSON. No approval is asked for.")

	f := newOptions("Fabric Options")
	f.StringVar(&c.settings.Fabric, "fabric", "", "The `name` of the fabric. Default: sif")
	f.StringVar(&c.settings.TrustDomain, "trust-domain", "", "The trust `domain` of the SPIFFE IDs. It cannot be changed later. Default: <fabric>.internal")
	f.StringVar(&c.settings.Pools.IPv4, "pool4", "", "The `prefix` from which nodes get their IPv4 addresses. Default: "+setup.DefaultPool4)
	f.StringVar(&c.settings.Pools.IPv6, "pool6", "", "The `prefix` from which nodes get their IPv6 addresses, a /64 each. Default: "+setup.DefaultPool6)
	f.IntVar(&c.settings.Pools.NodePrefix, "node-prefix", 0, fmt.Sprintf("How many `bits` the prefix of the IPv4 pool of a workload node has, %d to %d: with 22 it can have 1,021 endpoints. "+
		"Pools that nodes have stay as they are. Default: %d", fabric.LargestNodePrefix, fabric.SmallestNodePrefix, fabric.DefaultNodePrefix))
	f.DurationVar(&c.settings.CertTTL, "cert-ttl", 0, fmt.Sprintf("The `lifetime` of certificates of daemons and workloads, %s to %s. "+
		"Those of nodes that exist follow at their next renewal, which is after two thirds of the old one. Default: 8h", setup.ShortestCertTTL, fabric.MaxCertificateLife))

	f.StringVar(&c.settings.ControllerJob, "controller-job", "", "The `task` of a Nomad job that is a controller, as namespace/job/group/task: it may log in to Vault with Nomad's workload identity. "+
		"See jobs/fabric. Default: none")

	n := newOptions("Names and Addresses")
	n.StringVar(&c.settings.Prefix, "prefix", "", "The `prefix` of the names of policies, roles, auth methods and mounts. Default: "+wellknown.Prefix)
	n.StringVar(&c.settings.Vault.PKIMount, "pki-mount", "", "The `mount` in Vault of the fabric's CA. Default: <prefix>-pki")
	n.StringVar(&c.settings.Vault.TransitMount, "transit-mount", "", "The `mount` in Vault of the signing key. Default: <prefix>-transit")
	n.StringVar(&c.settings.Vault.TransitKey, "transit-key", "", "The `name` of the signing key. Default: <prefix>")
	n.StringVar(&c.settings.Vault.SettingsMount, "settings-mount", os.Getenv(envSettingsMount),
		"The `mount` in Vault of the fabric's settings. Overrides "+envSettingsMount+". Default: <prefix>-settings")
	n.StringVar(&c.settings.Vault.AppRoleMount, "approle-mount", "", "The `mount` in Vault of the log-in of machines. Default: <prefix>-approle")
	n.StringVar(&c.settings.Vault.Address, "vault-address", "", "The `address` at which nodes, and the servers of Consul and Nomad, reach Vault. Default: VAULT_ADDR at the first set-up")
	n.StringVar(&c.vaultCA, "vault-ca", "", "The `path` to a PEM file of the CA of Vault's certificate. Default: VAULT_CACERT")
	n.StringVar(&c.settings.Consul.Address, "consul-address", "", "The `address` of Consul's servers. Nodes use their local agent. Default: CONSUL_HTTP_ADDR")
	n.StringVar(&c.consulCA, "consul-ca", "", "The `path` to a PEM file of the CA of Consul's certificates. Default: CONSUL_CACERT")
	n.StringVar(&c.settings.Consul.Datacenter, "consul-datacenter", "", "Consul's `datacenter`. Default: that of the agent")
	n.StringVar(&c.settings.Nomad.Address, "nomad-address", "", "The `address` at which controllers reach Nomad's servers. Default: NOMAD_ADDR")
	n.StringVar(&c.nomadCA, "nomad-ca", "", "The `path` to a PEM file of the CA of Nomad's certificates. Default: NOMAD_CACERT")
	n.StringVar(&c.settings.Nomad.Region, "nomad-region", "", "Nomad's `region`. Default: that of the agent")
	return []*flag.FlagSet{o, f, n}
}

// setupResult is the result in JSON.
type setupResult struct {
	setup.Report
	Settings join.Settings   `json:"settings"`
	Ranges   []setup.Range   `json:"ranges,omitempty"`
	Passages []setup.Passage `json:"passages,omitempty"`
	Done     bool            `json:"done"` // false: nothing was written
}

func (c *SetupCommand) run(ctx context.Context, _ []string) error {
	if modes := len(slices.DeleteFunc([]bool{c.check, c.dryRun}, func(b bool) bool { return !b })); modes > 1 {
		return usagef("-check and -dry-run exclude each other.")
	}
	clients, err := c.clients()
	if err != nil {
		return fmt.Errorf("setting up: %w", err)
	}
	settings, warnings, err := setup.Discover(ctx, clients, c.settings, c.environment)
	if err != nil {
		return fmt.Errorf("setting up: %w", err)
	}
	s := setup.New(clients, settings)
	if c.destroy {
		return c.takeAway(ctx, s, settings)
	}
	result := setupResult{Settings: settings, Passages: setup.Passages(settings)}
	if result.Ranges, err = setup.Ranges(settings.Pools); err != nil {
		return fmt.Errorf("setting up: %w", err)
	}
	more, err := setup.PoolProblems(result.Ranges)
	if err != nil {
		return fmt.Errorf("setting up: %w", err)
	}
	if result.Report, err = s.Check(ctx); err != nil {
		return fmt.Errorf("setting up: %w", err)
	}
	result.Warnings = append(warnings, more...)
	todo := result.Count(setup.Create, setup.Change, setup.Foreign)
	if !c.json {
		c.UI.Output(setupText(result))
	}
	switch {
	case c.check || c.dryRun || todo == 0:
		if err := c.outputSetup(result, "Everything is as it must be."); err != nil {
			return err
		}
		if c.check && todo > 0 {
			return exitChanges
		}
		return nil
	case result.Count(setup.Foreign) == 0 && !c.json && !c.approved && interactive():
		if err := c.confirm(fmt.Sprintf("\nWrite these %s?", count(todo, "object"))); err != nil {
			return err
		}
	}
	if err := s.Apply(ctx, c.told("wrote")); err != nil {
		return fmt.Errorf("setting up: %w\nWhat was written stays; run the command again when the cause is mended", err)
	}
	result.Done = true
	return c.outputSetup(result, fmt.Sprintf("\nFabric %q is set up. Next, a token for its first machine:\n\n    sif node create -zone <zone> -kind controller <node>", settings.Fabric))
}

// told shows an object that was written or deleted.
func (c *SetupCommand) told(verb string) func(setup.Item) {
	return func(i setup.Item) {
		if !c.json {
			c.UI.Output(verb + " " + i.String())
		}
	}
}

// outputSetup writes the result in JSON, or the last words.
func (c *SetupCommand) outputSetup(r setupResult, words string) error {
	if c.json || r.Done || r.Count(setup.Create, setup.Change, setup.Foreign, setup.Delete) == 0 {
		return c.output(r, func() string { return words })
	}
	return nil
}

func (c *SetupCommand) takeAway(ctx context.Context, s *setup.Setup, settings join.Settings) error {
	report, err := s.CheckDestroy(ctx)
	if err != nil {
		return fmt.Errorf("taking the set-up away: %w", err)
	}
	result := setupResult{Settings: settings, Report: report}
	todo := report.Count(setup.Delete)
	if !c.json {
		c.UI.Output(setupText(result))
	}
	if c.check || c.dryRun || todo == 0 {
		if err := c.outputSetup(result, fmt.Sprintf("There is nothing of fabric %q.", settings.Fabric)); err != nil {
			return err
		}
		if c.check && todo > 0 {
			return exitChanges
		}
		return nil
	}
	if !c.json && !c.approved && interactive() {
		if err := c.confirm(fmt.Sprintf("\nDelete these %s? The fabric's keys cannot be had back.", count(todo, "object"))); err != nil {
			return err
		}
	}
	if err := s.Destroy(ctx, report, c.told("deleted")); err != nil {
		return fmt.Errorf("taking the set-up away: %w\nRun the command again when the cause is mended", err)
	}
	result.Done = true
	return c.outputSetup(result, fmt.Sprintf("\nFabric %q is gone from Vault, Consul's ACLs and Nomad's. What its controllers stored in Consul stays: consul kv delete -recurse sif/", settings.Fabric))
}

// clients returns clients of the servers as their own environment variables say, and notes the
// addresses and authorities.
func (c *SetupCommand) clients() (clients setup.Clients, err error) {
	if clients.Vault, err = operatorsVault(); err != nil {
		return clients, err
	}
	vault := vaultapi.DefaultConfig()
	if vault.Error != nil {
		return clients, fmt.Errorf("make a client of Vault: %w", vault.Error)
	}
	env := &c.environment
	env.Vault.Address, env.Vault.Namespace = clients.Vault.Address(), os.Getenv(vaultapi.EnvVaultNamespace)
	consul := consulapi.DefaultConfig()
	if clients.Consul, err = consulapi.NewClient(consul); err != nil {
		return clients, fmt.Errorf("make a client of Consul: %w", err)
	}
	scheme := cmp.Or(consul.Scheme, "http") + "://"
	if strings.Contains(consul.Address, "://") {
		scheme = ""
	}
	env.Consul.Address = scheme + consul.Address
	nomad := nomadapi.DefaultConfig()
	if clients.Nomad, err = nomadapi.NewClient(nomad); err != nil {
		return clients, fmt.Errorf("make a client of Nomad: %w", err)
	}
	env.Nomad.Address = clients.Nomad.Address()
	for _, ca := range []struct {
		path, name string
		to         *string
	}{
		{c.vaultCA, "Vault", &c.settings.Vault.CA}, {os.Getenv(vaultapi.EnvVaultCACert), "Vault", &env.Vault.CA},
		{c.consulCA, "Consul", &c.settings.Consul.CA}, {os.Getenv(consulapi.HTTPCAFile), "Consul", &env.Consul.CA},
		{c.nomadCA, "Nomad", &c.settings.Nomad.CA}, {nomad.TLSConfig.CACert, "Nomad", &env.Nomad.CA},
	} {
		if ca.path == "" {
			continue
		}
		text, err := os.ReadFile(ca.path)
		if err != nil {
			return clients, fmt.Errorf("read the CA of %s: %w", ca.name, err)
		}
		*ca.to = string(text)
	}
	return clients, nil
}

// operatorsVault returns a client of Vault with the token of VAULT_TOKEN or of vault login.
func operatorsVault() (*vaultapi.Client, error) {
	client, err := vaultclient.FromEnvironment()
	if err != nil {
		return nil, err
	}
	if client.Token() == "" {
		token, err := vaultLogin()
		if err != nil {
			return nil, err
		}
		client.SetToken(token)
	}
	if client.Token() == "" {
		return nil, errors.New("there is no token of Vault: set VAULT_TOKEN, or run vault login")
	}
	return client, nil
}

// setupText shows what is and what is to be done.
func setupText(r setupResult) string {
	var b strings.Builder
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "Warning: %s.\n", w)
	}
	if len(r.Ranges) > 0 {
		fmt.Fprintf(&b, "Pools %s and %s. In use, or perhaps, beside them:\n", r.Settings.Pools.IPv4, r.Settings.Pools.IPv6)
		rows := [][]string{{"  Range", "Use"}}
		for _, x := range r.Ranges {
			rows = append(rows, []string{"  " + x.Prefix.String(), x.Use})
		}
		table(&b, rows)
		b.WriteString("\n")
	}
	signs := map[setup.State]string{setup.Create: "+", setup.Change: "~", setup.Foreign: "!", setup.Delete: "-"}
	for _, i := range r.Items {
		sign, words := signs[i.State], ""
		switch i.State {
		case setup.Well, setup.Absent:
			continue
		case setup.Foreign:
			words = ": " + i.Hint
		}
		fmt.Fprintf(&b, "%s %s%s\n", sign, i.String(), words)
		for _, d := range i.Differences {
			if i.State == setup.Change {
				fmt.Fprintf(&b, "    %s: %s\n      -> %s\n", d.Field, indented(d.Have), indented(d.Want))
			} else {
				fmt.Fprintf(&b, "    %s: %s\n", d.Field, indented(d.Want))
			}
		}
	}
	fmt.Fprintf(&b, "\nFabric %q: %d well, %d to create, %d to change, %d to delete, %d of others.\n", r.Settings.Fabric,
		r.Count(setup.Well), r.Count(setup.Create), r.Count(setup.Change), r.Count(setup.Delete), r.Count(setup.Foreign))
	if len(r.Passages) > 0 {
		b.WriteString("\nFirewalls between the machines must let pass:\n")
		rows := [][]string{{"  To", "Protocol", "Ports", "From", "For"}}
		for _, p := range r.Passages {
			rows = append(rows, []string{"  " + p.To, p.Protocol, p.Ports, p.From, p.For})
		}
		table(&b, rows)
	}
	return strings.TrimRight(b.String(), "\n")
}

// indented shows a value; further lines are indented.
func indented(v any) string {
	s, ok := v.(string)
	if !ok {
		data, err := json.Marshal(v)
		if err != nil {
			return fmt.Sprint(v)
		}
		s = string(data)
	}
	return strings.ReplaceAll(s, "\n", "\n      ")
}
