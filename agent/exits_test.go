// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/wellknown"
)

// zoneExits returns the exits of a zone with n processors, all live.
func zoneExits(n int) []daemon.Exit {
	var list []daemon.Exit
	for i := range n {
		list = append(list, daemon.Exit{Processor: fabric.NodeID{Zone: "z1", Name: fmt.Sprintf("p%d", i)}, Mark: wellknown.ExitMark(i), Live: true})
	}
	return list
}

func everybody(fabric.NodeID) bool { return true }

func endpointIDs(n int) []string {
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprintf("e%d", i))
	}
	return ids
}

// acquainted returns exits of which all engines know all endpoints.
func acquainted(list []daemon.Exit, ids []string) *exits {
	x := newExits()
	for _, e := range list {
		x.said(e.Processor, true, true)
		for _, id := range ids {
			x.took(e.Processor, id)
		}
	}
	return x
}

// Laws: an endpoint has an exit if any can be one; the exit is one of the best; one that dies moves
// only the endpoints that had it; and what it does not depend on does not change it.
func TestChoiceOfExits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list, ids := zoneExits(rapid.IntRange(1, 4).Draw(t, "exits")), endpointIDs(20)
		x := acquainted(list, ids)
		connected := map[fabric.NodeID]bool{}
		for i := range list {
			p := list[i].Processor
			list[i].Live = rapid.Bool().Draw(t, "live")
			list[i].Silent = !list[i].Live
			connected[p] = rapid.Bool().Draw(t, "connected")
			x.said(p, rapid.IntRange(0, 3).Draw(t, "leads outside") > 0, rapid.Bool().Draw(t, "far"))
			for _, id := range ids {
				if rapid.IntRange(0, 4).Draw(t, "unknown") == 0 {
					x.lacks(p, id)
				}
			}
		}
		speaks := func(p fabric.NodeID) bool { return connected[p] }
		c := x.choose(time.Now(), list, speaks, ids)
		for _, id := range ids {
			usable, lively, best := map[uint32]bool{}, map[uint32]bool{}, map[uint32]bool{}
			for _, e := range list {
				usable[e.Mark] = x.ready[e.Processor] && x.knows[e.Processor][id]
				lively[e.Mark] = usable[e.Mark] && e.Live && connected[e.Processor]
				best[e.Mark] = lively[e.Mark] && x.far[e.Processor]
			}
			any := func(m map[uint32]bool) bool {
				for _, is := range m {
					if is {
						return true
					}
				}
				return false
			}
			mark, has := c.marks[id]
			must.Eq(t, any(usable), has)
			must.Eq(t, any(lively), c.lively[id])
			if has {
				must.True(t, usable[mark])
				must.Eq(t, any(lively), lively[mark])
				must.Eq(t, any(best), best[mark])
				must.SliceContains(t, c.kept, mark)
			}
		}
		dead := rapid.IntRange(0, len(list)-1).Draw(t, "dead")
		was := list[dead].Live && speaks(list[dead].Processor)
		list[dead].Live, list[dead].Silent = false, true
		after := x.choose(time.Now(), list, speaks, ids)
		for _, id := range ids {
			if c.lively[id] && c.marks[id] != list[dead].Mark {
				must.Eq(t, c.marks[id], after.marks[id])
			}
			must.True(t, was || c.lively[id] == after.lively[id])
		}
	})
}

// Several exits share the endpoints.
func TestExitsAreShared(t *testing.T) {
	list, ids := zoneExits(2), endpointIDs(200)
	count := map[uint32]int{}
	for _, mark := range acquainted(list, ids).choose(time.Now(), list, everybody, ids).marks {
		count[mark]++
	}
	must.MapLen(t, 2, count)
	for _, n := range count {
		must.Between(t, 60, n, 140)
	}
}

// New flows leave a silent exit at once; those that exist keep it for as long as an engine may take
// to start again.
func TestFlowsLinger(t *testing.T) {
	list, ids, now := zoneExits(2), endpointIDs(20), time.Now()
	x := acquainted(list, ids)
	list[0].Live, list[0].Silent = false, true
	for _, after := range []time.Duration{0, lingering / 2, lingering - 1} {
		c := x.choose(now.Add(after), list, everybody, ids)
		must.Eq(t, []uint32{list[0].Mark, list[1].Mark}, c.kept)
		for _, id := range ids {
			must.Eq(t, list[1].Mark, c.marks[id])
		}
	}
	must.Eq(t, []uint32{list[1].Mark}, x.choose(now.Add(lingering), list, everybody, ids).kept)
	list[0].Live, list[0].Silent = true, false
	must.Len(t, 2, x.choose(now.Add(time.Hour), list, everybody, ids).kept)
	// What the engine itself says ends them.
	x.said(list[0].Processor, false, false)
	must.Eq(t, []uint32{list[1].Mark}, x.choose(now.Add(time.Hour), list, everybody, ids).kept)
	// The last one is kept, whether it answers or not.
	list[1].Live, list[1].Silent = false, true
	for _, after := range []time.Duration{time.Hour, 2 * time.Hour} {
		c := x.choose(now.Add(after), list, everybody, ids)
		must.Eq(t, []uint32{list[1].Mark}, c.kept)
		must.Eq(t, list[1].Mark, c.marks[ids[0]])
		must.False(t, c.lively[ids[0]])
	}
}

