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

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/consulwatch"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
)

const (
	// registerInterval is how often the registrations are compared with the node's endpoints if no
	// change is known.
	registerInterval = 30 * time.Second
	// requestTimeout limits one comparison.
	requestTimeout = 10 * time.Second
	// retryFirst and retryMost bound the pauses after failures; see retry.Backoff.
	retryFirst, retryMost = 250 * time.Millisecond, 30 * time.Second
	// linger is how long an endpoint stays unhealthy after the last of its Nomad services was
	// removed. Nomad removes them before it stops the tasks, and until then the endpoint must not
	// be healthy.
	linger = 2 * time.Minute
)

// RegistrarConfig configures a Registrar.
type RegistrarConfig struct {
	Consul     *consulapi.Client // of the node's own Consul agent
	Zone, Node string
	// Want returns the endpoints of the node. Other records of this node's endpoints are
	// deregistered.
	Want func() []Registration
	// Report is called after every comparison with its error or nil.
	Report func(error)
	Log    hclog.Logger
}

// Registrar keeps the node's endpoints registered in its Consul agent.
type Registrar struct {
	RegistrarConfig
	trigger chan struct{}
	// gone has the time since when an endpoint, by its service ID, has no Nomad service any more.
	// Only the goroutine of Run uses it.
	gone map[string]time.Time
}

// NewRegistrar returns a Registrar. Run registers the endpoints.
func NewRegistrar(c RegistrarConfig) *Registrar {
	return &Registrar{RegistrarConfig: c, trigger: make(chan struct{}, 1), gone: map[string]time.Time{}}
}

// Refresh makes Run compare the registrations now. It does not block.
func (r *Registrar) Refresh() {
	select {
	case r.trigger <- struct{}{}:
	default:
	}
}

// Run keeps the endpoints registered until ctx ends. The registrations then remain.
func (r *Registrar) Run(ctx context.Context) error {
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		r.watchNomad(ctx)
	}()
	defer func() { <-watched }()
	pauses := retry.Backoff(retryFirst, retryMost)
	for {
		err := r.reconcile(ctx, time.Now())
		if ctx.Err() != nil {
			return nil
		}
		r.Report(err)
		wait := registerInterval
		if err != nil {
			wait = pauses.NextBackOff()
		} else {
			pauses.Reset()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.trigger:
		case <-time.After(wait):
		}
	}
}

// reconcile makes the Consul agent's registrations of this node's endpoints equal to those wanted.
func (r *Registrar) reconcile(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	query := (&consulapi.QueryOptions{}).WithContext(ctx)
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
		opts := consulapi.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)
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

// ours reports whether a service of the Consul agent is an endpoint of this node, which the
// registrar may remove.
func (r *Registrar) ours(s *consulapi.AgentService) bool {
	return strings.HasPrefix(s.ID, fabric.CatalogID(r.Zone, "")) && s.Meta[metaZone] == r.Zone && s.Meta[metaNode] == r.Node
}

// checks returns the sorted names of an endpoint's wanted checks. nomad are the IDs of its Nomad
// services, before the names of its current checks.
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

// nomadPrefix is the prefix of the IDs of services that Nomad registers.
const nomadPrefix = "_nomad-task-"

// nomadServices returns the IDs of an allocation's services. Nomad registers them as
// _nomad-task-<allocation>-<task>-<service>-<port>.
func nomadServices(have map[string]*consulapi.AgentService, allocation string) []string {
	var ids []string
	for id := range have {
		if strings.HasPrefix(id, nomadPrefix+allocation+"-") {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// same reports whether a service of the Consul agent equals the wanted registration. It does not
// compare checks.
func same(want *consulapi.AgentServiceRegistration, have *consulapi.AgentService) bool {
	for tag, addr := range want.TaggedAddresses {
		if have.TaggedAddresses[tag] != addr {
			return false
		}
	}
	return have.Service == want.Name && have.Address == want.Address && maps.Equal(have.Meta, want.Meta)
}

// watchNomad calls Refresh when the set of Nomad's services on this Consul agent changes: they
// appear some time after their endpoint. Its errors are not reported, because without it the next
// regular comparison finds the change.
func (r *Registrar) watchNomad(ctx context.Context) {
	var name string
	var seen []string
	services := consulwatch.Watch[[]string]{
		Query: func(opts *consulapi.QueryOptions) ([]string, *consulapi.QueryMeta, error) {
			return r.nomadOnNode(&name, opts)
		},
		Handle: func(ids []string) bool {
			if !slices.Equal(ids, seen) {
				seen = ids
				r.Refresh()
			}
			return true
		},
		Wait: blockFor, MinPause: retryFirst, MaxPause: retryMost,
	}
	services.Run(ctx)
}

// nomadOnNode returns the sorted IDs of Nomad's services in the node's catalog entry. It looks up
// the node's name in Consul if it is empty.
func (r *Registrar) nomadOnNode(name *string, opts *consulapi.QueryOptions) ([]string, *consulapi.QueryMeta, error) {
	if *name == "" {
		var self struct{ Config struct{ NodeName string } }
		if _, err := r.Consul.Raw().Query("/v1/agent/self", &self, (&consulapi.QueryOptions{}).WithContext(opts.Context())); err != nil {
			return nil, nil, fmt.Errorf("read the name of the Consul agent: %w", err)
		}
		*name = self.Config.NodeName
	}
	opts.AllowStale = true
	opts.Filter = `ID matches "^` + nomadPrefix + `"` // the rest may be large
	node, meta, err := r.Consul.Catalog().Node(*name, opts)
	if err != nil {
		return nil, nil, fmt.Errorf("watch the services of Consul node %s: %w", *name, err)
	}
	if node == nil {
		return nil, meta, nil
	}
	return slices.Sorted(maps.Keys(node.Services)), meta, nil
}
