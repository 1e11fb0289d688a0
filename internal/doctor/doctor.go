// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package doctor says whether a machine is fit for the fabric: before it joins, from the machine
// alone and the servers that the environment names, and afterwards, from its configuration files.
//
// It knows what each kind of machine needs, and what to do where that is missing. How a machine is
// looked at is in package host and in the packages that use what they look at. It changes nothing.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/node/host"
)

// Options says what is examined. What is empty comes from the configuration files or, before the
// machine has joined, from the environment variables of the servers' own command lines.
type Options struct {
	Kinds                                     []join.Kind // what the machine is for
	ConfigDir                                 string      // of controller.hcl, engine.hcl and agent.hcl
	Vault, VaultCA, Consul, Nomad, Controller string      // addresses; VaultCA is a PEM file
	Pools                                     []netip.Prefix
}

// daemonOf is the daemon of a kind, with its configuration file and its unit.
type daemonOf struct {
	kind join.Kind
	role config.Role
	file string
	unit string
}

var daemons = []daemonOf{
	{join.Controller, config.RoleController, "controller.hcl", "sif-controller.service"},
	{join.Processor, config.RoleEngine, "engine.hcl", "sif-engine.service"},
	{join.Workload, config.RoleAgent, "agent.hcl", "sif-agent.service"},
}

// patient is the machine that is examined.
type patient struct {
	options Options
	kinds   []join.Kind
	joined  bool                         // it has a configuration file
	configs map[join.Kind]*config.Config // of each kind; the same one for all before the machine has joined
	kept    daemon.Kept                  // of the node
	vault   bool                         // it is known where Vault is
}

func (p *patient) is(k join.Kind) bool { return slices.Contains(p.kinds, k) }

// node reports whether the machine is a node, which has links.
func (p *patient) node() bool { return p.is(join.Processor) || p.is(join.Workload) }

// any returns the configuration of one of the kinds, a node's if there is one.
func (p *patient) any() *config.Config {
	for _, k := range []join.Kind{join.Workload, join.Processor, join.Controller} {
		if c := p.configs[k]; c != nil {
			return c
		}
	}
	return nil
}

// Examine makes all checks that the kinds need and returns what they found, in the order in which a
// reader mends it. An error says that the options are wrong.
func Examine(ctx context.Context, o Options) ([]host.Finding, error) {
	p, findings, err := admit(o)
	if err != nil {
		return nil, err
	}
	for _, look := range []func(context.Context) []host.Finding{p.machine, p.network, p.openVSwitch, p.servers, p.paths, p.units, p.attached, p.workloadAPI} {
		findings = append(findings, look(ctx)...)
	}
	return findings, nil
}

// admit reads the configuration.
func admit(o Options) (*patient, []host.Finding, error) {
	p := &patient{options: o, kinds: o.Kinds, configs: map[join.Kind]*config.Config{}}
	var findings []host.Finding
	for _, d := range daemons {
		path := filepath.Join(o.ConfigDir, d.file)
		if len(o.Kinds) > 0 && !p.is(d.kind) {
			continue
		}
		c, err := config.Load(path, d.role)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		p.joined = true
		if !p.is(d.kind) {
			p.kinds = append(p.kinds, d.kind)
		}
		f := host.Finding{Check: "configuration", Subject: path, Result: host.Well, Detail: "is valid"}
		if err != nil {
			f.Result, f.Detail, f.Remedy = host.Wrong, "is not valid: "+err.Error(), "correct the file, or let \"sif node join\" write it again"
		} else {
			p.configs[d.kind] = c
		}
		findings = append(findings, f)
	}
	if p.joined {
		p.vault = true
		return p, append(findings, p.readKept()...), nil
	}
	if len(p.kinds) == 0 {
		p.kinds = []join.Kind{join.Workload}
	}
	c, err := config.FromEnvironment()
	if err != nil {
		return nil, nil, fmt.Errorf("the environment: %w", err)
	}
	p.vault = o.Vault != "" || os.Getenv("VAULT_ADDR") != ""
	set := func(to *string, value string) {
		if value != "" {
			*to = value
		}
	}
	set(&c.Vault.Address, o.Vault)
	set(&c.Vault.CAFile, o.VaultCA)
	set(&c.Consul.Address, o.Consul)
	set(&c.Nomad.Address, o.Nomad)
	for a := range strings.SplitSeq(o.Controller, ",") {
		if a != "" {
			c.Controller.Addresses = append(c.Controller.Addresses, a)
		}
	}
	for _, k := range p.kinds {
		p.configs[k] = c
	}
	return p, []host.Finding{{
		Check: "configuration", Subject: o.ConfigDir, Result: host.Well,
		Detail: "has no configuration: the machine has not joined a fabric",
	}}, nil
}

// readKept reads what the node has on disk. One that has never run has nothing there.
func (p *patient) readKept() []host.Finding {
	for _, k := range []join.Kind{join.Workload, join.Processor} {
		c := p.configs[k]
		if c == nil {
			continue
		}
		kept, err := daemon.ReadKept(c.DataDir)
		if err != nil {
			return []host.Finding{{
				Check: "configuration", Subject: c.DataDir, Result: host.Wrong, Detail: "has a state that cannot be used: " + err.Error(),
				Remedy: "run the command as root; if that does not help, let the machine leave and join again",
			}}
		}
		if p.kept.Self.Name == "" {
			p.kept = kept
		} else {
			p.kept.Ports = append(p.kept.Ports, kept.Ports...)
		}
	}
	return nil
}

// pools returns the prefixes of the fabric.
func (p *patient) pools() []netip.Prefix {
	switch {
	case len(p.options.Pools) > 0:
		return p.options.Pools
	case len(p.kept.Self.Ranges) > 0:
		return p.kept.Self.Ranges
	}
	c := p.configs[join.Controller]
	if c == nil && !p.joined {
		c = p.any() // the defaults
	}
	if c == nil {
		return nil
	}
	v4, v6 := c.Pools.Prefixes()
	return []netip.Prefix{v4, v6}
}
