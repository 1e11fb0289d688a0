// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/consulwatch"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/trust/revision"
)

// applyAttempts bounds how often an apply starts again because somebody else moved the pointer
// meanwhile.
const applyAttempts = 16

// inForce is a verified revision and the graph from which it was compiled. It is replaced, never
// changed.
type inForce struct {
	signed    fabric.Signed
	pointer   fabric.Pointer // the payload of signed
	graph     *fabric.Graph
	documents map[fabric.Ref]fabric.Document
	compiled  *fabric.Compiled // nil if the next revision cannot be based on it; see compile
	sound     bool             // the graph passes this version's Check, so CheckChange is enough for the next one
	warnings  func() []string  // about the graph, for the status
}

// policy contains the graph in force. All changes of the graph go through it.
//
// Everybody who can write to Consul can alter the pointer there. So the controller builds on a
// pointer only if it is signed by the fabric and not older than the last one that this controller
// verified, which is in current and, for restarts, in memory.
type policy struct {
	fabric string
	consul func() *consulapi.Client
	fence  *fence
	keys   func() fabric.KeySet
	signer Signer
	memory memory
	keep   int // revisions in the history
	log    hclog.Logger
	now    func() time.Time
	bell   *bell // rings when another revision comes into force

	changes changeCache

	mu      sync.Mutex              // held while the pointer is examined or moved
	current atomic.Pointer[inForce] // never nil
	refusal atomic.Pointer[string]  // why the pointer in Consul is refused; nil: it is not

	compared atomic.Int64 // when it was last compared with the pointer in Consul, as UnixNano

	unkept   map[fabric.Hash][]byte // objects that memory lacks; guarded by mu
	unstored atomic.Pointer[string] // why memory does not have the revision in force; nil: it has
}

func newPolicy(cfg Config) *policy {
	p := &policy{
		fabric: cfg.Fabric, consul: cfg.Consul, fence: cfg.fence, keys: cfg.Identity.Keys, signer: cfg.Signer,
		memory: memory{dir: filepath.Join(cfg.DataDir, "revision")},
		keep:   cmp.Or(cfg.History, DefaultHistory),
		log:    cfg.Log.Named("policy"), now: clock.Now, bell: newBell(),
	}
	p.use(&inForce{graph: &fabric.Graph{Domains: map[string]*fabric.Domain{}}})
	return p
}

// use puts a verified revision in force.
func (p *policy) use(r *inForce) {
	r.warnings = sync.OnceValue(func() []string { return warnings(r.graph) }) // not before somebody asks
	p.current.Store(r)
	p.bell.ring(r.pointer.Sequence + 1)
}

// maxWarnings bounds how many warnings there are about a graph.
const maxWarnings = 20

// warnings returns what an operator should know about the bindings of a graph, one sentence each.
func warnings(g *fabric.Graph) []string {
	if len(g.Domains) > 0 && len(g.Bindings) == 0 {
		return []string{`the graph has no binding, so every domain may select every workload of Nomad, use every prefix and publish every port; apply a binding for each domain, or binding "*" to say that this is meant`}
	}
	var list []string
	for _, e := range g.Excess(slices.Sorted(maps.Keys(g.Domains))...) {
		list = append(list, e.Why)
	}
	if more := len(list) - maxWarnings; more > 0 {
		list = append(list[:maxWarnings], fmt.Sprintf("and %d more such parts of the graph", more))
	}
	return list
}

// transact writes to Consul as the leader.
func (p *policy) transact(ctx context.Context, ops consulapi.TxnOps) (bool, *consulapi.TxnResponse, error) {
	return p.fence.txn(ctx, p.consul(), ops)
}

func (p *policy) pointer() fabric.Pointer { return p.current.Load().pointer }

// degraded returns what is wrong with the revision in Consul, for people.
func (p *policy) degraded() []string {
	var list []string
	for _, why := range []*string{p.refusal.Load(), p.unstored.Load()} {
		if why != nil {
			list = append(list, *why)
		}
	}
	return list
}

// remember stores a revision for restarts. It is in force whether that succeeds or not: until it
// does, a restarted controller reads it from Consul again. The caller holds p.mu.
func (p *policy) remember(signed fabric.Signed, objects map[fabric.Hash][]byte) {
	if p.unkept != nil { // memory still has the revision before
		maps.Copy(p.unkept, objects)
		objects = p.unkept
	}
	if err := p.memory.keep(signed, objects); err != nil {
		p.unkept = objects
		why := err.Error()
		p.unstored.Store(&why)
		p.log.Error("the revision in force is not stored", logkey.Error, err)
		return
	}
	p.unkept = nil
	p.unstored.Store(nil)
}

// keepAgain tries to store what could not be stored, until ctx ends.
func (p *policy) keepAgain(ctx context.Context) error {
	for ctx.Err() == nil {
		retry.Sleep(ctx, diskInterval)
		if p.unstored.Load() == nil {
			continue
		}
		p.mu.Lock()
		p.remember(p.current.Load().signed, nil)
		p.mu.Unlock()
	}
	return nil
}

