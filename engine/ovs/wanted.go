// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	of "github.com/sif-project/sif/engine/openflow"
)

// wanted is a State, indexed so that going on to the next State takes time only for what differs,
// apart from one comparison of the two in order.
type wanted struct {
	zone     uint16
	base     []of.Flow               // of every state
	state    State                   // in order of numbers
	prefixes map[netip.Prefix]uint64 // the endpoint that has it
	policy   map[of.Key][]of.Flow    // flows of entries that admit the same packets, lowest entry first
	most     uint32                  // meters that the switch offers
	used     map[uint32]int          // meters of endpoints, and how many use each
}

func newWanted(zone uint16) *wanted {
	return &wanted{zone: zone, base: baseFlows(zone), prefixes: map[netip.Prefix]uint64{}, policy: map[of.Key][]of.Flow{}, used: map[uint32]int{}}
}

// change is how one State differs from the one before: before are the parts that go or are
// replaced, after those that come or replace.
type change struct{ before, after, next State }

// change compares the next state with the current one. What a switch cannot have is left out of the
// change, and returned.
func (w *wanted) change(next State) (c change, left []LeftOut) {
	c.next = next
	c.before.Ports, c.after.Ports, left = differing(w.state.Ports, &c.next.Ports, byPort, left)
	c.before.Endpoints, c.after.Endpoints, left = differing(w.state.Endpoints, &c.next.Endpoints, byEndpoint, left)
	c.before.Entries, c.after.Entries, left = differing(w.state.Entries, &c.next.Entries, byEntry, left)
	c.before.Ways, c.after.Ways, left = differing(w.state.Ways, &c.next.Ways, byWay, left)
	c.before.Moved, c.after.Moved, left = differing(w.state.Moved, &c.next.Moved, byCourse, left)
	c.before.Gates, c.after.Gates, left = differing(w.state.Gates, &c.next.Gates, byGate, left)
	return c, w.settleOwners(&c, left)
}

// settleOwners leaves out endpoints with a prefix that another endpoint has.
func (w *wanted) settleOwners(c *change, left []LeftOut) []LeftOut {
	owners := map[netip.Prefix]uint64{}
	for _, e := range c.before.Endpoints {
		for _, prefix := range e.Prefixes {
			owners[prefix] = 0
		}
	}
	owner := func(prefix netip.Prefix) uint64 {
		if id, changes := owners[prefix]; changes {
			return id
		}
		return w.prefixes[prefix]
	}
	out := map[uint64]bool{}
	for _, e := range c.after.Endpoints {
		i := slices.IndexFunc(e.Prefixes, func(p netip.Prefix) bool { return owner(p) != 0 && owner(p) != e.ID })
		if i >= 0 {
			err := fmt.Errorf("endpoint %d: %s belongs to endpoint %d", e.ID, e.Prefixes[i], owner(e.Prefixes[i]))
			left, out[e.ID] = append(left, LeftOut{Endpoint: e.ID, Err: err}), true
			continue
		}
		for _, prefix := range e.Prefixes {
			owners[prefix] = e.ID
		}
	}
	if len(out) > 0 {
		isOut := func(e Endpoint) bool { return out[e.ID] }
		c.after.Endpoints = slices.DeleteFunc(c.after.Endpoints, isOut)
		c.next.Endpoints = slices.DeleteFunc(slices.Clone(c.next.Endpoints), isOut)
	}
	return left
}

// apply makes c's next state the current one.
func (w *wanted) apply(c change) {
	for _, e := range c.before.Endpoints {
		for _, prefix := range e.Prefixes {
			delete(w.prefixes, prefix)
		}
	}
	for _, e := range c.after.Endpoints {
		for _, prefix := range e.Prefixes {
			w.prefixes[prefix] = e.ID
		}
	}
	byCookie := func(a, b of.Flow) int { return cmp.Compare(a.Cookie, b.Cookie) }
	for _, e := range c.before.Entries {
		for _, f := range e.policyFlows() {
			rest := slices.DeleteFunc(w.policy[f.Key], func(o of.Flow) bool { return o.Cookie == f.Cookie })
			if w.policy[f.Key] = rest; len(rest) == 0 {
				delete(w.policy, f.Key)
			}
		}
	}
	for _, e := range c.after.Entries {
		for _, f := range e.policyFlows() {
			list := w.policy[f.Key]
			if i, found := slices.BinarySearchFunc(list, f, byCookie); !found {
				w.policy[f.Key] = slices.Insert(list, i, f)
			}
		}
	}
	was := w.state.Rates
	if w.state = c.next; w.state.Rates != was {
		w.recount()
		return
	}
	w.count(c.before.Endpoints, -1)
	w.count(c.after.Endpoints, 1)
}

