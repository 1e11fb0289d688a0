// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revision

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/sif-project/sif/fabric"
)

// view is the verified part of a revision that a set of services needs, the interests. It is
// replaced, never modified.
type view struct {
	signed  fabric.Signed
	pointer fabric.Pointer
	shards  map[int]fabric.Shard           // of the interests
	docs    map[fabric.Ref]fabric.Document // of the interests; without edges if the graph does not have the service
	links   []fabric.LinkRule              // declared ones, canonical
	objects map[fabric.Hash]object         // root, links, shards and documents, verified

	// indexes are the modify indexes of root, shards and documents in Consul; 0: not known.
	// Follower.recheck updates them when a new root was read, so they need not belong to objects.
	indexes map[fabric.Hash]uint64

	// base is the pointer whose root was read. since are the later pointers, up to signed, that
	// touched no interest, so that no other root had to be read. The same version of the fabric's
	// key has signed all of them.
	base  fabric.Signed
	since []fabric.Signed
}

// object is a verified object.
type object struct {
	data  []byte
	value any // the decoded data
}

// maxSince bounds the number of pointers in view.since; then a root is read again.
const maxSince = 64

// follow returns v at the next pointer if that pointer touches none of the interests. v may be nil.
// The caller has verified the pointer.
func (v *view) follow(signed fabric.Signed, next fabric.Pointer, interests []fabric.Ref) (*view, bool) {
	if v == nil || signed.Version != v.base.Version || next.Sequence != v.pointer.Sequence+1 || next.Previous != v.pointer.Root || len(next.Touched) == 0 || len(v.since) >= maxSince {
		return nil, false
	}
	for _, r := range interests {
		if _, known := v.docs[r]; !known || slices.Contains(next.Touched, r) {
			return nil, false
		}
	}
	c := *v
	c.signed, c.pointer, c.docs = signed, next, maps.Clone(v.docs)
	c.since = append(slices.Clip(v.since), signed)
	return &c, true
}

// source reads objects, unverified. The result lacks those that do not exist.
type source func(ctx context.Context, hashes []fabric.Hash) (map[fabric.Hash]entry, error)

func newView(signed fabric.Signed, pointer fabric.Pointer) *view {
	return &view{
		signed:  signed,
		base:    signed,
		pointer: pointer,
		shards:  map[int]fabric.Shard{},
		docs:    map[fabric.Ref]fabric.Document{},
		objects: map[fabric.Hash]object{},
		indexes: map[fabric.Hash]uint64{},
	}
}

// build reads and verifies what the interests need of the pointer's revision. It takes objects that
// old already has from there. old may be nil.
func build(ctx context.Context, signed fabric.Signed, pointer fabric.Pointer, interests []fabric.Ref, old *view, from source) (*view, error) {
	v := newView(signed, pointer)
	problems, err := v.walk(ctx, interests, old, from)
	switch {
	case err != nil:
		return nil, err
	case len(problems) == 1:
		return nil, errors.New(problems[0])
	case len(problems) > 1:
		return nil, fmt.Errorf("%s (and %d more objects)", problems[0], len(problems)-1)
	}
	return v, nil
}

