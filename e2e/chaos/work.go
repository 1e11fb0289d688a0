// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/fabric"
)

// work is what people and Nomad do to the fabric meanwhile.
type work struct {
	r        *run
	rand     *rand.Rand
	register *register

	mu       sync.Mutex
	last     content
	kept     map[uint64]content // sequences that were read, to which one can roll back
	editions int
	made     struct{ applies, rollbacks, guests, revoked, failed int }
}

// next returns a content with a new edition of a domain.
func (w *work) next(change func(*content)) content {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.last
	change(&c)
	return c
}

func (w *work) edition() int {
	w.editions++
	return w.editions
}

// applies changes the domain all the time: other ports, or back to an earlier revision. It waits
// until all nodes have confirmed a change, as long as that does not take too long.
func (w *work) applies(ctx context.Context) {
	for ctx.Err() == nil {
		w.mu.Lock()
		back := uint64(0)
		if w.rand.IntN(4) == 0 {
			for s := range w.kept {
				if len(w.kept) > 3 && (back == 0 || w.rand.IntN(3) == 0) {
					back = s
				}
			}
		}
		target := w.kept[back]
		mask := w.last.mask
		w.mu.Unlock()
		var sequence uint64
		if back > 0 {
			sequence = w.rollback(ctx, back, target)
		} else {
			w.mu.Lock()
			for mask == w.last.mask {
				mask = w.rand.IntN(1 << toggles)
			}
			w.mu.Unlock()
			sequence = w.apply(ctx, mask)
		}
		if sequence == 0 {
			pause(ctx, time.Second)
			continue
		}
		_ = await(ctx, 5*time.Second, func(context.Context) error { return w.r.observer.behind(sequence, w.r.agents) })
		pause(ctx, time.Duration(300+w.rand.IntN(1200))*time.Millisecond)
	}
}

// apply puts other ports in force, and returns the sequence; 0: it is not known.
func (w *work) apply(ctx context.Context, mask int) uint64 {
	c := w.next(func(c *content) { c.mask, c.edition = mask, w.edition() })
	rev := w.r.observer.asks(c)
	done := w.register.begin(input{kind: kindApply, content: c})
	var reply api.GraphReply
	refused, err := w.r.controllers.call(ctx, http.MethodPut, "/v1/graph", api.GraphRequest{
		Domains: map[string]*fabric.Domain{domainName: c.domain()}, Message: c.String(),
	}, &reply)
	return w.became(rev, c, done, reply.Pointer, refused, err, &w.made.applies)
}

func (w *work) rollback(ctx context.Context, to uint64, c content) uint64 {
	rev := w.r.observer.asks(c)
	rev.rollback = true
	done := w.register.begin(input{kind: kindRollback, content: c})
	var reply api.RollbackReply
	refused, err := w.r.controllers.call(ctx, http.MethodPost, "/v1/graph/rollback", api.RollbackRequest{Revision: to, Message: c.String()}, &reply)
	return w.became(rev, c, done, reply.Pointer, refused, err, &w.made.rollbacks)
}

func (w *work) became(rev *revision, c content, done func(output), p fabric.Pointer, refused bool, err error, count *int) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		if w.r.working.Err() == nil {
			w.made.failed++
			w.r.say("a change failed (nothing was changed: %t): %.200s", refused, err)
		}
		if refused {
			w.r.observer.known(rev, 0, true)
			done(output{void: true})
		}
		return 0
	}
	*count++
	w.last.mask, w.last.edition = c.mask, c.edition
	w.r.observer.known(rev, p.Sequence, false)
	done(output{sequence: p.Sequence})
	return p.Sequence
}

// others changes the other domain, as another author would.
func (w *work) others(ctx context.Context, n int) {
	for n++; pause(ctx, 2300*time.Millisecond); n++ {
		done := w.register.begin(input{kind: kindOther, content: content{other: n}})
		var reply api.GraphReply
		refused, err := w.r.controllers.call(ctx, http.MethodPut, "/v1/graph", api.GraphRequest{
			Domains: map[string]*fabric.Domain{otherName: content{other: n}.otherDomain()},
		}, &reply)
		if err == nil {
			done(output{sequence: reply.Pointer.Sequence})
		} else if refused {
			done(output{void: true})
		}
	}
}

