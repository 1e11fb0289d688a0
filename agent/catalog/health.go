// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package catalog

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
)

const (
	// blockFor is how long a query waits for a change.
	blockFor = time.Minute
	// knownFor is how long the catalog's last word counts while it does not
	// answer.
	knownFor = 2*blockFor + requestTimeout
)

// HealthConfig says where to read and whom to believe.
type HealthConfig struct {
	Consul *api.Client
	// Verify checks the admission of a record. It is called often.
	Verify func(fabric.Signed) (fabric.Admission, error)
	Log    hclog.Logger
}

// Health follows the health of the endpoints of some services.
type Health struct {
	HealthConfig
	changed chan struct{} // the set of services to follow has

	mu       sync.RWMutex
	follow   map[fabric.Ref]bool
	services map[fabric.Ref]seen
}

// seen is what the catalog said of a service.
type seen struct {
	healthy map[string]bool   // by endpoint
	refused map[string]string // why, by record
	at      time.Time         // of the answer
}

// NewHealth makes a Health that follows no service. It reads nothing before
// Run.
func NewHealth(c HealthConfig) *Health {
	return &Health{HealthConfig: c, changed: make(chan struct{}, 1), follow: map[fabric.Ref]bool{}, services: map[fabric.Ref]seen{}}
}

// Follow sets the services to follow. It may be called at any time and does
// not block.
func (h *Health) Follow(services []fabric.Ref) {
	follow := map[fabric.Ref]bool{}
	for _, s := range services {
		follow[s] = true
	}
	h.mu.Lock()
	h.follow = follow
	for s := range h.services {
		if !follow[s] {
			delete(h.services, s)
		}
	}
	h.mu.Unlock()
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// Healthy reports the health of an endpoint of a followed service. It is
// unhealthy only if the catalog says that it, or its Consul node, is critical
// or under maintenance. It is not known if the catalog has no record of it
// that verifies, or has not answered for some time.
func (h *Health) Healthy(endpoint string) (healthy, known bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, s := range h.services {
		if healthy, ok := s.healthy[endpoint]; ok && time.Since(s.at) < knownFor {
			return healthy, true
		}
	}
	return false, false
}

// Refused lists the records of followed services that are not what a node
// registered: a sentence each, sorted.
func (h *Health) Refused() []string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var list []string
	for _, s := range h.services {
		for record, why := range s.refused {
			list = append(list, record+": "+why)
		}
	}
	slices.Sort(list)
	return list
}

// Run follows the services until ctx ends.
func (h *Health) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancelAll := context.WithCancel(ctx)
	defer cancelAll()
	cancels := map[fabric.Ref]context.CancelFunc{}
	for {
		h.mu.RLock()
		follow := h.follow // never changed, only replaced
		h.mu.RUnlock()
		for s, cancel := range cancels {
			if !follow[s] {
				cancel()
				delete(cancels, s)
			}
		}
		for s := range follow {
			if cancels[s] == nil {
				each, cancel := context.WithCancel(ctx)
				cancels[s] = cancel
				running.Go(func() { h.followOne(each, s) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-h.changed:
		}
	}
}

// followOne follows one service until ctx ends.
func (h *Health) followOne(ctx context.Context, service fabric.Ref) {
	var index uint64
	verified := map[string]verdict{}
	for failures := 0; ; {
		entries, next, err := h.query(ctx, service, index)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if failures == 0 {
				h.Log.Warn("the catalog does not answer; health stays what it was, then counts as unknown", logkey.Service, service, logkey.Error, err)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(backoff(failures)):
			}
			failures, index = failures+1, 0
			continue
		}
		if next < index {
			next = 0 // the servers' state was replaced
		}
		failures, index = 0, next
		h.take(ctx, service, h.judge(service, entries, verified))
	}
}

// query waits until the catalog's entries of a service are newer than index.
// It lets the Consul agent serve it from its materialised view, which streams
// changes from the servers. (Near would forbid it that; zones decide what is
// near anyway.)
func (h *Health) query(ctx context.Context, service fabric.Ref, index uint64) ([]*api.ServiceEntry, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, blockFor+requestTimeout)
	defer cancel()
	query := &api.QueryOptions{WaitIndex: index, WaitTime: blockFor, UseCache: true}
	entries, meta, err := h.Consul.Health().Service(fabric.CatalogName(service), "", false, query.WithContext(ctx))
	if err != nil {
		return nil, 0, fmt.Errorf("read the health of service %s: %w", service, err)
	}
	return entries, meta.LastIndex, nil
}

// verdict is what was found of one record's admission.
type verdict struct {
	text      string // of the admission
	admission fabric.Admission
	until     time.Time // when to look again: keys and time change
}

// verdictFor is how long a verified admission needs no second look. Nothing is
// enforced by it.
const verdictFor = time.Minute

// judge tells the records that are genuine from those that are not. verified
// remembers genuine admissions by the record's ID from call to call.
func (h *Health) judge(service fabric.Ref, entries []*api.ServiceEntry, verified map[string]verdict) seen {
	s := seen{healthy: map[string]bool{}, refused: map[string]string{}, at: time.Now()}
	present := map[string]bool{}
	for _, e := range entries {
		a, err := h.admitted(e.Service, verified, s.at)
		if err == nil {
			err = agrees(service, a, e.Service)
		}
		if err != nil {
			record := fmt.Sprintf("catalog record %s of service %s on Consul node %s", e.Service.ID, service, e.Node.Node)
			s.refused[record] = err.Error()
			continue
		}
		present[e.Service.ID] = true
		status := e.Checks.AggregatedStatus()
		// A copy of a record elsewhere cannot make an endpoint unhealthy.
		s.healthy[a.Endpoint] = s.healthy[a.Endpoint] || status != api.HealthCritical && status != api.HealthMaint
	}
	for id := range verified {
		if !present[id] {
			delete(verified, id)
		}
	}
	return s
}

// admitted returns the verified admission that a record carries.
func (h *Health) admitted(record *api.AgentService, verified map[string]verdict, now time.Time) (fabric.Admission, error) {
	text := admissionText(record.Meta)
	if v, ok := verified[record.ID]; ok && v.text == text && now.Before(v.until) {
		return v.admission, nil
	}
	signed, err := decodeAdmission(text)
	if err != nil {
		return fabric.Admission{}, err
	}
	a, err := h.Verify(signed)
	if err != nil {
		return a, fmt.Errorf("its admission is refused: %w", err)
	}
	verified[record.ID] = verdict{text: text, admission: a, until: now.Add(verdictFor)}
	return a, nil
}

// take puts what was seen in force, unless the service is no longer followed.
func (h *Health) take(ctx context.Context, service fabric.Ref, s seen) {
	h.mu.Lock()
	old := h.services[service]
	if ctx.Err() == nil && h.follow[service] {
		h.services[service] = s
	}
	h.mu.Unlock()
	for record, why := range s.refused {
		if old.refused[record] != why {
			h.Log.Warn("catalog record refused", logkey.Service, service, logkey.Record, record, logkey.Error, why)
		}
	}
}
