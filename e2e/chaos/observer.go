// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// observer knows what was applied, what each node has confirmed, and every packet that arrived. It
// judges packets by these alone.
//
// A node enforces some revision between the one that it confirmed last and the newest that may be
// in force. A packet breaks the rule if none of these allows it, at the node to which it came since
// it came, or at the one from which it came since it was sent. While all nodes answer, changes wait
// for one another, so these are the graph in force and the one before.
type observer struct {
	mu        sync.Mutex
	endpoints map[netip.Addr]*endpoint // all that ever were
	revisions []*revision
	revoked   map[netip.Addr]uint64     // guests, and the list of revocations that has them
	confirmed map[string][]confirmation // by node, oldest first
	arrivals  []arrival                 // not judged yet
	judged    int

	violations []string
	pools      map[string]netip.Prefix // by node
}

// revision is a change of the graph that was asked for.
type revision struct {
	began    time.Time // when it was asked for; it may be in force from then on
	sequence uint64    // 0: not known
	void     bool      // it was refused, and is never in force
	rollback bool      // its content was in force before
	content
}

// confirmation is what a node said of itself at a time, or later by at most the way of the answer.
type confirmation struct {
	read        time.Time
	sequence    uint64 // of the revision that it enforces
	revocations uint64 // of the list that it heeds
}

func newObserver() *observer {
	return &observer{
		endpoints: map[netip.Addr]*endpoint{}, revoked: map[netip.Addr]uint64{},
		confirmed: map[string][]confirmation{}, pools: map[string]netip.Prefix{},
	}
}

// most is how many violations are described.
const most = 20

func (o *observer) violation(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.add(format, args...)
}

func (o *observer) add(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	switch len(o.violations) {
	case most:
		o.violations = append(o.violations, "and more")
	case most + 1:
	default:
		o.violations = append(o.violations, text)
	}
}

// found returns the violations so far.
func (o *observer) found() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.violations...)
}

func (o *observer) know(e *endpoint) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if old := o.endpoints[e.addr]; old != nil && old.alloc != e.alloc {
		o.add("%s has the address of %s, which has not rested yet", e, old)
	}
	o.endpoints[e.addr] = e
}

func (o *observer) seen(a arrival) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.arrivals = append(o.arrivals, a)
}

// asks notes that a revision is asked for.
func (o *observer) asks(c content) *revision {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := &revision{began: time.Now(), content: c}
	o.revisions = append(o.revisions, r)
	return r
}

// known notes what became of a revision: its sequence, or that it was refused.
func (o *observer) known(r *revision, sequence uint64, refused bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r.sequence, r.void = sequence, refused
}

// read notes which sequence a graph has that was read.
func (o *observer) read(sequence uint64, c content) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.revisions {
		if r.sequence == 0 && !r.void && !r.rollback && r.edition == c.edition {
			// Its own sequence is this one or an earlier one: others may have changed the other
			// domain since. What is too high permits too much, never too little.
			r.sequence = sequence
		}
	}
}

// hears takes what the nodes report. They enforced it before now.
func (o *observer) hears(s api.Status) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	addresses := map[netip.Addr]string{}
	for _, n := range s.Nodes {
		if n.Kind != fabric.KindWorkload {
			continue
		}
		o.confirms(n.Node, confirmation{now, n.Sequence, n.Revocations})
		o.pool(n)
		for _, e := range n.Endpoints {
			if other := addresses[e.IPv4]; other != "" && other != e.Endpoint {
				o.add("endpoints %s and %s both have the address %s", other, e.Endpoint, e.IPv4)
			}
			addresses[e.IPv4] = e.Endpoint
		}
	}
}

// confirms keeps what a node confirms if that is more than before.
func (o *observer) confirms(node string, c confirmation) {
	list := o.confirmed[node]
	if len(list) > 0 {
		last := list[len(list)-1]
		c.sequence, c.revocations = max(c.sequence, last.sequence), max(c.revocations, last.revocations)
		if c.sequence == last.sequence && c.revocations == last.revocations {
			return
		}
	}
	o.confirmed[node] = append(list, c)
}

// pool adds a violation if a node has another pool than before, or one that overlaps another's.
func (o *observer) pool(n api.NodeStatus) {
	if !n.Pool4.IsValid() {
		return
	}
	old, known := o.pools[n.Node]
	if known && old != n.Pool4 {
		o.add("%s has the pool %s, and had %s before", n.Node, n.Pool4, old)
	}
	o.pools[n.Node] = n.Pool4
	for other, p := range o.pools {
		if other != n.Node && p.Overlaps(n.Pool4) {
			o.add("the pools of %s and %s overlap: %s, %s", n.Node, other, n.Pool4, p)
		}
	}
}