// reads reads the graph from one controller all the time.
func (w *work) reads(ctx context.Context, at int) {
	for pause(ctx, 900*time.Millisecond) {
		done := w.register.begin(input{kind: kindRead})
		var reply api.GraphReply
		once, cancel := context.WithTimeout(ctx, attempt)
		age, err := w.r.controllers.send(once, at, http.MethodGet, "/v1/graph", "", nil, &reply)
		cancel()
		if err != nil {
			done(output{void: true})
			continue
		}
		c, err := contentOf(reply.Graph)
		if err != nil {
			done(output{void: true})
			continue
		}
		done(output{sequence: reply.Pointer.Sequence, content: c, age: age})
		w.r.observer.read(reply.Pointer.Sequence, c)
		w.mu.Lock()
		w.kept[reply.Pointer.Sequence] = c
		for s := range w.kept {
			if s+20 < reply.Pointer.Sequence {
				delete(w.kept, s)
			}
		}
		w.mu.Unlock()
	}
}

// watches asks for the fabric's status all the time, and tells the observer what nodes confirm.
func (w *work) watches(ctx context.Context) {
	for pause(ctx, 250*time.Millisecond) {
		var s api.Status
		once, cancel := context.WithTimeout(ctx, attempt)
		_, err := w.r.controllers.call(once, http.MethodGet, "/v1/status", nil, &s)
		cancel()
		if err == nil {
			w.r.observer.hears(s)
		}
	}
}

// guests replaces a workload all the time. Every other one is revoked before it ends.
func (w *work) guests(ctx context.Context) {
	old := ""
	for n := 0; ctx.Err() == nil; n++ {
		var g *endpoint
		if err := await(ctx, 2*time.Minute, func(ctx context.Context) (err error) {
			g, err = w.r.find(ctx, guest, old)
			return err
		}); err != nil {
			if ctx.Err() == nil {
				w.r.observer.violation("no new guest was started: %v", err)
			}
			return
		}
		life, end := context.WithCancel(ctx)
		if err := w.r.join(life, g); err != nil {
			w.r.say("a guest ended at once: %v", err)
		} else if err := openGuest(life, g, w.r.near, w.r.far); err != nil {
			w.r.say("a guest ended at once: %v", err)
		}
		w.mu.Lock()
		w.made.guests++
		w.mu.Unlock()
		pause(ctx, 5*time.Second)
		if n%2 == 0 && ctx.Err() == nil {
			w.revoke(ctx, g)
			pause(ctx, 5*time.Second)
		}
		old = g.alloc
		if err := await(ctx, time.Minute, func(ctx context.Context) error {
			_, err := w.r.nomad.Allocations().Stop(&nomad.Allocation{ID: g.alloc}, (&nomad.QueryOptions{}).WithContext(ctx))
			return err
		}); err != nil && ctx.Err() == nil {
			w.r.observer.violation("a guest could not be stopped: %v", err)
		}
		end()
	}
}

func (w *work) revoke(ctx context.Context, g *endpoint) {
	var reply api.Revoked
	if _, err := w.r.controllers.call(ctx, http.MethodPost, "/v1/revocations", api.RevokeRequest{Endpoint: g.alloc, Reason: "chaos"}, &reply); err != nil {
		w.r.say("a guest could not be revoked: %.200s", err)
		return
	}
	w.mu.Lock()
	w.made.revoked++
	w.mu.Unlock()
	w.r.observer.revokes(g, reply.Sequence)
}

// agentsOf returns the nodes at which endpoints are.
func agentsOf(l *lab.Lab) []string {
	var list []string
	for _, n := range l.Topology.Nodes(lab.Workload) {
		list = append(list, n.Name)
	}
	return list
}