// flowsBefore returns the flows that a change may alter, before it is applied.
func (w *wanted) flowsBefore(c change) []of.Flow { return w.collect(nil, c.before, w.policyKeys(c)) }

// flowsAfter returns what these flows are after the change was applied.
func (w *wanted) flowsAfter(c change) []of.Flow { return w.collect(nil, c.after, w.policyKeys(c)) }

// flows returns all flows of the current state.
func (w *wanted) flows() map[of.Key]of.Flow {
	list := w.collect(w.base, w.state, nil)
	flows := make(map[of.Key]of.Flow, len(list)+len(w.policy))
	put(flows, list)
	for key, same := range w.policy {
		flows[key] = same[0]
	}
	return flows
}

// policyKeys returns the keys of the policy flows that a change may alter.
func (w *wanted) policyKeys(c change) map[of.Key]bool {
	keys := map[of.Key]bool{}
	for _, list := range [][]Entry{c.before.Entries, c.after.Entries} {
		for _, e := range list {
			for _, f := range e.policyFlows() {
				keys[f.Key] = true
			}
		}
	}
	return keys
}

// collect appends the flows of a state's parts to a list, which stays as it is, and, of the policy,
// those with the given keys. No two of them have the same key.
func (w *wanted) collect(list []of.Flow, s State, policy map[of.Key]bool) []of.Flow {
	flows := make([]of.Flow, len(list), len(list)+9*len(s.Ports)+5*len(s.Endpoints)+3*len(s.Entries)+len(s.Ways)+len(s.Moved)+len(s.Gates)+len(policy))
	copy(flows, list)
	for _, p := range s.Ports {
		flows = append(flows, p.flows()...)
	}
	m := w.meterage()
	for i := range s.Endpoints {
		flows = s.Endpoints[i].flows(flows, m.ofEndpoint(&s.Endpoints[i]))
	}
	for i := range s.Gates {
		if meter := m.ofGate(&s.Gates[i]); meter != 0 {
			flows = append(flows, s.Gates[i].flow(meter))
		}
	}
	for _, e := range s.Entries {
		flows = append(flows, e.stateFlows()...)
	}
	for _, way := range s.Ways {
		flows = append(flows, way.flow())
	}
	for _, course := range s.Moved {
		flows = append(flows, course.flow())
	}
	for key := range policy {
		if same := w.policy[key]; len(same) > 0 {
			flows = append(flows, same[0])
		}
	}
	return flows
}

func put(flows map[of.Key]of.Flow, more []of.Flow) {
	for _, f := range more {
		flows[f.Key] = f
	}
}

// part is a pointer to a part of a State.
type part[T any] interface {
	*T
	name() string
	endpoint() uint64 // the number of an endpoint, or 0
	equal(*T) bool
	check() error
}

// differing compares two lists, of which have is in order of numbers and want is put in that order.
// It returns the elements of have that are not in want, and the elements of want that are not in
// have, which it checks: those that a switch cannot have it takes out of want and adds to left.
// Elements that are the same in both, nearly all as a rule, cost one comparison each.
func differing[T any, P part[T]](have []T, want *[]T, byNumber func(a, b T) int, left []LeftOut) (before, after []T, _ []LeftOut) {
	list, h := *want, 0
	var out []int // indexes in list
	for i := 0; i < len(list); {
		w := P(&list[i])
		if h < len(have) && w.equal(&have[h]) {
			i, h = i+1, h+1
			continue
		}
		err := w.check()
		if i > 0 {
			switch order := byNumber(list[i-1], *w); {
			case order == 0:
				err = fmt.Errorf("%s is in the state twice", w.name())
			case order > 0:
				*want = slices.Clone(list) // the caller's list is not ours to sort
				slices.SortFunc(*want, byNumber)
				return differing[T, P](have, want, byNumber, left)
			}
		}
		if err != nil {
			left, out = append(left, LeftOut{Endpoint: w.endpoint(), Err: err}), append(out, i)
			i++
			continue
		}
		if h < len(have) {
			if order := byNumber(have[h], *w); order <= 0 {
				before = append(before, have[h])
				h++
				if order < 0 {
					continue
				}
			}
		}
		after = append(after, *w)
		i++
	}
	if len(out) > 0 {
		*want = nil
		for i := range list {
			if !slices.Contains(out, i) {
				*want = append(*want, list[i])
			}
		}
	}
	return append(before, have[h:]...), after, left
}