// walk fills v level by level: root, links, shards, documents. It returns a text such as "document
// 1a2b of getaway-app/news-gw in Consul was altered: ..." for each object that does not verify. An
// error means that the source failed.
func (v *view) walk(ctx context.Context, interests []fabric.Ref, old *view, from source) (problems []string, err error) {
	if old == nil {
		old = &view{}
	}
	w := &walker{v: v, old: old, from: from}
	defer func() {
		problems = w.problems
		slices.Sort(problems)
	}()

	var root fabric.Root
	name := fmt.Sprintf("root %s of revision %d", v.pointer.Root, v.pointer.Sequence)
	err = level(ctx, w, map[fabric.Hash]string{v.pointer.Root: name}, func(_ fabric.Hash, r fabric.Root) error {
		if len(r.Shards) != fabric.ShardCount {
			return fmt.Errorf("lists %d shards, expected %d", len(r.Shards), fabric.ShardCount)
		}
		root = r
		return nil
	})
	if err != nil || len(w.problems) > 0 {
		return nil, err
	}

	if !root.Links.IsZero() {
		links := map[fabric.Hash]string{root.Links: fmt.Sprintf("links %s of revision %d", root.Links, v.pointer.Sequence)}
		err = level(ctx, w, links, func(_ fabric.Hash, declared []fabric.LinkRule) error {
			v.links = fabric.CanonicalLinks(declared)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}

	shards, numbers := map[fabric.Hash]string{}, map[fabric.Hash][]int{}
	for _, r := range interests {
		n := fabric.ShardOf(r)
		h := root.Shards[n]
		if h.IsZero() {
			v.shards[n] = fabric.Shard{}
			continue
		}
		shards[h] = fmt.Sprintf("index shard %s with %s", h, r)
		if !slices.Contains(numbers[h], n) {
			numbers[h] = append(numbers[h], n)
		}
	}
	err = level(ctx, w, shards, func(h fabric.Hash, s fabric.Shard) error {
		for _, n := range numbers[h] {
			v.shards[n] = s
		}
		return nil
	})
	if err != nil {
		return nil, err
	}

	docs, services := map[fabric.Hash]string{}, map[fabric.Hash]fabric.Ref{}
	for _, r := range interests {
		shard, ok := v.shards[fabric.ShardOf(r)]
		if !ok {
			continue // the shard is among the problems
		}
		h, ok := shard[r.String()]
		if !ok {
			v.docs[r] = fabric.Document{Service: r}
			continue
		}
		docs[h] = fmt.Sprintf("document %s of %s", h, r)
		services[h] = r
	}
	return nil, level(ctx, w, docs, func(h fabric.Hash, d fabric.Document) error {
		if d.Service != services[h] {
			return fmt.Errorf("is of service %s", d.Service)
		}
		v.docs[d.Service] = d
		return nil
	})
}

// walker is the state of one walk.
type walker struct {
	v, old   *view
	from     source
	problems []string
}

// level adds the wanted objects to the view. It takes those that the old view has from there.
// wanted describes each object, for messages.
func level[T any](ctx context.Context, w *walker, wanted map[fabric.Hash]string, take func(fabric.Hash, T) error) error {
	var missing []fabric.Hash
	for h := range wanted {
		if _, known := w.old.objects[h]; !known {
			missing = append(missing, h)
		}
	}
	var found map[fabric.Hash]entry
	if len(missing) > 0 {
		var err error
		if found, err = w.from(ctx, missing); err != nil {
			return err
		}
	}
	for h, name := range wanted {
		o, known := w.old.objects[h]
		index := w.old.indexes[h]
		var err error
		if !known {
			e, ok := found[h]
			o.data, index = e.data, e.index
			err = check(e.data, ok, h)
		}
		value, decoded := o.value.(T)
		if err == nil && !decoded {
			err = fabric.DecodeObject(o.data, h, &value)
			o.value = value
		}
		if err == nil {
			err = take(h, value)
		}
		if err != nil {
			w.problems = append(w.problems, fmt.Sprintf("%s in Consul %s", name, err))
			continue
		}
		w.v.objects[h], w.v.indexes[h] = o, index
	}
	return nil
}

// has reports whether the graph has the service. The view must contain its shard.
func (v *view) has(service fabric.Ref) bool {
	_, ok := v.shards[fabric.ShardOf(service)][service.String()]
	return ok
}

// without returns v without a service. Its objects stay until the next revision.
func (v *view) without(service fabric.Ref) *view {
	c := *v
	c.docs = map[fabric.Ref]fabric.Document{}
	for r, d := range v.docs {
		if r != service {
			c.docs[r] = d
		}
	}
	return &c
}
