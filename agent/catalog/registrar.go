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
	"sync"
	"sync/atomic"
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
	// rest is the time from one comparison or answer of the catalog to the next one. While many
	// workloads start, each would otherwise have all endpoints read again, by every node that
	// follows their service.
	rest = 200 * time.Millisecond
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
	Identity   Signer // of the node
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
	// self has the name of the Consul agent, once it is known.
	self atomic.Pointer[string]

	mu   sync.Mutex
	said map[string]Word // by endpoint
}

// Word is what the node says about one of its endpoints.
type Word struct {
	Healthy bool
	Why     string // it is not, in words that follow "it"
}

// Said returns what the last comparison found about an endpoint. It is not known before the first
// one, nor while the Consul agent does not answer.
func (r *Registrar) Said(endpoint string) (w Word, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, known = r.said[endpoint]
	return w, known
}

func (r *Registrar) say(said map[string]Word) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = said
}

// NewRegistrar returns a Registrar. Run registers the endpoints.
func NewRegistrar(c RegistrarConfig) *Registrar {
	return &Registrar{RegistrarConfig: c, trigger: make(chan struct{}, 1), gone: map[string]time.Time{}}
}

// Refresh makes Run compare the registrations now, or when the rest after the comparison before is
// over. It does not block.
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
		if !retry.Sleep(ctx, rest) {
			return nil
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
		r.say(nil)
		return fmt.Errorf("list the services of the Consul agent: %w", err)
	}
	checks, err := r.Consul.Agent().ChecksWithFilterOpts("", query)
	if err != nil {
		return fmt.Errorf("list the checks of the Consul agent: %w", err)
	}
	consulNode, err := r.consulNode(ctx)
	if err != nil {
		return err
	}
	names := map[string][]string{} // of our checks, by service ID
	for _, c := range checks {
		if name, ok := checkName(c); ok {
			names[c.ServiceID] = append(names[c.ServiceID], name)
		}
	}
	var errs []error
	wanted, words := map[string]bool{}, map[string]Word{}
	for _, reg := range r.Want() {
		id := reg.id()
		wanted[id] = true
		slices.Sort(names[id])
		sources := reg.sources(have)
		mirrored := r.checks(reg, sources, slices.DeleteFunc(slices.Clone(names[id]), func(n string) bool { return n == checkLife }), now)
		current, before := have[id], ""
		if current != nil {
			before = joined(current.Meta, metaWord)
		}
		waits := reg.waits(before)
		w := Word{Why: waits}
		switch {
		case waits != "":
			mirrored = append(slices.Clone(mirrored), checkLife)
			slices.Sort(mirrored)
		case slices.Contains(mirrored, checkAbsent):
			w.Why = "has no services in Consul, which its health depends on"
		default:
			w.Why = critical(checks, id, sources)
		}
		w.Healthy = w.Why == ""
		words[reg.Admission.Endpoint] = w
		said, err := word{
			Endpoint: reg.Admission.Endpoint, Consul: consulNode, At: now.UTC().Truncate(time.Millisecond),
			Healthy: w.Healthy, Waits: waits,
		}.renew(before, r.Identity)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		service, err := reg.service(mirrored, said)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if current != nil && same(service, current) && slices.Equal(mirrored, names[id]) {
			continue
		}
		if err := r.register(ctx, service, mirrored, names[id]); err != nil {
			errs = append(errs, fmt.Errorf("register endpoint %s: %w", reg.Admission.Endpoint, err))
			continue
		}
		r.Log.Debug("registered", logkey.Endpoint, reg.Admission.Endpoint, logkey.Service, reg.Admission.Service, logkey.Checks, mirrored)
	}
	r.say(words)
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

// register writes a record with its checks, and removes those of its checks that are no longer
// wanted. It does not have Consul replace all checks, which would end a maintenance.
func (r *Registrar) register(ctx context.Context, service *consulapi.AgentServiceRegistration, wanted, have []string) error {
	if err := r.Consul.Agent().ServiceRegisterOpts(service, consulapi.ServiceRegisterOpts{}.WithContext(ctx)); err != nil {
		return err
	}
	var errs []error
	for _, name := range have {
		if !slices.Contains(wanted, name) {
			errs = append(errs, r.Consul.Agent().CheckDeregisterOpts(check(service.ID, name).CheckID, (&consulapi.QueryOptions{}).WithContext(ctx)))
		}
	}
	return errors.Join(errs...)
}

// ours reports whether a service of the Consul agent is an endpoint of this node, which the
// registrar may remove.
func (r *Registrar) ours(s *consulapi.AgentService) bool {
	return strings.HasPrefix(s.ID, fabric.CatalogID(r.Zone, "")) && s.Meta[metaZone] == r.Zone && s.Meta[metaNode] == r.Node
}

// checks returns the sorted names of an endpoint's wanted checks. sources are the IDs of its
// services, before the names of its current checks. An endpoint whose job declares health checks is
// not healthy without its services: before they are registered, and while a task waits for its next
// start; neither is a workload outside Nomad.
func (r *Registrar) checks(reg Registration, sources, before []string, now time.Time) []string {
	id := reg.id()
	if len(sources) == 0 && (reg.Admission.HealthChecked || reg.Source != (Source{})) {
		return []string{checkAbsent}
	}
	if len(sources) > 0 || len(before) == 0 {
		delete(r.gone, id)
		return sources
	}
	since, ok := r.gone[id]
	if !ok {
		r.gone[id], since = now, now
	}
	if now.Sub(since) < linger {
		return []string{checkAbsent}
	}
	return nil
}

