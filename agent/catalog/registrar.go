// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package catalog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
)

const (
	// registerInterval is how often the registrations are compared with what
	// they should be, though nothing is known to have changed.
	registerInterval = 30 * time.Second
	// requestTimeout bounds one comparison.
	requestTimeout = 10 * time.Second
	// retryFirst and retryMost bound the wait after a failure; it doubles.
	retryFirst, retryMost = 250 * time.Millisecond, 30 * time.Second
	// linger is how long an endpoint stays unhealthy after the last of its
	// Nomad services has gone. Nomad withdraws those before it stops the tasks,
	// and the endpoint must not count as healthy while it waits for its end.
	linger = 2 * time.Minute
)

// RegistrarConfig says what to register where.
type RegistrarConfig struct {
	Consul     *api.Client // of the node's own Consul agent
	Zone, Node string
	// Want returns the endpoints of the node. Whatever else is registered as
	// an endpoint of this node is deregistered.
	Want func() []Registration
	// Report is told after every comparison what is wrong, or nil.
	Report func(error)
	Log    hclog.Logger
}

// Registrar keeps the registrations of the node's endpoints in its Consul
// agent.
type Registrar struct {
	RegistrarConfig
	trigger chan struct{}
	// gone tells since when an endpoint, by its service ID, is known to have no
	// Nomad service left. Only the goroutine of Run uses it.
	gone map[string]time.Time
}

// NewRegistrar makes a Registrar. It registers nothing before Run.
func NewRegistrar(c RegistrarConfig) *Registrar {
	return &Registrar{RegistrarConfig: c, trigger: make(chan struct{}, 1), gone: map[string]time.Time{}}
}

// Refresh has the registrations compared soon. It does not block.
func (r *Registrar) Refresh() {
	select {
	case r.trigger <- struct{}{}:
	default:
	}
}

// Run keeps the registrations until ctx ends. They stay when it ends.
func (r *Registrar) Run(ctx context.Context) error {
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		r.watchNomad(ctx)
	}()
	defer func() { <-watched }()
	var failures int
	for {
		err := r.reconcile(ctx, time.Now())
		if ctx.Err() != nil {
			return nil
		}
		r.Report(err)
		wait := registerInterval
		if err != nil {
			wait = backoff(failures)
			failures++
		} else {
			failures = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.trigger:
		case <-time.After(wait):
		}
	}
}

func backoff(failures int) time.Duration { return min(retryFirst<<min(failures, 10), retryMost) }

// reconcile makes the Consul agent's registrations of this node's endpoints
// equal to those wanted.
func (r *Registrar) reconcile(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	query := (&api.QueryOptions{}).WithContext(ctx)
	have, err := r.Consul.Agent().ServicesWithFilterOpts("", query)
	if err != nil {
		return fmt.Errorf("list the services of the Consul agent: %w", err)
	}
	checks, err := r.Consul.Agent().ChecksWithFilterOpts("", query)
	if err != nil {
		return fmt.Errorf("list the checks of the Consul agent: %w", err)
	}
	names := map[string][]string{} // of our checks, by service ID
	for _, c := range checks {
		if name, ok := checkName(c); ok {
			names[c.ServiceID] = append(names[c.ServiceID], name)
		}
	}
	var errs []error
	wanted := map[string]bool{}
	for _, reg := range r.Want() {
		id := reg.id()
		wanted[id] = true
		slices.Sort(names[id])
		checks := r.checks(id, nomadServices(have, reg.Admission.Endpoint), names[id], now)
		service, err := reg.service(checks)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if current := have[id]; current != nil && same(service, current) && slices.Equal(checks, names[id]) {
			continue
		}
		opts := api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)
		if err := r.Consul.Agent().ServiceRegisterOpts(service, opts); err != nil {
			errs = append(errs, fmt.Errorf("register endpoint %s: %w", reg.Admission.Endpoint, err))
			continue
		}
		r.Log.Debug("registered", logkey.Endpoint, reg.Admission.Endpoint, logkey.Service, reg.Admission.Service, logkey.Checks, checks)
	}
	for id, s := range have {
		if wanted[id] || !r.ours(s) {
			continue
		}
		if err := r.Consul.Agent().ServiceDeregisterOpts(id, query); err != nil {
			errs = append(errs, fmt.Errorf("deregister %s: %w", id, err))
			continue
		}
		r.Log.Debug("deregistered", logkey.Service, s.Meta[metaService], logkey.Record, id)
	}
	maps.DeleteFunc(r.gone, func(id string, _ time.Time) bool { return !wanted[id] })
	return errors.Join(errs...)
}

