// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/enforced"
	"github.com/sif-project/sif/internal/inspect/verify"
)

const (
	// agreementInterval is how often the nodes' reports are compared with what they must hold.
	agreementInterval = 2 * time.Second
	// settling is the time after a change of what a node must hold, during which it may differ.
	settling = 5 * time.Second
	// comparedTimeout is the age from which a node's last comparison is a problem.
	comparedTimeout = 20 * time.Second
	// differencesShown is how many differences of a node the status names.
	differencesShown = 3
)

// agreement compares what the nodes report that they hold with what all admitted endpoints, the
// graph and the roster make of it: the comparison of `sif verify`, as a digest. Only where the
// digests differ, it has the node read back everything, and lists the differences.
type agreement struct {
	source enforced.Source

	inputs  uint64    // of the last digests
	expires time.Time // when these digests end, zero if never
	want    map[fabric.NodeID]string
	since   map[fabric.NodeID]time.Time // when the digest of a node became that

	mu          sync.Mutex
	differences map[fabric.NodeID][]verify.Difference
}

func newAgreement(source enforced.Source) *agreement {
	return &agreement{source: source, want: map[fabric.NodeID]string{}, since: map[fabric.NodeID]time.Time{}}
}

// run compares until ctx ends. In a large fabric it takes at most a tenth of a core.
func (a *agreement) run(ctx context.Context) error {
	pause := agreementInterval
	for {
		select {
		case <-ctx.Done():
			a.set(nil)
			return nil
		case <-time.After(pause):
		}
		found, busy := a.compare(ctx)
		if ctx.Err() == nil {
			a.set(found)
		}
		pause = max(agreementInterval, 10*busy)
	}
}

func (a *agreement) set(found map[fabric.NodeID][]verify.Difference) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.differences = found
}

// compare returns the differences of the nodes that have some, and how long it computed. That it
// waited for a node does not count: what it found would else stay in the status for ten times as
// long.
func (a *agreement) compare(ctx context.Context) (found map[fabric.NodeID][]verify.Difference, busy time.Duration) {
	began := time.Now()
	f, err := a.source.Declared(ctx)
	if err != nil || f.Graph == nil {
		return nil, time.Since(began)
	}
	f.Now = time.Now()
	a.expect(f)
	suspects := a.suspects(f)
	busy = time.Since(began)
	if len(suspects) == 0 {
		return nil, busy
	}
	f, err = enforced.Read(ctx, a.source, func(verify.Fabric) ([]fabric.NodeID, error) { return suspects, nil })
	if err != nil {
		return nil, busy
	}
	began = time.Now()
	found = map[fabric.NodeID][]verify.Difference{}
	for _, d := range verify.Compare(f).Differences {
		if id, err := fabric.ParseNodeID(d.Node); err == nil && slices.Contains(suspects, id) {
			found[id] = append(found[id], d)
		}
	}
	return found, busy + time.Since(began)
}

// expect computes what each node must hold, if anything that it follows from has changed.
func (a *agreement) expect(f verify.Fabric) {
	inputs := inputsOf(f)
	if inputs == a.inputs && (a.expires.IsZero() || f.Now.Before(a.expires)) {
		return
	}
	a.inputs, a.expires = inputs, verify.NextExpiry(f.Graph, f.Now)
	want := verify.Digests(f)
	for node, digest := range want {
		if a.want[node] != digest {
			a.since[node] = f.Now
		}
	}
	maps.DeleteFunc(a.since, func(node fabric.NodeID, _ time.Time) bool { return want[node] == "" })
	a.want = want
}

// inputsOf is different when what a node must hold may be different.
func inputsOf(f verify.Fabric) uint64 {
	h := fnv.New64a()
	fmt.Fprintln(h, f.Pointer.Sequence, f.Pointer.Root)
	for _, n := range f.Status.Nodes {
		fmt.Fprintln(h, n.ID(), n.Kind, n.NoSwitch, n.Pool4, n.Pool6, n.Sequence, n.Root)
	}
	for _, e := range verify.Endpoints(f.Status, f.Now) {
		fmt.Fprintln(h, e.Endpoint, e.Host(), e.IPv4, e.IPv6, e.Identity().Key(), e.Checks)
	}
	return h.Sum64()
}

// suspects returns the nodes whose last comparison, made after they had time to follow, found
// something else than they must hold.
func (a *agreement) suspects(f verify.Fabric) []fabric.NodeID {
	var list []fabric.NodeID
	for _, n := range f.Status.Nodes {
		want, follows := a.want[n.ID()]
		if !follows || n.NoSwitch || n.Enforced == nil || n.Enforced.Digest == want {
			continue
		}
		if comparedAt(n).After(a.since[n.ID()].Add(settling)) {
			list = append(list, n.ID())
		}
	}
	return list
}

func comparedAt(n api.NodeStatus) time.Time { return n.Reported.Add(-n.Enforced.Age) }

// judge adds what was found to a status: to each node its differences, and to each endpoint the
// nodes that do not hold it.
func (a *agreement) judge(s *api.Status) {
	a.mu.Lock()
	found := a.differences
	a.mu.Unlock()
	absent := map[string][]string{} // by the entry of an address: the nodes without it
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if e := n.Enforced; e != nil && e.Age > comparedTimeout {
			n.Degraded = append(slices.Clip(n.Degraded), fmt.Sprintf("its data path was last compared %s before its report", e.Age.Round(time.Second)))
		}
		if e := n.Enforced; e != nil && e.Repaired > 0 {
			n.Degraded = append(slices.Clip(n.Degraded), fmt.Sprintf("its data path differed from what it must hold in %d places, which were repaired; its log names them", e.Repaired))
		}
		list := found[n.ID()]
		if len(list) == 0 || n.NoSwitch {
			continue
		}
		var texts []string
		for _, d := range list {
			if d.Kind == verify.Missing {
				absent[d.Entry] = append(absent[d.Entry], n.ID().String())
			}
			if len(texts) < differencesShown {
				texts = append(texts, strings.TrimPrefix(d.String(), d.Node+" "))
			}
		}
		more := ""
		if len(list) > len(texts) {
			more = fmt.Sprintf("; and %d more", len(list)-len(texts))
		}
		n.Degraded = append(slices.Clip(n.Degraded), "it does not hold what it must: "+strings.Join(texts, "; ")+more+"; sif verify lists all")
	}
	if len(absent) == 0 {
		return
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		n.Endpoints = slices.Clone(n.Endpoints)
		for j := range n.Endpoints {
			e := &n.Endpoints[j]
			holders := append(slices.Clone(absent["address "+e.IPv4.String()]), absent["address "+e.IPv6.String()]...)
			slices.Sort(holders)
			for _, node := range slices.Compact(holders) {
				e.Pending, e.InForce = append(slices.Clip(e.Pending), node+": it does not hold it"), false
			}
		}
	}
}
