// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/consulwatch"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/trust/revision"
)

// applyAttempts bounds how often an apply starts anew because the pointer was
// moved meanwhile.
const applyAttempts = 16

// inForce is a revision that verified, with the graph that it was made of.
type inForce struct {
	signed    fabric.Signed
	pointer   fabric.Pointer
	graph     *fabric.Graph
	documents map[fabric.Ref]fabric.Document
	compiled  *fabric.Compiled // nil before the first revision
	sound     bool             // graph has passed this version's Check, so that of a change is enough
}

var noRevision = &inForce{graph: &fabric.Graph{Domains: map[string]*fabric.Domain{}}}

// policy is the graph in force and the only way to change it.
//
// Consul may be altered by those who can write to it, so a pointer found
// there is built upon only if the fabric signed it and it is no older than
// what this controller has seen: memory holds the last verified revision, and
// the disk keeps it over restarts.
type policy struct {
	fabric string
	consul func() *consulapi.Client
	keys   func() fabric.KeySet
	signer Signer
	memory memory
	keep   int // revisions
	log    hclog.Logger
	now    func() time.Time
	bell   *bell // rings when another revision comes into force

	chain changeCache

	mu      sync.Mutex // held while the revision is looked at or changed
	current atomic.Pointer[inForce]
	refusal atomic.Pointer[string] // why the pointer in Consul is refused; nil: it is not
}

func newPolicy(cfg Config) *policy {
	p := &policy{
		fabric: cfg.Fabric, consul: cfg.Consul, keys: cfg.Identity.Keys, signer: cfg.Signer,
		memory: memory{dir: filepath.Join(cfg.DataDir, "revision")},
		keep:   cmp.Or(cfg.History, DefaultHistory),
		log:    cfg.Log.Named("policy"), now: time.Now, bell: newBell(),
	}
	p.hold(noRevision)
	return p
}

// hold makes a verified revision the one in force.
func (p *policy) hold(r *inForce) {
	p.current.Store(r)
	p.bell.ring(r.pointer.Sequence + 1)
}

func (p *policy) pointer() fabric.Pointer { return p.current.Load().pointer }

func (p *policy) degraded() []string {
	if why := p.refusal.Load(); why != nil {
		return []string{*why}
	}
	return nil
}

// load recalls what this controller has seen and looks at what Consul holds.
// A pointer that is refused is no error: the controller then serves what it
// remembers, and says so.
func (p *policy) load(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current.Load().pointer.Sequence == 0 {
		held, err := p.memory.recall(p.fabric, p.keys())
		if err != nil {
			return err
		}
		if held != nil {
			p.hold(held)
		}
	}
	_, err := p.examine(ctx)
	if api.IsCode(err, api.CodeRevision) {
		return nil
	}
	return err
}

// watch keeps examining the pointer as it changes in Consul.
func (p *policy) watch(ctx context.Context) error {
	pointer := consulwatch.Watch[*consulapi.KVPair]{
		Query: func(opts *consulapi.QueryOptions) (*consulapi.KVPair, *consulapi.QueryMeta, error) {
			return p.consul().KV().Get(kvkey.Current, opts)
		},
		Handle: func(*consulapi.KVPair) bool {
			p.mu.Lock()
			_, err := p.examine(ctx)
			p.mu.Unlock()
			if err != nil && ctx.Err() == nil && !api.IsCode(err, api.CodeRevision) {
				p.log.Warn("cannot read the revision, retrying", logkey.Error, err)
				return false
			}
			return true // a pointer that is refused stays so until another one is there
		},
		Failed: func(err error) { p.log.Warn("cannot watch the revision, retrying", logkey.Error, err) },
		Wait:   time.Minute, MinPause: time.Second, MaxPause: 10 * time.Second,
	}
	pointer.Run(ctx)
	return nil
}

// examine reads the pointer, adopts it if it is newer than what is held, and
// returns its modify index. A pointer that cannot be built upon is an
// *api.Error of CodeRevision. The caller holds p.mu.
func (p *policy) examine(ctx context.Context) (uint64, error) {
	index, err := p.adopt(ctx)
	var refusal *api.Error
	switch {
	case err == nil:
		if p.refusal.Swap(nil) != nil {
			p.log.Info("the pointer in Consul verifies again", logkey.Revision, p.pointer().Sequence)
		}
	case errors.As(err, &refusal) && refusal.Code == api.CodeRevision:
		if old := p.refusal.Swap(&refusal.Message); old == nil || *old != refusal.Message {
			p.log.Error("the revision in Consul is refused", logkey.Revision, p.pointer().Sequence, logkey.Error, err)
		}
	}
	return index, err
}

func (p *policy) adopt(ctx context.Context) (uint64, error) {
	held := p.current.Load()
	signed, index, err := revision.ReadCurrent(ctx, p.consul())
	switch {
	case errors.Is(err, revision.ErrNoRevision) && held.pointer.Sequence == 0:
		return 0, nil
	case errors.Is(err, revision.ErrNoRevision):
		return 0, p.refuse("it is gone, but this controller has seen sequence %d", held.pointer.Sequence)
	case err != nil && index > 0: // it was read, but is no signed statement
		return index, p.refuse("%v", err)
	case err != nil:
		return 0, unavailable("read the pointer from Consul: %v", err)
	}
	var pointer fabric.Pointer
	if err := p.keys().Verify(signed, fabric.KindPointer, &pointer); err != nil {
		return index, p.refuse("%v", err)
	}
	switch {
	case pointer.Fabric != p.fabric:
		return index, p.refuse("it is of fabric %q, not %q", pointer.Fabric, p.fabric)
	case pointer.Sequence < held.pointer.Sequence:
		return index, p.refuse("it has sequence %d, but this controller has seen %d: it was rolled back by hand", pointer.Sequence, held.pointer.Sequence)
	case pointer.Sequence == held.pointer.Sequence && pointer.Root == held.pointer.Root:
		return index, nil
	case pointer.Sequence == held.pointer.Sequence:
		return index, p.refuse("it has sequence %d like the one this controller has seen, but another root", pointer.Sequence)
	}
	next, objects, err := p.fetch(ctx, signed, pointer)
	if err != nil {
		return index, err
	}
	if err := p.memory.keep(next.signed, objects); err != nil {
		return index, err
	}
	p.hold(next)
	p.log.Info("revision adopted", logkey.Revision, pointer.Sequence)
	return index, nil
}

// refuse says what is wrong with the pointer in Consul and how to put it right.
func (p *policy) refuse(format string, args ...any) *api.Error {
	why := fmt.Sprintf(format, args...)
	remedy := "restore " + kvkey.Current + " from a backup"
	if p.current.Load().pointer.Sequence > 0 {
		remedy = fmt.Sprintf("restore it on the controller's node with `consul kv put %s @%s`", kvkey.Current, p.memory.pointerFile())
	}
	return api.Errorf(http.StatusConflict, api.CodeRevision, "the pointer %s in Consul is refused: %s; %s", kvkey.Current, why, remedy)
}