// critical returns which check of the Consul agent says that an endpoint is not healthy, in words
// that follow "it", or "": one of its services, of its own record (as when people put it into
// maintenance), or of the Consul node. Checks that this package registered do not count; they
// follow the others.
func critical(checks map[string]*consulapi.AgentCheck, id string, sources []string) string {
	var first *consulapi.AgentCheck
	for _, c := range checks {
		if _, mirror := checkName(c); c.Status != consulapi.HealthCritical || mirror && c.ServiceID == id {
			continue
		}
		counts := c.ServiceID == "" || c.ServiceID == id || slices.Contains(sources, c.ServiceID)
		if counts && (first == nil || c.CheckID < first.CheckID) {
			first = c
		}
	}
	switch {
	case first == nil:
		return ""
	case first.ServiceID == "":
		return fmt.Sprintf("is on a Consul node whose check %q is critical", first.Name)
	case first.ServiceID == id:
		return fmt.Sprintf("has a critical check of its own in Consul, %q", first.Name)
	}
	return fmt.Sprintf("has not passed check %q of service %q in Consul", first.Name, first.ServiceName)
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

// maxWaits bounds the reason in a record, whose size is limited.
const maxWaits = 200

// waits returns why an endpoint cannot be called whatever its checks say, or "". before is the text
// of the word in its record.
func (r Registration) waits(before string) string {
	why := r.Life.Waits
	if r.Life.Unknown {
		_, old, err := decodeWord(before)
		if why = old.Waits; err != nil || old.Endpoint != r.Admission.Endpoint {
			why = "is not known yet: the controller has not said what it is like in Nomad"
		}
	}
	return strings.ToValidUTF8(why[:min(len(why), maxWaits)], "")
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

// watchNomad calls Refresh when Nomad's services on this Consul agent change, or the checks of the
// agent: services appear some time after their endpoint. The catalog only tells when; what counts
// is read from the agent. Its errors are not reported, because without it the next regular
// comparison finds the change.
func (r *Registrar) watchNomad(ctx context.Context) {
	watch := func(query func(node string, opts *consulapi.QueryOptions) ([]string, *consulapi.QueryMeta, error)) {
		var seen []string
		w := consulwatch.Watch[[]string]{
			Query: func(opts *consulapi.QueryOptions) ([]string, *consulapi.QueryMeta, error) {
				node, err := r.consulNode(opts.Context())
				if err != nil {
					return nil, nil, err
				}
				opts.AllowStale = true
				return query(node, opts)
			},
			Handle: func(now []string) bool {
				if !slices.Equal(now, seen) {
					seen = now
					r.Refresh()
				}
				return true
			},
			Rest: rest, Wait: blockFor, MinPause: retryFirst, MaxPause: retryMost,
		}
		w.Run(ctx)
	}
	var both sync.WaitGroup
	both.Go(func() { watch(r.nomadOnNode) })
	both.Go(func() { watch(r.checksOnNode) })
	both.Wait()
}

// Registered reports which of the sources have a registration with the Consul agent. An error means
// that this is unknown.
func (r *Registrar) Registered(ctx context.Context, sources []Source) (map[Source]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	found := map[Source]bool{}
	for _, o := range sources {
		// The list of all services leaves out what the token may not read. This call is refused.
		_, list, err := r.Consul.Agent().AgentHealthServiceByNameOpts(o.Service, (&consulapi.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("look for the registration of Consul service %q: %w", o.Service, err)
		}
		found[o] = slices.ContainsFunc(list, func(i consulapi.AgentServiceChecksInfo) bool { return i.Service != nil && o.has(i.Service) })
	}
	return found, nil
}

// ConsulNode returns the name of the Consul agent.
func (r *Registrar) ConsulNode(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return r.consulNode(ctx)
}

// consulNode returns the name of the Consul agent.
func (r *Registrar) consulNode(ctx context.Context) (string, error) {
	if name := r.self.Load(); name != nil {
		return *name, nil
	}
	var self struct{ Config struct{ NodeName string } }
	if _, err := r.Consul.Raw().Query("/v1/agent/self", &self, (&consulapi.QueryOptions{}).WithContext(ctx)); err != nil {
		return "", fmt.Errorf("read the name of the Consul agent: %w", err)
	}
	r.self.Store(&self.Config.NodeName)
	return self.Config.NodeName, nil
}

// nomadOnNode returns the sorted IDs of Nomad's services in a node's catalog entry.
func (r *Registrar) nomadOnNode(name string, opts *consulapi.QueryOptions) ([]string, *consulapi.QueryMeta, error) {
	opts.Filter = `ID matches "^` + nomadPrefix + `"` // the rest may be large
	node, meta, err := r.Consul.Catalog().Node(name, opts)
	if err != nil {
		return nil, nil, fmt.Errorf("watch the services of Consul node %s: %w", name, err)
	}
	if node == nil {
		return nil, meta, nil
	}
	return slices.Sorted(maps.Keys(node.Services)), meta, nil
}

// checksOnNode returns the sorted checks of a Consul node that are critical.
func (r *Registrar) checksOnNode(name string, opts *consulapi.QueryOptions) ([]string, *consulapi.QueryMeta, error) {
	opts.Filter = `Status == "critical"`
	checks, meta, err := r.Consul.Health().Node(name, opts)
	if err != nil {
		return nil, nil, fmt.Errorf("watch the checks of Consul node %s: %w", name, err)
	}
	var list []string
	for _, c := range checks {
		list = append(list, c.ServiceID+" "+c.CheckID)
	}
	slices.Sort(list)
	return list, meta, nil
}
