// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package doctor

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/node/host"
)

// maxPaths is the number of nodes to which the paths are measured.
const maxPaths = 16

// target is a machine to which the path is measured.
type target struct {
	name string
	at   netip.Addr
	node bool // links go there
}

// paths measures the underlay towards the other machines that are known.
func (p *patient) paths(ctx context.Context) []host.Finding {
	c := p.any()
	if c == nil || !p.node() {
		return nil
	}
	var targets []target
	add := func(t target) {
		known := slices.ContainsFunc(targets, func(x target) bool { return x.at == t.at })
		if !known && t.at.IsValid() && !t.at.IsLoopback() && !own(t.at) {
			targets = append(targets, t)
		}
	}
	for _, n := range p.others(ctx, c) {
		add(target{n.ID().String(), n.Underlay, true})
	}
	vault := ""
	if p.vault {
		vault = c.Vault.Address
	}
	type named struct{ name, address string }
	servers := []named{{"Vault", vault}}
	for _, a := range c.Controller.All() {
		servers = append(servers, named{"the controller at " + a, a})
	}
	for _, s := range servers {
		if at, err := addressOf(ctx, hostOf(s.address)); s.address != "" && err == nil {
			add(target{s.name, at, false})
		}
	}
	if len(targets) > maxPaths {
		targets = targets[:maxPaths]
	}
	findings := make([]host.Finding, len(targets))
	var all sync.WaitGroup
	for i, t := range targets {
		all.Go(func() { findings[i] = host.Path(ctx, t.name, t.at, c.Link.MTU, t.node) })
	}
	all.Wait()
	if len(targets) == 0 {
		findings = []host.Finding{skipped("mtu", "the MTU of the underlay", "was not measured: no other machine is known yet", "")}
	}
	return findings
}

// others reads the other nodes that have joined. Records that the fabric did not sign do not count.
func (p *patient) others(ctx context.Context, c *config.Config) []fabric.Node {
	client, err := c.ConsulClient(p.show(c))
	if err != nil || len(p.kept.Keys.Keys) == 0 {
		return nil
	}
	defer p.logOut(ctx, client, c)
	pairs, _, err := client.KV().List(kvkey.Nodes, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil // which the check of rights says
	}
	var nodes []fabric.Node
	for _, pair := range pairs {
		var record fabric.NodeRecord
		var n fabric.Node
		if json.Unmarshal(pair.Value, &record) != nil || p.kept.Keys.Verify(record.Node, fabric.KindNode, &n) != nil || n.ID() == p.kept.Self.ID() {
			continue
		}
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b fabric.Node) int { return strings.Compare(a.ID().String(), b.ID().String()) })
	return nodes
}

// own reports whether an address is one of this machine.
func own(a netip.Addr) bool {
	list, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(list, func(x net.Addr) bool {
		p, err := netip.ParsePrefix(x.String())
		return err == nil && p.Addr().Unmap() == a
	})
}
