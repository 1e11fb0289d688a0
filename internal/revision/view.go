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

// view is a verified revision as far as a set of services needs it. It is
// never changed, only replaced.
type view struct {
	signed  fabric.Signed
	pointer fabric.Pointer
	root    fabric.Root
	shards  map[int]fabric.Shard           // those of the interests
	docs    map[fabric.Ref]fabric.Document // of the interests; without edges if the graph lacks the service
	objects map[fabric.Hash][]byte         // verified bytes of all the above

	// base is the pointer whose root was read; since are those after it, up to
	// signed, that touched no interest, so that nothing else had to be read.
	base  fabric.Signed
	since []fabric.Signed
}

// maxSince bounds how many pointers are kept before a root is read again.
const maxSince = 64

// follow returns v at the next pointer, if that pointer itself says that it
// touches none of the interests. The caller has verified it.
func (v *view) follow(signed fabric.Signed, next fabric.Pointer, interests []fabric.Ref) (*view, bool) {
	if next.Sequence != v.pointer.Sequence+1 || next.Previous != v.pointer.Root || len(next.Touched) == 0 || len(v.since) >= maxSince {
		return nil, false
	}
	for _, r := range interests {
		if _, held := v.docs[r]; !held || slices.Contains(next.Touched, r) {
			return nil, false
		}
	}
	c := *v
	c.signed, c.pointer, c.docs = signed, next, maps.Clone(v.docs)
	c.since = append(slices.Clip(v.since), signed)
	return &c, true
}

// source yields the bytes of objects, unchecked; what it lacks is not in the
// result.
type source func(ctx context.Context, hashes []fabric.Hash) (map[fabric.Hash][]byte, error)

// build verifies what the interests need of the pointer's root, and returns
// it as a view. Objects that held has are not fetched again.
func build(ctx context.Context, signed fabric.Signed, pointer fabric.Pointer, interests []fabric.Ref, held map[fabric.Hash][]byte, from source) (*view, error) {
	v := &view{
		signed:  signed,
		base:    signed,
		pointer: pointer,
		shards:  map[int]fabric.Shard{},
		docs:    map[fabric.Ref]fabric.Document{},
		objects: map[fabric.Hash][]byte{},
	}
	problems, err := v.walk(ctx, interests, held, from)
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

// walk fills v from root over shards to documents, level by level. It returns
// a text ("document 1a2b of getaway-app/news-gw in Consul was altered: ...")
// for every object that does not verify; an error means that the source
// failed.
func (v *view) walk(ctx context.Context, interests []fabric.Ref, held map[fabric.Hash][]byte, from source) (problems []string, err error) {
	defer func() { slices.Sort(problems) }()
	level := func(wanted map[fabric.Hash]string, take func(h fabric.Hash, data []byte) error) error {
		var missing []fabric.Hash
		got := map[fabric.Hash][]byte{}
		for h := range wanted {
			if data, ok := held[h]; ok {
				got[h] = data
			} else {
				missing = append(missing, h)
			}
		}
		if len(missing) > 0 {
			found, err := from(ctx, missing)
			if err != nil {
				return err
			}
			for h, data := range found {
				got[h] = data
			}
		}
		for h, name := range wanted {
			data, err := checked(got, h)
			if err == nil {
				err = take(h, data)
			}
			if err != nil {
				problems = append(problems, fmt.Sprintf("%s in Consul %s", name, err))
				continue
			}
			v.objects[h] = data
		}
		return nil
	}

	err = level(map[fabric.Hash]string{v.pointer.Root: fmt.Sprintf("root %s of revision %d", v.pointer.Root, v.pointer.Sequence)},
		func(h fabric.Hash, data []byte) error {
			if err := fabric.DecodeObject(data, h, &v.root); err != nil {
				return err
			}
			if len(v.root.Shards) != fabric.ShardCount {
				return fmt.Errorf("lists %d shards instead of %d", len(v.root.Shards), fabric.ShardCount)
			}
			return nil
		})
	if err != nil || len(problems) > 0 {
		return problems, err
	}

	shards, numbers := map[fabric.Hash]string{}, map[fabric.Hash][]int{}
	for _, r := range interests {
		n := fabric.ShardOf(r)
		h := v.root.Shards[n]
		if h.IsZero() {
			v.shards[n] = fabric.Shard{}
			continue
		}
		shards[h] = fmt.Sprintf("index shard %s with %s", h, r)
		if !slices.Contains(numbers[h], n) {
			numbers[h] = append(numbers[h], n)
		}
	}
	err = level(shards, func(h fabric.Hash, data []byte) error {
		var s fabric.Shard
		if err := fabric.DecodeObject(data, h, &s); err != nil {
			return err
		}
		for _, n := range numbers[h] {
			v.shards[n] = s
		}
		return nil
	})
	if err != nil {
		return problems, err
	}

	docs, services := map[fabric.Hash]string{}, map[fabric.Hash]fabric.Ref{}
	for _, r := range interests {
		shard, ok := v.shards[fabric.ShardOf(r)]
		if !ok {
			continue // the shard is a problem already
		}
		h, ok := shard[r.String()]
		if !ok {
			v.docs[r] = fabric.Document{Service: r}
			continue
		}
		docs[h] = fmt.Sprintf("document %s of %s", h, r)
		services[h] = r
	}
	err = level(docs, func(h fabric.Hash, data []byte) error {
		var d fabric.Document
		if err := fabric.DecodeObject(data, h, &d); err != nil {
			return err
		}
		if d.Service != services[h] {
			return fmt.Errorf("is of service %s", d.Service)
		}
		v.docs[d.Service] = d
		return nil
	})
	return problems, err
}

// has reports whether the graph of v has the service. Its shard is known.
func (v *view) has(service fabric.Ref) bool {
	_, ok := v.shards[fabric.ShardOf(service)][service.String()]
	return ok
}

// without returns v less a service. Objects stay until the next revision.
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
