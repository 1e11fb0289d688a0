// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/consulwatch"
	"github.com/sif-project/sif/internal/logkey"
)

const (
	// blockFor is how long a blocking query waits for a change.
	blockFor = time.Minute
	// knownFor is how long the last answer of the catalog is used while it does not answer.
	knownFor = 2*blockFor + requestTimeout
)

// HealthConfig configures a Health.
type HealthConfig struct {
	Consul *consulapi.Client
	// Verify verifies the admission of a record. It is called often.
	Verify func(fabric.Signed) (fabric.Admission, error)
	// Speaker returns the workload node that signed msg, of which a record carries the certificate.
	Speaker func(chain [][]byte, msg, sig []byte) (fabric.NodeID, error)
	Log     hclog.Logger
}

// Health watches the health of the endpoints of a set of services. It is safe for concurrent use.
type Health struct {
	HealthConfig
	changed chan struct{} // signals that follow changed

	mu       sync.RWMutex
	follow   map[fabric.Ref]bool
	services map[fabric.Ref]serviceHealth
}

// serviceHealth is the catalog's last answer about a service.
type serviceHealth struct {
	healthy map[string]bool   // by endpoint
	said    map[string]said   // by endpoint
	refused map[string]string // the reason, by record
	at      time.Time         // when it was received
}

// NewHealth returns a Health without services. Run reads the catalog.
func NewHealth(c HealthConfig) *Health {
	return &Health{HealthConfig: c, changed: make(chan struct{}, 1), follow: map[fabric.Ref]bool{}, services: map[fabric.Ref]serviceHealth{}}
}

// Follow sets the services to watch. It does not block.
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

// said is the last word of an endpoint's node.
type said struct {
	word
	until time.Time // when the endpoint's admission expires
}

// Healthy reports the health of an endpoint of a watched service. An endpoint is unhealthy only if
// its own node says so, or if the catalog says that the Consul node, on which its own node
// registered it, is critical. The last word of the node counts, also when the record is missing.
// The health is unknown if there was none, or if the catalog has not answered for knownFor.
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

// Answered reports whether the catalog has answered lately about a service that is watched.
func (h *Health) Answered(service fabric.Ref) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	s, ok := h.services[service]
	return ok && time.Since(s.at) < knownFor
}

// Refused lists the records of watched services that no node registered in this form: a sentence
// with the reason for each, sorted.
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

// Run watches the services until ctx ends.
func (h *Health) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancelAll := context.WithCancel(ctx)
	defer cancelAll()
	cancels := map[fabric.Ref]context.CancelFunc{}
	for {
		h.mu.RLock()
		follow := h.follow // replaced as a whole, never modified
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
				running.Go(func() { h.watch(each, s) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-h.changed:
		}
	}
}

// watch watches one service until ctx ends.
func (h *Health) watch(ctx context.Context, service fabric.Ref) {
	verified := map[string]verifiedAdmission{}
	words := map[string]said{}
	silent := false // the catalog did not answer the last time
	entries := consulwatch.Watch[[]*consulapi.ServiceEntry]{
		Query: func(opts *consulapi.QueryOptions) ([]*consulapi.ServiceEntry, *consulapi.QueryMeta, error) {
			return h.query(service, opts)
		},
		Handle: func(entries []*consulapi.ServiceEntry) bool {
			silent = false
			s := h.assess(service, entries, verified, words)
			words = s.said
			h.store(ctx, service, s)
			return true
		},
		Failed: func(err error) {
			if !silent {
				h.Log.Warn("cannot read the catalog; the last known health is used, later it is unknown", logkey.Service, service, logkey.Error, err)
			}
			silent = true
		},
		Rest: rest, Wait: blockFor, MinPause: retryFirst, MaxPause: retryMost,
	}
	entries.Run(ctx)
}