// ours reports whether a service of the Consul agent is an endpoint of this
// node, so that this node's agent may remove it.
func (r *Registrar) ours(s *api.AgentService) bool {
	return strings.HasPrefix(s.ID, fabric.CatalogID(r.Zone, "")) && s.Meta[metaZone] == r.Zone && s.Meta[metaNode] == r.Node
}

// checks returns the sorted names of the checks that the endpoint shall have,
// from those of its Nomad services and of the checks that it has.
func (r *Registrar) checks(id string, nomad, before []string, now time.Time) []string {
	if len(nomad) > 0 || len(before) == 0 {
		delete(r.gone, id)
		return nomad
	}
	since, ok := r.gone[id]
	if !ok {
		r.gone[id], since = now, now
	}
	if now.Sub(since) < linger {
		return []string{checkEnding}
	}
	return nil
}

// nomadPrefix begins the IDs of the services that Nomad registers.
const nomadPrefix = "_nomad-task-"

// nomadServices returns the IDs of an allocation's services, as Nomad
// registers them: _nomad-task-<allocation>-<task>-<service>-<port>.
func nomadServices(have map[string]*api.AgentService, allocation string) []string {
	var ids []string
	for id := range have {
		if strings.HasPrefix(id, nomadPrefix+allocation+"-") {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// same reports whether the Consul agent holds just what is wanted, checks
// aside.
func same(want *api.AgentServiceRegistration, have *api.AgentService) bool {
	for tag, addr := range want.TaggedAddresses {
		if have.TaggedAddresses[tag] != addr {
			return false
		}
	}
	return have.Service == want.Name && have.Address == want.Address && maps.Equal(have.Meta, want.Meta)
}

// watchNomad has the registrations compared when the set of Nomad's services
// on this Consul agent changes: they appear some time after their endpoint.
// It only spares waiting for the next regular comparison, so it says nothing
// of its failures.
func (r *Registrar) watchNomad(ctx context.Context) {
	var name string
	var seen []string
	var index uint64
	for failures := 0; ctx.Err() == nil; {
		ids, next, err := r.nomadOnNode(ctx, &name, index)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(backoff(failures)):
			}
			failures, index = failures+1, 0
			continue
		}
		if next < index {
			next = 0
		}
		failures, index = 0, next
		if !slices.Equal(ids, seen) {
			seen = ids
			r.Refresh()
		}
	}
}

// nomadOnNode waits until the node's catalog entry is newer than index and
// returns the sorted IDs of Nomad's services in it.
func (r *Registrar) nomadOnNode(ctx context.Context, name *string, index uint64) ([]string, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, blockFor+requestTimeout)
	defer cancel()
	if *name == "" {
		var self struct{ Config struct{ NodeName string } }
		if _, err := r.Consul.Raw().Query("/v1/agent/self", &self, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
			return nil, 0, fmt.Errorf("ask the Consul agent its name: %w", err)
		}
		*name = self.Config.NodeName
	}
	query := &api.QueryOptions{
		WaitIndex: index, WaitTime: blockFor, AllowStale: true,
		Filter: `ID matches "^` + nomadPrefix + `"`, // the rest may be large
	}
	node, meta, err := r.Consul.Catalog().Node(*name, query.WithContext(ctx))
	if err != nil {
		return nil, 0, fmt.Errorf("watch the services of Consul node %s: %w", *name, err)
	}
	if node == nil {
		return nil, meta.LastIndex, nil
	}
	return slices.Sorted(maps.Keys(node.Services)), meta.LastIndex, nil
}
