// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/daemon"
)

// lingering is how long flows keep an exit that does not answer: longer than its engine takes to
// start again, during which the switch goes on. New flows leave it at once.
const lingering = 15 * time.Second

// exits remembers what the engines of the zone said about their switches as exits, and which
// endpoints each of them knows. What was true is true until the engine itself says otherwise.
type exits struct {
	mu    sync.Mutex
	ready map[fabric.NodeID]bool            // its switch leads to the outside
	far   map[fabric.NodeID]bool            // and its machine has a route there
	knows map[fabric.NodeID]map[string]bool // the endpoints whose requests it has taken
	since map[fabric.NodeID]time.Time       // when it was found silent
}

func newExits() *exits {
	return &exits{ready: map[fabric.NodeID]bool{}, far: map[fabric.NodeID]bool{}, knows: map[fabric.NodeID]map[string]bool{}, since: map[fabric.NodeID]time.Time{}}
}

// said records whether an engine's switch leads to the outside and whether its machine has a route
// there, and reports whether that is new.
func (x *exits) said(engine fabric.NodeID, ready, far bool) (changed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	changed = x.ready[engine] != ready || x.far[engine] != far
	x.ready[engine], x.far[engine] = ready, far
	return changed
}

// took records that an engine has taken the request of an endpoint, and reports whether that is
// new.
func (x *exits) took(engine fabric.NodeID, endpoint string) (changed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	known := x.knows[engine]
	if known == nil {
		known = map[string]bool{}
		x.knows[engine] = known
	}
	changed = !known[endpoint]
	known[endpoint] = true
	return changed
}

// lacks records that an engine does not know endpoints.
func (x *exits) lacks(engine fabric.NodeID, endpoints ...string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, id := range endpoints {
		delete(x.knows[engine], id)
	}
}

// of returns the processors that can be the exit of an endpoint, in order.
func (x *exits) of(endpoint string) []fabric.NodeID {
	x.mu.Lock()
	defer x.mu.Unlock()
	var list []fabric.NodeID
	for engine, known := range x.knows {
		if x.ready[engine] && known[endpoint] {
			list = append(list, engine)
		}
	}
	slices.SortFunc(list, fabric.CompareNodeIDs)
	return list
}

// ended forgets an endpoint.
func (x *exits) ended(endpoint string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, known := range x.knows {
		delete(known, endpoint)
	}
}

// resume takes from the maps which exits an earlier agent had chosen: their engines are asked
// later, and until then they know the endpoints that they knew.
func (x *exits) resume(list []daemon.Exit, marks []uint32, chosen map[string]uint32) {
	for _, e := range list {
		was := false // the exit of any
		for endpoint, mark := range chosen {
			if mark == e.Mark {
				x.took(e.Processor, endpoint)
				was = true
			}
		}
		if was || slices.Contains(marks, e.Mark) {
			x.said(e.Processor, true, was)
		}
	}
}

// choice is by which exits flows to the outside leave.
type choice struct {
	marks map[string]uint32 // of new flows, by endpoint; an endpoint without an exit is missing
	kept  []uint32          // of flows that exist, in order
	// lively are the endpoints whose exit answers.
	lively map[string]bool
}

// choose chooses the exits of endpoints: each one's among the processors that lead to the outside,
// know the endpoint, answer, and whose engine is connected. Those that are being drained, and those
// whose machine has no route there, come after the others. If there are none, choose chooses among
// those that did so, because a switch goes on while its engine is away, and nobody else could carry
// the flows.
func (x *exits) choose(now time.Time, list []daemon.Exit, connected func(fabric.NodeID) bool, endpoints []string) choice {
	x.mu.Lock()
	defer x.mu.Unlock()
	marks := map[fabric.NodeID]uint32{}
	c := choice{marks: map[string]uint32{}, lively: map[string]bool{}}
	var kept []uint32
	var ready, lively, far, best []daemon.Exit
	for _, e := range list {
		marks[e.Processor] = e.Mark
		if !x.ready[e.Processor] {
			continue
		}
		ready = append(ready, e)
		if e.Live && connected(e.Processor) {
			lively = append(lively, e)
			if x.far[e.Processor] {
				far = append(far, e)
				if !e.Draining {
					best = append(best, e)
				}
			}
		}
		if !e.Silent {
			delete(x.since, e.Processor)
		} else if x.since[e.Processor].IsZero() {
			x.since[e.Processor] = now
		}
		if !e.Silent || now.Sub(x.since[e.Processor]) < lingering {
			kept = append(kept, e.Mark)
		}
	}
	among := func(candidates []daemon.Exit, endpoint string) (fabric.NodeID, bool) {
		var knowing []fabric.NodeID
		for _, e := range candidates {
			if x.knows[e.Processor][endpoint] {
				knowing = append(knowing, e.Processor)
			}
		}
		return desired.ChooseExit(knowing, endpoint)
	}
	for _, id := range endpoints {
		p, ok := among(best, id)
		for _, candidates := range [][]daemon.Exit{far, lively} {
			if !ok {
				p, ok = among(candidates, id)
			}
		}
		if c.lively[id] = ok; !ok {
			p, ok = among(ready, id)
		}
		if ok {
			c.marks[id] = marks[p]
			kept = append(kept, marks[p])
		}
	}
	slices.Sort(kept)
	c.kept = slices.Compact(kept)
	return c
}