// load reads the stored revision and examines the pointer in Consul. A pointer that is refused is
// not an error: the controller then serves the stored revision and reports that it is degraded.
func (p *policy) load(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current.Load().pointer.Sequence == 0 {
		stored, err := p.memory.recall(p.fabric, p.keys())
		if err != nil {
			return err
		}
		if stored != nil {
			p.use(stored)
		}
	}
	_, err := p.examine(ctx)
	if api.IsCode(err, api.CodeRevision) {
		return nil
	}
	return err
}

// follow follows the pointer in Consul until ctx ends, whoever leads. It begins with the stored
// revision, so that it takes nothing older.
func (p *policy) follow(ctx context.Context) error {
	for {
		err := p.load(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			return p.watch(ctx)
		}
		p.log.Error("cannot follow the revision, retrying", logkey.Error, err)
		retry.Sleep(ctx, followRetry)
	}
}

// followRetry is the pause after a failed attempt to begin with the stored revision.
const followRetry = 2 * time.Second

// watch examines the pointer whenever it changes in Consul, until ctx ends.
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
			return true // a refused pointer is refused until it changes
		},
		Failed: func(err error) { p.log.Warn("cannot watch the revision, retrying", logkey.Error, err) },
		Wait:   time.Minute, MinPause: time.Second, MaxPause: 10 * time.Second,
	}
	pointer.Run(ctx)
	return nil
}

// examine reads the pointer from Consul, puts its revision in force if it is newer, and returns the
// pointer's modify index. A pointer that is refused is an *api.Error of CodeRevision, and is
// reported. The caller holds p.mu.
func (p *policy) examine(ctx context.Context) (uint64, error) {
	began := time.Now()
	index, err := p.adopt(ctx)
	if !api.IsCode(err, api.CodeUnavailable) {
		p.compared.Store(began.UnixNano())
	}
	var refusal *api.Error
	switch {
	case err == nil:
		if p.refusal.Swap(nil) != nil {
			p.log.Info("pointer in Consul verified again", logkey.Revision, p.pointer().Sequence)
		}
	case errors.As(err, &refusal) && refusal.Code == api.CodeRevision:
		if old := p.refusal.Swap(&refusal.Message); old == nil || *old != refusal.Message {
			p.log.Error("revision in Consul refused", logkey.Revision, p.pointer().Sequence, logkey.Error, err)
		}
	}
	return index, err
}

// adopt is examine without the report.
func (p *policy) adopt(ctx context.Context) (uint64, error) {
	known := p.current.Load().pointer
	signed, index, err := revision.ReadCurrent(ctx, p.consul())
	switch {
	case errors.Is(err, revision.ErrNoRevision) && known.Sequence == 0:
		return 0, nil
	case errors.Is(err, revision.ErrNoRevision):
		return 0, p.refuse("it was deleted, but this controller has seen sequence %d", known.Sequence)
	case err != nil && index > 0: // it was read, but cannot be decoded
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
	case pointer.Sequence < known.Sequence:
		return index, p.refuse("it has sequence %d, but this controller has seen %d: it was rolled back by hand", pointer.Sequence, known.Sequence)
	case pointer.Sequence == known.Sequence && pointer.Root == known.Root:
		if signedAgain(p.current.Load().signed, signed) {
			p.again(signed)
		}
		return index, nil
	case pointer.Sequence == known.Sequence:
		return index, p.refuse("it has sequence %d like the one that this controller has seen, but another root", pointer.Sequence)
	}
	graph, objects, err := p.fetchGraph(ctx, pointer.Sequence, pointer.Root)
	if err != nil {
		// If another controller moved the pointer meanwhile, it may also have deleted objects of
		// this revision.
		if _, now, readErr := revision.ReadCurrent(ctx, p.consul()); readErr == nil && now != index {
			return p.adopt(ctx)
		}
		return index, err
	}
	next := compile(signed, pointer, graph)
	p.remember(next.signed, objects)
	p.use(next)
	p.log.Info("revision adopted", logkey.Revision, pointer.Sequence)
	return index, nil
}

// refuse returns an error that says what is wrong with the pointer in Consul and how to restore it.
func (p *policy) refuse(format string, args ...any) *api.Error {
	why := fmt.Sprintf(format, args...)
	remedy := "restore " + kvkey.Current + " from a backup"
	if p.current.Load().pointer.Sequence > 0 {
		remedy = fmt.Sprintf("restore it on the controller's node with `consul kv put %s @%s`", kvkey.Current, p.memory.pointerFile().Path)
	}
	return api.Errorf(http.StatusConflict, api.CodeRevision, "the pointer %s in Consul is refused: %s; %s", kvkey.Current, why, remedy)
}
