// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/logkey"
)

// releaseInterval is how often the agent compares the controller's admissions of this node with its
// endpoints, if no release has failed.
const releaseInterval = time.Minute

// releases finds admissions that the controller still has although their endpoint is gone: their
// release was lost. Until they expire, their addresses could not be given to other endpoints. It
// also finds endpoints whose admissions the controller has lost. It is safe for concurrent use. The
// zero value compares at the first call of Agent.releaseLost.
type releases struct {
	mu       sync.Mutex
	next     time.Time       // when to compare again
	progress map[string]int  // attachments in progress by endpoint
	lacking  map[string]bool // endpoints whose admissions the controller lacks
}

// begin notes that an endpoint is being attached, so that its admission is not taken for a lost
// one, until end is called.
func (r *releases) begin(endpoint string) (end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.progress == nil {
		r.progress = map[string]int{}
	}
	r.progress[endpoint]++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.progress[endpoint]--; r.progress[endpoint] == 0 {
			delete(r.progress, endpoint)
		}
	}
}

// failed makes the next call of Agent.releaseLost compare.
func (r *releases) failed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = time.Time{}
}

// due reports whether it is time to compare.
func (r *releases) due() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !time.Now().Before(r.next)
}

// inProgress returns the endpoints that are being attached.
func (r *releases) inProgress() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.progress))
}

// compared sets when to compare again, and what the controller lacks.
func (r *releases) compared(lacking map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next, r.lacking = time.Now().Add(releaseInterval), lacking
}

// lacks reports whether the controller lacked the admission of an endpoint when it was last asked.
func (r *releases) lacks(endpoint string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lacking[endpoint]
}

// renewed notes that the controller has an admission of an endpoint.
func (r *releases) renewed(endpoint string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.lacking, endpoint)
}

// releaseLost releases the admissions of endpoints that are not on this node, and notes which
// addresses rest at the controller, so that they are not offered to it. Admissions that the
// controller has lost are renewed.
func (a *Agent) releaseLost(ctx context.Context) error {
	lacking := map[string]bool{}
	for _, ep := range a.endpoints.all() {
		if ep.admitted() && ep.HostIndex != 0 {
			lacking[ep.ID] = true
		}
	}
	has, err := a.node.Controller.Admissions(ctx)
	if err != nil {
		return fmt.Errorf("compare the admissions of this node: %w", err)
	}
	lost := lostOf(has.Live, a.releases.inProgress, a.endpoints.all)
	if len(lost) > 0 {
		issued := map[string]time.Time{}
		for _, l := range lost {
			issued[l.Endpoint] = l.Issued
			has.Resting = append(has.Resting, api.RestingAddress{Address: l.IPv4, Until: a.now().Add(rest)})
		}
		a.log.Info("releasing admissions of endpoints that are gone", logkey.Count, len(lost))
		if err := a.node.Controller.ReleaseLost(ctx, api.ReleaseRequest{Issued: issued}); err != nil {
			return fmt.Errorf("release the admissions of %d endpoints that are gone: %w", len(lost), err)
		}
	}
	for _, l := range has.Live {
		delete(lacking, l.Endpoint)
	}
	a.releases.compared(lacking)
	a.addresses.avoid(has.Resting, a.now())
	return nil
}

// lostOf returns the admissions whose endpoints are neither attached nor being attached. live was
// read before. The endpoints in progress must be read first: one that ends its attachment between
// the two is then in the second list.
func lostOf(live []api.LiveAdmission, inProgress func() []string, attached func() []endpoint) (lost []api.LiveAdmission) {
	here := map[string]bool{}
	for _, id := range inProgress() {
		here[id] = true
	}
	for _, ep := range attached() {
		here[ep.ID] = true
	}
	for _, l := range live {
		if !here[l.Endpoint] {
			lost = append(lost, l)
		}
	}
	return lost
}