// A processor without a route to the outside is the exit only while no other can be it.
func TestExitsWithoutRoute(t *testing.T) {
	list, ids := zoneExits(2), endpointIDs(20)
	x := acquainted(list, ids)
	both := x.choose(time.Now(), list, everybody, ids)
	must.Len(t, 2, both.kept)
	x.said(list[0].Processor, true, false)
	c := x.choose(time.Now(), list, everybody, ids)
	for _, id := range ids {
		must.Eq(t, list[1].Mark, c.marks[id])
	}
	must.Eq(t, both.kept, c.kept, must.Sprint("flows that exist keep theirs"))
	x.said(list[1].Processor, true, false)
	must.Eq(t, both, x.choose(time.Now(), list, everybody, ids))
	x.said(list[1].Processor, true, true)
	list[1].Live, list[1].Silent = false, true
	for id, mark := range x.choose(time.Now(), list, everybody, ids).marks {
		must.Eq(t, list[0].Mark, mark, must.Sprint(id))
	}
}

// After a restart of the agent, endpoints keep their exits before any engine is heard.
func TestExitsAreResumed(t *testing.T) {
	list, ids := zoneExits(2), endpointIDs(20)
	before := acquainted(list, ids).choose(time.Now(), list, everybody, ids)
	for i := range list {
		list[i].Live = false // not known yet
	}
	x := newExits()
	x.resume(list, before.kept, before.marks)
	after := x.choose(time.Now(), list, func(fabric.NodeID) bool { return false }, ids)
	must.Eq(t, before.marks, after.marks)
	must.Eq(t, before.kept, after.kept)
}

// Engines say to agents of their zone what they are as exits, and an endpoint is known to those
// that have its request.
func TestEnginesTellOfTheirExits(t *testing.T) {
	e, en, f := testEngines(t)
	moved := make(chan bool, 9)
	e.moved = func() { moved <- true }
	e.put(t, "a")
	e.put(t, "b")
	f.exit, f.refuse = true, "b"
	must.NoError(t, e.introduce(t.Context(), en))
	<-moved
	must.True(t, e.agent.exits.ready[en.id])
	must.Eq(t, map[string]bool{"a": true}, e.agent.exits.knows[en.id])
	f.mu.Lock()
	f.holds, f.refuse = map[string]bool{}, "" // it has lost everything
	f.mu.Unlock()
	must.NoError(t, e.sync(t.Context(), en))
	must.Eq(t, map[string]bool{"a": true, "b": true}, e.agent.exits.knows[en.id])
	e.withdraw(t.Context(), endpoint{ID: "b", Attachment: at("b")})
	must.Eq(t, map[string]bool{"a": true}, e.agent.exits.knows[en.id])
	f.far = true
	must.NoError(t, e.sync(t.Context(), en))
	<-moved
	must.True(t, e.agent.exits.far[en.id])
	f.exit, f.far = false, false
	must.NoError(t, e.sync(t.Context(), en))
	<-moved
	must.False(t, e.agent.exits.ready[en.id])
}

// An engine that hangs is not waited for once its silence is known, unless there is no other.
func TestSilentEngineIsNotWaitedFor(t *testing.T) {
	e, _, _ := testEngines(t)
	e.put(t, "new")
	hangs := make(chan struct{})
	defer close(hangs)
	second := &fakeEngine{holds: map[string]bool{}, before: func(string, string) { <-hangs }}
	id := fabric.NodeID{Zone: "aws1", Name: "p2"}
	e.conns[id] = &engine{id: id, conn: second}
	e.silent = func(p fabric.NodeID) bool { return p == id }
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	pending, err := e.requestConnectivity(ctx, at("new")) // hangs with it if it waits
	must.NoError(t, err)
	must.Eq(t, []string{"aws1/p2: it does not answer"}, pending)
	delete(e.conns, fabric.NodeID{Zone: "aws1", Name: "p1"})
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	pending, err = e.requestConnectivity(short, at("new"))
	must.NoError(t, err)
	must.Len(t, 1, pending)
}
