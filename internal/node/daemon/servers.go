// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/statefile"
)

const (
	// serversInterval is the time between looks for the addresses of servers.
	serversInterval = 30 * time.Second
	// serversRetry is the pause after a look that failed.
	serversRetry = 5 * time.Second
	// serverStays is how long an address counts as a server's after it was last seen as one.
	serverStays = time.Hour
)

// servers knows the addresses of the servers of Consul, Vault and Nomad, and of controllers: those
// that the configuration names, and those that Consul knows. It only ever keeps externals from
// addresses, so it needs no signature. It is safe for concurrent use.
type servers struct {
	consul *consulapi.Client
	named  []string // hosts in the configuration
	file   statefile.File[map[netip.Addr]time.Time]

	mu   sync.Mutex
	seen map[netip.Addr]time.Time
}

// openServers begins with what an earlier daemon knew.
func openServers(path string, c *config.Config, consul *consulapi.Client) *servers {
	s := &servers{
		consul: consul, seen: map[netip.Addr]time.Time{},
		file: statefile.File[map[netip.Addr]time.Time]{Path: path, What: "the addresses of servers", Lazy: true},
	}
	addresses := []string{
		config.WithScheme(c.Consul.Address, c.Consul.CAFile), config.WithScheme(c.Vault.Address, c.Vault.CAFile),
		config.WithScheme(c.Nomad.Address, c.Nomad.CAFile),
	}
	for _, a := range c.Controller.All() {
		addresses = append(addresses, config.WithScheme(a, ""))
	}
	for _, address := range addresses {
		if u, err := url.Parse(address); err == nil && u.Hostname() != "" {
			s.named = append(s.named, u.Hostname())
		}
	}
	kept, _, _ := s.file.Read() // what cannot be read is looked up again at once
	for a, at := range kept {
		s.seen[a] = at
	}
	for _, host := range s.named {
		if a, err := netip.ParseAddr(host); err == nil && !a.IsLoopback() && !a.IsUnspecified() {
			s.seen[a.Unmap().WithZone("")] = time.Now()
		}
	}
	return s
}

// look asks the resolver and Consul for the addresses, and reports whether any is new. What cannot
// be asked stays as it was.
func (s *servers) look(ctx context.Context) (changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, serversInterval/2)
	defer cancel()
	found := map[netip.Addr]bool{}
	add := func(text string) {
		if host, _, err := net.SplitHostPort(text); err == nil {
			text = host
		}
		if a, err := netip.ParseAddr(text); err == nil && !a.IsLoopback() && !a.IsUnspecified() {
			found[a.Unmap().WithZone("")] = true
		}
	}
	var errs []error
	for _, host := range s.named {
		list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			errs = append(errs, fmt.Errorf("look up server %s: %w", host, err))
		}
		for _, a := range list {
			add(a.String())
		}
	}
	peers, err := s.consul.Status().PeersWithQueryOptions((&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		errs = append(errs, fmt.Errorf("list the servers of Consul: %w", err))
	}
	for _, p := range peers {
		add(p)
	}
	for _, service := range []string{"consul", "nomad", "vault"} {
		list, _, err := s.consul.Catalog().Service(service, "", (&consulapi.QueryOptions{AllowStale: true}).WithContext(ctx))
		if err != nil {
			errs = append(errs, fmt.Errorf("list the servers of %s: %w", service, err))
		}
		for _, i := range list {
			add(i.Address)
			add(i.ServiceAddress)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for a := range found {
		if _, known := s.seen[a]; !known {
			changed = true
		}
		s.seen[a] = now
	}
	for a, at := range s.seen {
		if now.Sub(at) > serverStays && len(errs) == 0 {
			delete(s.seen, a)
			changed = true
		}
	}
	if changed {
		errs = append(errs, s.file.Write(maps.Clone(s.seen)))
	}
	return changed, errors.Join(errs...)
}

// addresses returns the addresses.
func (s *servers) addresses() []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.seen))
}

// OnServers has f called when the addresses of servers, or the machine's subnets, have changed. It
// must be called before Run.
func (n *Node) OnServers(f func()) { n.onServers = f }

// watchServers looks for the addresses of servers, and at the machine's subnets, until ctx ends.
func (n *Node) watchServers(ctx context.Context) error {
	for {
		pause := serversInterval
		changed, err := n.servers.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			pause = serversRetry
		}
		n.Degrade("addresses of servers", err)
		moved, err := n.lookAtSubnets()
		n.Degrade("broadcast addresses", err)
		if (changed || moved) && n.onServers != nil {
			n.onServers()
		}
		retry.Sleep(ctx, pause)
	}
}
