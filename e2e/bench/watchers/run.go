// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/graphgen"
	"github.com/sif-project/sif/internal/trust/revision"
)

const (
	fabricName = "watchers"
	// patience limits how long the last watcher may take.
	patience = 2 * time.Minute
	// pause separates changes. Reads in it are attributed to the change before.
	pause = time.Second
)

// bench is one run.
type bench struct {
	options
	server *server
	consul *consulapi.Client
	dir    string // the nodes'

	key      ed25519.PrivateKey
	base     *fabric.Compiled
	sequence uint64
	rng      *rand.Rand
	watchers []*watcher
}

// watcher does what a node does about the graph.
type watcher struct {
	*revision.Follower
	counts   counts
	services map[fabric.Ref]bool
	switched chan at // one for each change
}

type at struct {
	sequence uint64
	time     time.Time
}

func run(ctx context.Context, o options) (*Report, error) {
	r := newReport(o)
	b := &bench{options: o, rng: rand.New(rand.NewPCG(1, 2))}
	var err error
	if _, b.key, err = ed25519.GenerateKey(nil); err != nil {
		return nil, err
	}
	if b.server, err = startConsul(ctx, o.consul, o.data, o.watchers); err != nil {
		return nil, err
	}
	defer b.server.stop()
	if b.dir, err = os.MkdirTemp(o.nodes, "sif-watchers"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(b.dir)
	if b.consul, err = b.server.client(nil); err != nil {
		return nil, err
	}

	var none *fabric.Compiled
	next, fresh, _ := none.Next(graphgen.Generate(graphgen.Shape{Services: o.services, Contracts: o.contract}))
	start := time.Now()
	if err := b.publish(ctx, next, fresh, nil); err != nil {
		return nil, err
	}
	r.Objects, r.FirstWrite = len(fresh), milliseconds(time.Since(start))

	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	start = time.Now()
	if err := b.join(ctx, &running); err != nil {
		return nil, err
	}
	r.Join = milliseconds(time.Since(start))
	for _, w := range b.watchers {
		r.JoinBytes += float64(w.counts.bytes.Load()) / float64(len(b.watchers))
	}

	if r.ConsulIdle, _, err = b.measure(func() error { return sleep(ctx, o.idle) }); err != nil {
		return nil, err
	}
	var took time.Duration
	if r.ConsulChanging, took, err = b.measure(func() error { return b.changes(ctx, r) }); err != nil {
		return nil, err
	}
	r.ByChange = 1000 * (r.ConsulChanging.CPU - r.ConsulIdle.CPU) * took.Seconds() / float64(o.changes)
	return r, nil
}

// publish moves the pointer to next. The pointer names touched.
func (b *bench) publish(ctx context.Context, next *fabric.Compiled, fresh []fabric.Object, touched []fabric.Ref) error {
	var index uint64
	pointer := fabric.Pointer{Fabric: fabricName, Sequence: b.sequence + 1, Root: next.Root, Time: time.Now().UTC()}
	if b.sequence > 0 {
		_, modified, err := revision.ReadCurrent(ctx, b.consul)
		if err != nil {
			return err
		}
		index, pointer.Previous = modified, b.base.Root
		pointer.SetTouched(touched)
	}
	payload, err := json.Marshal(pointer)
	if err != nil {
		return err
	}
	signed := fabric.Signed{
		Kind: fabric.KindPointer, Payload: payload, Version: 1,
		Signature: ed25519.Sign(b.key, fabric.SigningInput(fabric.KindPointer, payload)),
	}
	if err := revision.NewWriter(b.consul, revision.Unfenced(b.consul)).Publish(ctx, fabric.Revision{Root: next.Root, Objects: fresh}, signed, index); err != nil {
		return err
	}
	b.base, b.sequence = next, pointer.Sequence
	return nil
}

// join starts the watchers and returns when each one has its documents.
func (b *bench) join(ctx context.Context, running *sync.WaitGroup) error {
	public := b.key.Public().(ed25519.PublicKey)
	keys := fabric.KeySet{Keys: map[int]ed25519.PublicKey{1: public}, Min: 1}
	services := slices.SortedFunc(maps.Keys(b.base.Documents), fabric.CompareRefs)
	for i := range b.options.watchers {
		w := &watcher{services: map[fabric.Ref]bool{}, switched: make(chan at, b.options.changes+1)}
		client, err := b.server.client(&w.counts)
		if err != nil {
			return err
		}
		dir := filepath.Join(b.dir, fmt.Sprint("node-", i))
		w.Follower, err = revision.NewFollower(client, dir, fabricName, func() fabric.KeySet { return keys }, hclog.NewNullLogger())
		if err != nil {
			return err
		}
		for range b.options.interests {
			w.services[services[b.rng.IntN(len(services))]] = true
		}
		w.OnChange(func(p fabric.Pointer, _ map[fabric.Ref]fabric.Document) { w.switched <- at{p.Sequence, time.Now()} })
		running.Go(func() { _ = w.Run(ctx) }) // until ctx ends
		b.watchers = append(b.watchers, w)
	}
	var g errgroup.Group
	g.SetLimit(8)
	for i, w := range b.watchers {
		g.Go(func() error {
			if _, err := w.wait(ctx, 1); err != nil {
				return fmt.Errorf("watcher %d: %w", i, err)
			}
			for s := range w.services {
				// If many watchers join at once, the server may keep one of them waiting for too
				// long.
				for end := time.Now().Add(patience); ; {
					_, err := w.Document(ctx, s)
					if err == nil {
						break
					}
					if ctx.Err() != nil || time.Now().After(end) {
						return fmt.Errorf("watcher %d: %w", i, err)
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// wait waits until the watcher has switched to a revision and returns when it did.
func (w *watcher) wait(ctx context.Context, sequence uint64) (time.Time, error) {
	timeout := time.After(patience)
	for {
		select {
		case a := <-w.switched:
			if a.sequence >= sequence {
				return a.time, nil
			}
		case <-timeout:
			return time.Time{}, fmt.Errorf("not at revision %d after %s: %v", sequence, patience, w.Degraded())
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		}
	}
}

// changes publishes changes of one contract, one after the other.
func (b *bench) changes(ctx context.Context, r *Report) error {
	var publish, all, touched, last []time.Duration
	var keys float64
	var touchedReads, otherReads Reads
	for range b.options.changes {
		next, fresh, services := b.base.Next(b.edited())
		before := make([]Reads, len(b.watchers))
		for i, w := range b.watchers {
			before[i] = w.counts.reads()
		}
		start := time.Now()
		if err := b.publish(ctx, next, fresh, services); err != nil {
			return err
		}
		published := time.Now()
		publish = append(publish, published.Sub(start))
		keys += float64(len(fresh) + 1)
		var latest time.Duration
		for i, w := range b.watchers {
			switched, err := w.wait(ctx, b.sequence)
			if err != nil {
				return fmt.Errorf("watcher %d: %w", i, err)
			}
			took := max(0, switched.Sub(published)) // the watcher may switch before Publish returns
			latest = max(latest, took)
			all = append(all, took)
			if w.hosts(services) {
				touched = append(touched, took)
			}
		}
		last = append(last, latest)
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		// Verify only after all watchers have switched, because it would take processor time from
		// them.
		for i, w := range b.watchers {
			reads := &otherReads
			if w.hosts(services) {
				reads = &touchedReads
			}
			after := w.counts.reads()
			reads.Objects += after.Objects - before[i].Objects
			reads.Bytes += after.Bytes - before[i].Bytes
			if err := w.verify(b.base); err != nil {
				return fmt.Errorf("watcher %d: %w", i, err)
			}
		}
	}
	n := float64(b.options.changes)
	r.Publish, r.All, r.Touched, r.Last = spread(publish), spread(all), spread(touched), spread(last)
	r.Keys, r.TouchedWatchers = keys/n, float64(len(touched))/n
	r.ReadTouched = touchedReads.by(len(touched))
	r.ReadUntouched = otherReads.by(len(all) - len(touched))
	return nil
}

func (c *counts) reads() Reads {
	return Reads{Objects: float64(c.objects.Load()), Bytes: float64(c.bytes.Load())}
}

// by returns the reads divided by n.
func (r Reads) by(n int) Reads {
	d := float64(max(1, n))
	return Reads{r.Objects / d, r.Bytes / d}
}

// edited returns the graph with another port in one contract.
func (b *bench) edited() *fabric.Graph {
	g := &fabric.Graph{Domains: maps.Clone(b.base.Graph.Domains), Guardrails: b.base.Graph.Guardrails, Bindings: b.base.Graph.Bindings}
	names := slices.Sorted(maps.Keys(g.Domains))
	for {
		d := *g.Domains[names[b.rng.IntN(len(names))]]
		if len(d.Contracts) == 0 {
			continue
		}
		d.Contracts = slices.Clone(d.Contracts)
		port := uint16(20000 + b.sequence)
		d.Contracts[b.rng.IntN(len(d.Contracts))].Rules = []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: port, To: port}}}}
		g.Domains[d.Name] = &d
		return g
	}
}

func (w *watcher) hosts(services []fabric.Ref) bool {
	return slices.ContainsFunc(services, func(r fabric.Ref) bool { return w.services[r] })
}

// verify compares the watcher's documents with the graph.
func (w *watcher) verify(c *fabric.Compiled) error {
	held := w.Documents()
	for r := range w.services {
		if fabric.NewObject(held[r]).Hash != fabric.NewObject(c.Documents[r]).Hash {
			return fmt.Errorf("its document of %s differs from the graph", r)
		}
	}
	return nil
}

// measure returns what the server used while do ran, and how long do ran.
func (b *bench) measure(do func() error) (Cost, time.Duration, error) {
	requests := func() (n int64) {
		for _, w := range b.watchers {
			n += w.counts.all.Load()
		}
		return n
	}
	before := requests()
	from, err := b.server.usage()
	if err != nil {
		return Cost{}, 0, err
	}
	if err := do(); err != nil {
		return Cost{}, 0, err
	}
	to, err := b.server.usage()
	if err != nil {
		return Cost{}, 0, err
	}
	return cost(from, to, requests()-before), to.at.Sub(from.at), nil
}

func spread(times []time.Duration) Spread {
	if len(times) == 0 {
		return Spread{}
	}
	slices.Sort(times)
	at := func(share float64) float64 { return milliseconds(times[int(share*float64(len(times)-1))]) }
	return Spread{P50: at(0.5), P99: at(0.99), Max: at(1)}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