// query reads the catalog's entries of a service. The Consul agent serves them from its
// materialised view, which streams changes from the servers. (Near would prevent that; zones decide
// what is near anyway.)
func (h *Health) query(service fabric.Ref, opts *consulapi.QueryOptions) ([]*consulapi.ServiceEntry, *consulapi.QueryMeta, error) {
	opts.UseCache = true
	return h.Consul.Health().Service(fabric.CatalogName(service), "", false, opts)
}

// verifiedAdmission caches a record's admission that passed Verify.
type verifiedAdmission struct {
	text      string // the encoded admission
	admission fabric.Admission
	until     time.Time // when to verify again, since keys and time change
	health    string    // the encoded word that passed wordOf
	word      word
}

// ErrRemoved is the error of Verify for an endpoint whose node was removed from the fabric, or that
// is revoked. Its record is ignored.
var ErrRemoved = errors.New("its node was removed from the fabric, or it is revoked")

// trustFor is how long an admission stays verified. What is enforced does not depend on it.
const trustFor = time.Minute

// assess separates valid records from others. verified is a cache of admissions by the record's ID,
// which the caller keeps between calls, and before are the words that were said before.
func (h *Health) assess(service fabric.Ref, entries []*consulapi.ServiceEntry, verified map[string]verifiedAdmission, before map[string]said) serviceHealth {
	s := serviceHealth{healthy: map[string]bool{}, said: map[string]said{}, refused: map[string]string{}, at: time.Now()}
	down := map[string]bool{} // by endpoint: its Consul node is critical
	for endpoint, last := range before {
		if s.at.Before(last.until) {
			s.said[endpoint] = last
		}
	}
	present := map[string]bool{}
	for _, e := range entries {
		a, err := h.admitted(e.Service, verified, s.at)
		if err == nil {
			err = checkRecord(service, a, e.Service)
		}
		var w word
		if err == nil {
			present[e.Service.ID] = true
			text := joined(e.Service.Meta, metaWord)
			if v := verified[e.Service.ID]; v.health == text && v.word.Consul == e.Node.Node {
				w = v.word
			} else if w, err = h.wordOf(text, a, e.Node.Node); err == nil {
				v.health, v.word = text, w
				verified[e.Service.ID] = v
			}
		}
		if errors.Is(err, ErrRemoved) {
			continue // nobody cleans the catalog up after a machine that is cut off
		}
		if err != nil {
			record := fmt.Sprintf("catalog record %s of service %s on Consul node %s", e.Service.ID, service, e.Node.Node)
			s.refused[record] = err.Error()
			continue
		}
		if w.At.Before(s.said[a.Endpoint].At) {
			continue // an old record that was written again
		}
		s.said[a.Endpoint] = said{w, a.Expires}
		down[a.Endpoint] = slices.ContainsFunc(e.Checks, func(c *consulapi.HealthCheck) bool {
			return c.ServiceID == "" && c.Status == consulapi.HealthCritical
		})
	}
	for endpoint, last := range s.said {
		s.healthy[endpoint] = last.Healthy && !down[endpoint]
	}
	for id := range verified {
		if !present[id] {
			delete(verified, id)
		}
	}
	return s
}

// admitted returns the verified admission that a record carries.
func (h *Health) admitted(record *consulapi.AgentService, verified map[string]verifiedAdmission, now time.Time) (fabric.Admission, error) {
	text := joined(record.Meta, metaAdmission)
	if v, ok := verified[record.ID]; ok && v.text == text && now.Before(v.until) {
		return v.admission, nil
	}
	signed, err := decodeAdmission(text)
	if err != nil {
		return fabric.Admission{}, err
	}
	a, err := h.Verify(signed)
	if err != nil {
		return a, fmt.Errorf("its admission is invalid: %w", err)
	}
	verified[record.ID] = verifiedAdmission{text: text, admission: a, until: now.Add(trustFor)}
	return a, nil
}

// store stores the health of a service unless it is no longer watched, and logs newly refused
// records.
func (h *Health) store(ctx context.Context, service fabric.Ref, s serviceHealth) {
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
