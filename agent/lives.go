// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/sif-project/sif/agent/catalog"
	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/retry"
)

const (
	// livesWait is how long a question about the life of the endpoints waits for a change.
	livesWait = time.Minute
	// livesRetry is the pause after a failed question, and livesPause the least time between two.
	livesRetry, livesPause = time.Second, 20 * time.Millisecond
	// livesOld is the pause before a controller is asked again that does not know the question,
	// because it is of an earlier version.
	livesOld = time.Minute
	// freshFor is how long after its admission an endpoint is not handed out while its node has
	// said nothing about it in the catalog. Later, what is missing there withdraws nothing.
	freshFor = time.Minute
)

// lives is what the controller has said about the node's allocations in Nomad. What it does not
// know changes nothing. It is safe for concurrent use.
type lives struct {
	mu    sync.Mutex
	known map[string]api.EndpointLife // by endpoint; never of state LifeUnknown
	old   bool                        // the controller does not know the question
}

// begin notes that an allocation got its interface: its tasks have not started. canary says what it
// was admitted as.
func (l *lives) begin(endpoint string, canary bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil {
		l.known = map[string]api.EndpointLife{}
	}
	l.known[endpoint] = api.EndpointLife{State: "waiting", Why: "waits for its start", Canary: canary}
}

// take takes an answer, and reports whether something changed. What is unknown stays as it was
// while the endpoint is on this node.
func (l *lives) take(answer api.EndpointLives, here map[string]bool) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := map[string]api.EndpointLife{}
	for id, life := range l.known {
		if here[id] {
			next[id] = life
		}
	}
	for id, life := range answer.Endpoints {
		if here[id] && life.State != api.LifeUnknown {
			next[id] = life
		}
	}
	changed = l.old || !maps.Equal(l.known, next)
	l.known, l.old = next, false
	return changed
}

// outdated notes that the controller does not know the question, and reports whether that is new.
func (l *lives) outdated() (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed, l.old = !l.old, true
	return changed
}

// of returns what stands against handing an allocation out.
func (l *lives) of(endpoint string) catalog.Life {
	l.mu.Lock()
	defer l.mu.Unlock()
	life, known := l.known[endpoint]
	switch {
	case l.old || known && life.State == api.LifeReady:
		return catalog.Life{}
	case !known:
		return catalog.Life{Unknown: true}
	case life.Why == "":
		return catalog.Life{Waits: "cannot be called: it is " + string(life.State)}
	}
	return catalog.Life{Waits: life.Why}
}

// promoted reports whether a canary has been promoted, or nothing is known of it.
func (l *lives) promoted(endpoint string) (promoted, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	life, known := l.known[endpoint]
	return known && !life.Canary, known && !l.old
}

// lifeOf returns what stands against handing an endpoint out, beside its checks in Consul. Nomad
// knows nothing of what was attached from outside it.
func (a *Agent) lifeOf(ep endpoint) catalog.Life {
	if ep.Attached != nil {
		return catalog.Life{}
	}
	return a.lives.of(ep.ID)
}

// watchLives asks the controller what becomes of the node's allocations, until ctx ends.
func (a *Agent) watchLives(ctx context.Context) error {
	var index uint64
	for ctx.Err() == nil {
		answer, next, err := a.node.Controller.Lives(ctx, index, livesWait)
		if ctx.Err() != nil {
			return nil
		}
		changed, pause := false, livesPause
		switch {
		case api.IsCode(err, api.CodeNotFound):
			changed, pause = a.lives.outdated(), livesOld
		case err != nil:
			index, pause = 0, livesRetry // another controller has other indexes
		default:
			index = next
			here := map[string]bool{}
			for _, ep := range a.endpoints.all() {
				here[ep.ID] = true
			}
			changed = a.lives.take(answer, here)
		}
		if !api.IsCode(err, api.CodeNotFound) {
			a.node.Degrade("life of the endpoints in Nomad", err)
		}
		if changed {
			a.registrar.Refresh()
			a.renew(ctx) // canaries that were promoted
		}
		retry.Sleep(ctx, pause)
	}
	return nil
}

// handedOut reports whether DNS answers with an endpoint. Of this node's own endpoints the node
// knows it before it is in the catalog.
func (a *Agent) handedOut(adm fabric.Admission) bool {
	if adm.Host() == a.node.Self.ID() {
		if ep, here := a.endpoints.find(func(ep endpoint) bool { return ep.ID == adm.Endpoint }); here && a.lifeOf(ep).Waits != "" {
			return false
		}
		if said, known := a.registrar.Said(adm.Endpoint); known {
			return said.Healthy
		}
	}
	healthy, known := a.health.Healthy(adm.Endpoint)
	if known {
		return healthy
	}
	return !a.health.Answered(adm.Service) || a.now().Sub(adm.Issued) > freshFor
}

// withheld returns why DNS does not answer with an endpoint of this node, or "".
func (a *Agent) withheld(ep endpoint) string {
	if life := a.lifeOf(ep); life.Waits != "" {
		return "it " + life.Waits
	}
	if said, known := a.registrar.Said(ep.ID); known && !said.Healthy {
		return "it " + said.Why
	}
	return ""
}