// behind returns an error unless all these nodes have confirmed a sequence.
func (o *observer) behind(sequence uint64, nodes []string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, n := range nodes {
		if has := o.lowest(n, time.Now()).sequence; has < sequence {
			return fmt.Errorf("%s has confirmed sequence %d of %d", n, has, sequence)
		}
	}
	return nil
}

// revokes notes that an endpoint is revoked by a list.
func (o *observer) revokes(e *endpoint, list uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.revoked[e.addr] = list
}

// lowest returns what a node had confirmed before a time: it enforces this or something newer.
func (o *observer) lowest(node string, before time.Time) (c confirmation) {
	for _, one := range slices.Backward(o.confirmed[node]) {
		if one.read.Before(before) {
			return one
		}
	}
	return c
}

// allowed reports whether some revision that a node may have enforced allows a port that comes and
// goes: one that it may have been given until a time, not older than what it had confirmed before
// another.
func (o *observer) allowed(node string, since, until time.Time, bit int) bool {
	// The sequence grows with changes of the other domain as well, and a rollback to what is in
	// force leaves it as it is.
	confirmed, low := o.lowest(node, since).sequence, uint64(0)
	for _, r := range o.revisions {
		if r.sequence <= confirmed && !r.began.After(since) {
			low = max(low, r.sequence)
		}
	}
	for _, r := range o.revisions {
		sequence := r.sequence
		if sequence == 0 {
			sequence = math.MaxUint64
		}
		if !r.void && r.mask&(1<<bit) != 0 && sequence >= low && !r.began.After(until) {
			return true
		}
	}
	return false
}

// judge judges the packets that arrived.
func (o *observer) judge() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, a := range o.arrivals {
		if why := o.wrong(a); why != "" {
			sent := ""
			if !a.sent.IsZero() {
				sent = ", sent " + a.sent.Format(clockFormat)
			}
			o.add("a packet arrived that must not: %s %s:%d to %s port %d at %s%s: %s", protocolName(a.protocol), o.name(a.from), a.src, a.to, a.dst,
				a.at.Format(clockFormat), sent, why)
		}
	}
	o.judged += len(o.arrivals)
	o.arrivals = o.arrivals[:0]
}

const clockFormat = "15:04:05.000"

func (o *observer) name(a netip.Addr) string {
	if e := o.endpoints[a]; e != nil {
		return e.String()
	}
	return a.String()
}

// wrong says why a packet must not have arrived, or nothing.
func (o *observer) wrong(a arrival) string {
	from := o.endpoints[a.from]
	if from == nil {
		return "" // the node itself, or its DNS
	}
	isResponder := func(e *endpoint) bool { return e.service == near || e.service == far }
	port := a.dst // the responder's
	client := from
	switch {
	case a.dst == openedPort:
		return "a responder opened a flow"
	case isResponder(a.to) && !isResponder(from):
	case isResponder(from) && !isResponder(a.to):
		port, client = a.src, a.to
	default:
		return "no revision has a contract between these services"
	}
	if client.service == guest {
		if port != guestPort {
			return "no revision has a contract for this port"
		}
		if list := o.revoked[client.addr]; list > 0 && o.lowest(a.to.node, a.at).revocations >= list {
			return fmt.Sprintf("the guest was revoked by list %d, which %s heeded before", list, a.to.node)
		}
		return ""
	}
	bit := int(port) - togglePort
	switch {
	case port == steadyPort:
		return ""
	case bit < 0 || bit >= toggles:
		return "no revision has a contract for this port"
	case !o.allowed(a.to.node, a.at, a.at, bit):
		return fmt.Sprintf("%s had confirmed sequence %d before it came, and no revision since then allows it", a.to.node, o.lowest(a.to.node, a.at).sequence)
	case !a.sent.IsZero() && !o.allowed(from.node, a.sent, a.at, bit):
		return fmt.Sprintf("%s had confirmed sequence %d before it was sent, and no revision since then allows it", from.node, o.lowest(from.node, a.sent).sequence)
	}
	return ""
}

// history describes what was asked for, and what each node confirmed when.
func (o *observer) history() (lines []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.revisions {
		text := fmt.Sprintf("%s asked for sequence %d: %s", r.began.Format(clockFormat), r.sequence, r.content)
		switch {
		case r.void:
			text += ", refused"
		case r.sequence == 0:
			text += ", without an answer"
		case r.rollback:
			text += ", a rollback"
		}
		lines = append(lines, text)
	}
	for node, list := range o.confirmed {
		for _, c := range list {
			lines = append(lines, fmt.Sprintf("%s %s had confirmed sequence %d, list %d", c.read.Format(clockFormat), node, c.sequence, c.revocations))
		}
	}
	slices.Sort(lines)
	return lines
}