// chooseExits chooses the exits of the node's endpoints.
func (a *Agent) chooseExits(endpoints []endpoint) choice {
	var ids []string
	for _, ep := range endpoints {
		ids = append(ids, ep.ID)
	}
	return a.exits.choose(time.Now(), a.node.Exits(), a.engines.speaks, ids)
}

// exitOf returns the processor by which new flows of an endpoint leave, and false if there is none.
func (a *Agent) exitOf(ep endpoint) (fabric.NodeID, bool) {
	mark, ok := a.chooseExits([]endpoint{ep}).marks[ep.ID]
	for _, e := range a.node.Exits() {
		if ok && e.Mark == mark {
			return e.Processor, true
		}
	}
	return fabric.NodeID{}, false
}

// moveExits has new flows leave by other exits, if need be.
func (a *Agent) moveExits() { a.node.Degrade("data path", a.reprogram.Call()) }

// silent reports whether a processor does not answer by its link.
func (a *Agent) silent(processor fabric.NodeID) bool {
	return slices.ContainsFunc(a.node.Exits(), func(e daemon.Exit) bool { return e.Processor == processor && e.Silent })
}

// resumeExits lets the endpoints keep the exits that an earlier agent chose.
func (a *Agent) resumeExits() error {
	marks, err := a.kernel.Exits()
	if err != nil {
		return err
	}
	attached, err := a.kernel.Endpoints()
	if err != nil {
		return err
	}
	byIndex := map[uint32]bpf.Endpoint{}
	for _, e := range attached {
		byIndex[e.Interface] = e
	}
	chosen := map[string]uint32{}
	for _, ep := range a.endpoints.all() {
		if e := byIndex[uint32(ep.HostIndex)]; e.Exit != 0 && e.IPv4 == ep.IPv4 {
			chosen[ep.ID] = e.Exit
		}
	}
	a.exits.resume(a.node.Exits(), marks, chosen)
	return nil
}

// stranded describes the services whose contracts lead to the outside by the zone's processors, and
// some of whose endpoints have no exit that answers.
func (a *Agent) stranded() []string {
	if a.node.Exits() == nil {
		return nil // without a switch in the zone, the node is the exit
	}
	live := a.live()
	c := a.chooseExits(live)
	docs := a.documents()
	cut := map[fabric.Ref]int{}
	for _, ep := range live {
		id := ep.Admission.Identity()
		needs := slices.ContainsFunc(fabric.EgressGrants(id, docs[id.Service]), func(g fabric.EgressGrant) bool {
			return g.External.Exit == fabric.ExitZone && !g.External.IsNode()
		})
		if needs && !c.lively[ep.ID] {
			cut[id.Service]++
		}
	}
	var list []string
	for _, service := range slices.SortedFunc(maps.Keys(cut), fabric.CompareRefs) {
		list = append(list, fmt.Sprintf("exit: %d endpoints of %s have contracts with the outside, and no processor of zone %s is an exit for them: %s",
			cut[service], service, a.node.Self.Zone, a.exits.wrong(a.node.Exits(), a.engines.speaks)))
	}
	return list
}

// wrong says of each processor what it lacks as an exit.
func (x *exits) wrong(list []daemon.Exit, connected func(fabric.NodeID) bool) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var parts []string
	for _, e := range list {
		what := "does not know some of them yet"
		switch {
		case e.Silent:
			what = "does not answer by its link"
		case !connected(e.Processor):
			what = "has no connection with this agent"
		case !x.ready[e.Processor]:
			what = "says that its switch does not lead to the outside"
		case !e.Live:
			what = "has not answered by its link yet"
		}
		parts = append(parts, e.Processor.String()+" "+what)
	}
	return strings.Join(parts, "; ")
}
