// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/rpc"
)

// carries makes the zone of an engine one through which ways of others lead, so that it needs
// everything.
func (w *world) carries(e *Engine) {
	far := fabric.Node{Fabric: "test", Zone: "far1", Name: "p1", Kind: fabric.KindProcessor}
	nodes := append([]fabric.Node{far}, w.nodes...)
	var tunnels []desired.Tunnel
	for _, n := range nodes {
		if n.Boundary() && n.Zone != e.self.Zone {
			tunnels = append(tunnels, desired.Tunnel{A: e.self.ID(), B: n.ID(), Link: "declared"})
		}
	}
	e.topology = func() desired.Topology { return desired.NewTopology(nodes, tunnels, nil) }
	e.reviseWants()
}

// site is a zone with an engine and one workload node.
type site struct {
	*Engine
	sw    *recorder
	docs  *fixedDocuments
	agent *told
}

// site adds a zone to the fabric and starts it.
func (w *world) site(zone string) *site {
	if _, known := w.node(fabric.NodeID{Zone: zone, Name: "p1"}); !known {
		w.nodes = append(w.nodes, fabric.Node{Fabric: "test", Zone: zone, Name: "p1", Kind: fabric.KindProcessor})
		i := byte(len(w.nodes))
		w.nodes = append(w.nodes, fabric.Node{
			Fabric: "test", Zone: zone, Name: "w1", Kind: fabric.KindWorkload,
			Pool4: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, i, 0}), 24), Pool6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x5f, 7: i}), 64),
		})
	}
	s := &site{}
	s.Engine, s.sw, s.docs = w.engine(zone)
	return s
}

// meet connects all sites with one another, and each with its agent. conn wraps the connection of
// one engine to another.
func (w *world) meet(sites []*site, conn func(wire) Conn) {
	for i, a := range sites {
		for _, b := range sites[:i] {
			done := make(chan struct{})
			must.NoError(w.t, a.Welcome(context.Background(), conn(wire{peerOf(a.Engine), peerOf(b.Engine), b.Handle, done})))
			must.NoError(w.t, b.Welcome(context.Background(), conn(wire{peerOf(b.Engine), peerOf(a.Engine), a.Handle, done})))
		}
	}
	for _, s := range sites {
		s.agent = w.agentOf(s.Engine, "w1")
	}
}

func directly(c wire) Conn { return c }

// apply puts a graph in force at a site.
func (s *site) apply(g *fabric.Graph) {
	s.docs.mu.Lock()
	s.docs.docs = documents(g)
	s.docs.mu.Unlock()
}

func (w *world) start(s *site, n int, service fabric.Ref) {
	reply, err := w.connect(s.Engine, "w1", w.request(n, s.self.Zone, "w1", service))
	must.NoError(w.t, err)
	must.Eq(w.t, nil, reply.Pending)
}

// unheardZones is what status says of the engines of other zones.
func (s *site) unheardZones() []string {
	return slices.DeleteFunc(s.unheard(), func(line string) bool { return !strings.HasPrefix(line, "zone ") })
}

// withoutFrontend is the graph in which web may not call svc.
func withoutFrontend() *fabric.Graph {
	g := graph()
	g.Domains["app"].Contracts[0].Disabled = true
	return g
}

// A request goes to the zones that a contract leads to, and to no others. A new revision whose
// contract leads to another zone is in force there without anybody starting again.
func TestRequestsGoWhereContractsLead(t *testing.T) {
	w := newWorld(t)
	aws, gcp, azr := w.site("aws1"), w.site("gcp1"), w.site("azr1")
	sites := []*site{aws, gcp, azr}
	for _, s := range sites {
		s.apply(withoutFrontend())
	}
	w.meet(sites, directly)
	w.start(azr, 3, web)
	w.start(gcp, 2, news)
	w.start(aws, 1, svc)
	must.Eq(t, []string{"news-2", "svc-1"}, held(aws.Engine))
	must.Eq(t, []string{"news-2", "svc-1"}, held(gcp.Engine))
	must.Eq(t, []string{"web-3"}, held(azr.Engine))
	must.Eq(t, []string{"svc-1"}, gcp.agent.endpoints())
	must.SliceEmpty(t, azr.agent.endpoints())
	for _, s := range sites {
		s.Sync(t.Context())
	}
	for _, s := range sites {
		must.SliceEmpty(t, s.unheardZones())
	}
	must.Eq(t, []string{"web-3"}, held(azr.Engine))

	// As revisions come: to one node earlier than to another.
	for _, s := range []*site{azr, gcp, aws} {
		s.apply(graph())
		must.NoError(t, s.Refresh(t.Context()))
	}
	must.Eq(t, []string{"news-2", "svc-1", "web-3"}, held(aws.Engine))
	must.Eq(t, []string{"svc-1", "web-3"}, held(azr.Engine))
	must.Eq(t, []string{"news-2", "svc-1"}, held(gcp.Engine))
	must.Eq(t, []string{"news-2", "web-3"}, aws.agent.endpoints())
	must.Eq(t, []string{"svc-1"}, azr.agent.endpoints())
	must.Eq(t, []string{"svc-1", "web-3"}, azr.sw.endpoints())
	must.Eq(t, []string{"news-2", "svc-1", "web-3"}, aws.sw.endpoints())

	// What comes and goes later is told too.
	w.start(aws, 4, svc)
	must.Eq(t, []string{"svc-1", "svc-4"}, azr.agent.endpoints())
	w.withdraw(aws.Engine, "w1", "svc-1")
	must.Eq(t, []string{"svc-4"}, azr.agent.endpoints())
	must.Eq(t, []string{"svc-4"}, azr.sw.endpoints()[:1])
}

// delayed is a connection that takes a while in both directions.
type delayed struct{ Conn }

func (c delayed) Call(ctx context.Context, method string, params, reply any) error {
	pause := func() { time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond) }
	pause()
	defer pause()
	return c.Conn.Call(ctx, method, params, reply)
}

// Endpoints that start at the same time in several zones, while a new revision comes to one engine
// after the other, find all their counterparts, in both directions, without any comparison.
func TestSimultaneousStarts(t *testing.T) {
	services := []fabric.Ref{web, svc, news}
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		sites := []*site{w.site("aws1"), w.site("gcp1"), w.site("azr1")}
		late := rapid.Bool().Draw(rt, "late")
		for _, s := range sites {
			if late {
				s.apply(withoutFrontend())
			}
		}
		w.meet(sites, func(c wire) Conn { return delayed{c} })
		type start struct {
			at, service int
		}
		starts := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) start {
			return start{rapid.IntRange(0, 2).Draw(rt, "zone"), rapid.IntRange(0, 2).Draw(rt, "service")}
		}), 2, 8).Draw(rt, "starts")
		var all sync.WaitGroup
		live := map[string]start{}
		for n, s := range starts {
			live[fmt.Sprintf("%s-%d", services[s.service].Name, n)] = s
			r := w.request(n, sites[s.at].self.Zone, "w1", services[s.service])
			all.Go(func() {
				_, err := w.connect(sites[s.at].Engine, "w1", r)
				must.NoError(t, err)
			})
		}
		for _, s := range sites {
			if late {
				all.Go(func() {
					time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond)
					s.apply(graph())
					must.NoError(t, s.Refresh(context.Background()))
				})
			}
		}
		all.Wait()
		// What a slow machine did not do within the wait of a request, follows by itself.
		for at, s := range sites {
			var want, told []string
			for a, is := range live {
				isCounterpart := func(b start) bool {
					return b.at == at && (is.service-b.service == 1 || b.service-is.service == 1)
				}
				counterpart := slices.ContainsFunc(slices.Collect(maps.Values(live)), isCounterpart)
				if is.at == at || counterpart {
					want = append(want, a)
				}
				if is.at != at && counterpart {
					told = append(told, a)
				}
			}
			slices.Sort(want)
			slices.Sort(told)
			has := func() bool {
				elsewhere := slices.DeleteFunc(s.agent.endpoints(), func(a string) bool { return live[a].at == at })
				return slices.Equal(want, s.sw.endpoints()) && slices.Equal(told, elsewhere)
			}
			for end := time.Now().Add(20 * time.Second); !has(); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					rt.Fatalf("the switch of %s has %v, must have %v; its agent has %v, must have %v of others", s.self.Zone, s.sw.endpoints(), want, s.agent.endpoints(), told)
				}
			}
		}
	})
}

// older is a connection between engines of which one does not say what it wants, and knows nothing
// of that.
type older struct{ Conn }

func (c older) Call(ctx context.Context, method string, params, reply any) error {
	if method == rpc.MethodWant {
		return &rpc.RemoteError{Peer: c.Peer(), Method: method, Message: `unknown method "want"`}
	}
	return c.Conn.Call(ctx, method, params, reply)
}

// An engine of an older version is sent everything, and gets counterparts with the answers; what it
// sends is accepted.
func TestEnginesThatDoNotSayWhatTheyWant(t *testing.T) {
	w := newWorld(t)
	aws, gcp := w.site("aws1"), w.site("gcp1")
	_, err := w.connect(gcp.Engine, "w1", w.request(1, "gcp1", "w1", web)) // before they meet
	must.NoError(t, err)
	w.meet([]*site{aws, gcp}, func(c wire) Conn { return older{c} })
	w.start(aws, 2, web)
	w.start(gcp, 3, news)
	w.start(aws, 4, svc)
	all := []string{"news-3", "svc-4", "web-1", "web-2"}
	for _, s := range []*site{aws, gcp} {
		must.Eq(t, all, held(s.Engine))
		s.Sync(t.Context())
		must.Eq(t, all, held(s.Engine))
	}
	must.Eq(t, []string{"news-3", "web-1"}, aws.agent.endpoints())
	must.Eq(t, []string{"svc-4"}, gcp.agent.endpoints())
	w.withdraw(aws.Engine, "w1", "web-2")
	must.Eq(t, []string{"news-3", "svc-4", "web-1"}, held(gcp.Engine))
	must.Eq(t, []string{"news-3", "svc-4"}, gcp.sw.endpoints()[:2]) // nothing in gcp1 needs web-2

	// It is replaced by one that does say it.
	w.meet([]*site{aws, gcp}, directly)
	w.start(aws, 5, web)
	must.Eq(t, []string{"news-3", "svc-4", "web-1"}, held(gcp.Engine))
}

func (s *site) wants(from *site) []string {
	var list []string
	if theirs := s.wantedBy(from.self.ID()); theirs != nil {
		for service := range theirs.services {
			list = append(list, service.Name)
		}
	}
	slices.Sort(list)
	return list
}

// What is not needed any more is wanted for a while, because jobs are replaced, and then no more.
// What is wanted again comes again.
func TestWantsEndLate(t *testing.T) {
	w := newWorld(t)
	aws, gcp := w.site("aws1"), w.site("gcp1")
	w.meet([]*site{aws, gcp}, directly)
	w.start(gcp, 1, news)
	must.Eq(t, []string{"svc"}, aws.wants(gcp))
	w.withdraw(gcp.Engine, "w1", "news-1")
	must.NoError(t, gcp.Refresh(t.Context()))
	w.start(aws, 2, svc)
	must.Eq(t, []string{"svc-2"}, held(gcp.Engine))
	must.SliceEmpty(t, gcp.sw.endpoints()) // nothing leads there
	over := func() {
		gcp.wanting.Lock()
		defer gcp.wanting.Unlock()
		for service := range gcp.needed {
			gcp.needed[service] = time.Now().Add(-2 * wantedFor)
		}
	}
	over()
	must.NoError(t, gcp.Refresh(t.Context()))
	must.SliceEmpty(t, aws.wants(gcp))
	w.start(aws, 3, svc)
	must.Eq(t, []string{"svc-2"}, held(gcp.Engine)) // that it is not wanted ends nothing
	aws.Sync(t.Context())
	must.Eq(t, []string{"svc-2"}, held(gcp.Engine))
	w.withdraw(aws.Engine, "w1", "svc-2") // of which gcp1 is not told at once
	aws.Sync(t.Context())
	must.SliceEmpty(t, held(gcp.Engine))
	w.start(gcp, 4, news)
	must.Eq(t, []string{"news-4", "svc-3"}, held(gcp.Engine))
	must.Eq(t, []string{"svc-3"}, gcp.agent.endpoints())
}

// An engine that knows other wants than were said to it, or none, learns of them by the regular
// comparison, and sends what it did not.
func TestWantsAreCompared(t *testing.T) {
	for name, wrong := range map[string]*wants{"none": nil, "others": newWants(false, map[fabric.Ref]bool{web: true}), "older": unsaid} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			aws, gcp := w.site("aws1"), w.site("gcp1")
			w.meet([]*site{aws, gcp}, directly)
			w.start(gcp, 1, news)
			aws.mu.Lock()
			aws.wanted[gcp.self.ID()] = wrong
			aws.mu.Unlock()
			w.start(aws, 2, svc)
			if name == "others" {
				must.Eq(t, []string{"news-1"}, held(gcp.Engine))
			}
			gcp.Sync(t.Context())
			must.Eq(t, []string{"news-1", "svc-2"}, held(gcp.Engine))
			must.Eq(t, []string{"svc"}, aws.wants(gcp))
			must.SliceEmpty(t, gcp.unheardZones())
			// A change of what it does not know is not taken for the whole.
			aws.mu.Lock()
			aws.wanted[gcp.self.ID()] = wrong
			aws.mu.Unlock()
			w.start(gcp, 3, svc)
			must.Eq(t, []string{"news", "svc", "web"}, aws.wants(gcp))
		})
	}
}

// Who could not be told what is wanted is told later, and status says so until then. The processor
// is not ready before.
func TestWantsThatWereNotHeard(t *testing.T) {
	w := newWorld(t)
	aws, gcp := w.site("aws1"), w.site("gcp1")
	var broken atomic.Bool
	w.meet([]*site{aws, gcp}, func(c wire) Conn {
		return failing{c, func(method string) error {
			if broken.Load() && method == rpc.MethodWant {
				return rpc.ErrClosed
			}
			return nil
		}}
	})
	w.start(aws, 1, svc)
	gcp.Sync(t.Context())
	aws.Sync(t.Context())
	must.SliceEmpty(t, gcp.unheardZones())
	live := map[desired.Hop]bool{{Processor: aws.self.ID()}: true, {Processor: fabric.NodeID{Zone: "gcp1", Name: "w1"}}: true}
	(&owner{w: w, node: "w1"}).call(gcp.Engine, rpc.MethodSync, rpc.SyncParams{}, nil)
	must.True(t, gcp.knowsAll(live))
	broken.Store(true)
	reply, err := w.connect(gcp.Engine, "w1", w.request(2, "gcp1", "w1", news))
	must.NoError(t, err)
	must.SliceLen(t, 1, reply.Pending)
	must.Eq(t, []string{"zone aws1: its engine does not know yet of which services endpoints are needed here"}, gcp.unheardZones())
	must.False(t, gcp.knowsAll(live))
	must.NoError(t, gcp.Refresh(t.Context()))
	broken.Store(false)
	must.NoError(t, gcp.Refresh(t.Context()))
	must.SliceEmpty(t, gcp.unheardZones())
	must.True(t, gcp.knowsAll(live))
	must.Eq(t, []string{"svc-1"}, gcp.agent.endpoints())
}

type failing struct {
	Conn
	fails func(method string) error
}

func (c failing) Call(ctx context.Context, method string, params, reply any) error {
	if err := c.fails(method); err != nil {
		return err
	}
	return c.Conn.Call(ctx, method, params, reply)
}

// An engine that lost its leases, and with them what it needs, does not end what its agents have of
// other zones: that it is not sent does not mean that it has gone.
func TestWhatIsNotWantedHasNotGone(t *testing.T) {
	w := newWorld(t)
	aws, gcp := w.site("aws1"), w.site("gcp1")
	(&owner{w: w, node: "w1", has: map[string]fabric.Request{"news-3": w.request(3, "gcp1", "w1", news)}}).connect(gcp.Engine)
	w.meet([]*site{aws, gcp}, directly)
	aws.agent.extra = map[string]fabric.NodeID{"news-3": {Zone: "gcp1", Name: "w1"}, "news-4": {Zone: "gcp1", Name: "w1"}}
	gcp.Sync(t.Context())
	aws.Sync(t.Context())
	must.SliceEmpty(t, held(aws.Engine))
	must.MapLen(t, 1, aws.agent.extra)
	must.MapContainsKey(t, aws.agent.extra, "news-3")
}

// An engine that wants everything names no service, so a new endpoint is nothing to tell others.
func TestWhoWantsEverythingNamesNothing(t *testing.T) {
	w := newWorld(t)
	aws, _, _ := w.engine("aws1")
	gcp, _, _ := w.engine("gcp1")
	w.carries(gcp)
	w.join(aws, gcp)
	before := gcp.wants.Load()
	must.True(t, before.everything)
	_, err := w.connect(gcp, "w1", w.request(1, "gcp1", "w1", svc))
	must.NoError(t, err)
	must.NoError(t, gcp.Refresh(t.Context()))
	must.True(t, gcp.wants.Load() == before)
	must.MapEmpty(t, gcp.wants.Load().services)
}

// Only engines of other zones are sent requests.
func TestWhoMayWant(t *testing.T) {
	w := newWorld(t)
	aws := w.site("aws1")
	for _, peer := range []rpc.Peer{
		{NodeID: fabric.NodeID{Zone: "gcp1", Name: "w1"}, Kind: fabric.KindWorkload},
		{NodeID: fabric.NodeID{Zone: "gcp1", Name: "b1"}, Kind: fabric.KindBoth},
		{NodeID: fabric.NodeID{Zone: "aws1", Name: "p2"}, Kind: fabric.KindProcessor},
	} {
		_, err := aws.Handle(t.Context(), peer, rpc.MethodWant, encode(t, rpc.WantParams{Everything: true}))
		must.ErrorContains(t, err, "is no engine of another zone, so it is sent no requests")
		must.Nil(t, aws.wantedBy(peer.NodeID))
	}
}

// counted counts the messages that engines send one another, by method.
type counted struct {
	Conn
	messages map[string]*atomic.Int64
}

func (c counted) Call(ctx context.Context, method string, params, reply any) error {
	if n := c.messages[method]; n != nil {
		n.Add(1)
	}
	return c.Conn.Call(ctx, method, params, reply)
}

// The number of messages among the engines of ten zones for a new endpoint follows from the zones
// that need it, not from those that there are: docs/performance.md has the figures.
func TestMessagesPerEndpoint(t *testing.T) {
	for _, says := range []bool{false, true} {
		w := newWorld(t)
		messages := map[string]*atomic.Int64{rpc.MethodForward: {}, rpc.MethodWant: {}, rpc.MethodWithdraw: {}}
		var sites []*site
		for n := range 10 {
			sites = append(sites, w.site(fmt.Sprint("zone", n)))
		}
		w.nodes = slices.DeleteFunc(w.nodes, func(n fabric.Node) bool { return n.Zone == "aws1" || n.Zone == "gcp1" })
		w.meet(sites, func(c wire) Conn {
			if !says {
				return older{counted{c, messages}}
			}
			return counted{c, messages}
		})
		sent := func(do func()) string {
			for _, n := range messages {
				n.Store(0)
			}
			do()
			return fmt.Sprintf("forward %d, want %d, withdraw %d", messages[rpc.MethodForward].Load(), messages[rpc.MethodWant].Load(), messages[rpc.MethodWithdraw].Load())
		}
		got := []string{
			sent(func() { w.start(sites[1], 1, news) }),
			sent(func() { w.start(sites[0], 2, svc) }),
			sent(func() { w.start(sites[0], 3, svc) }),
			sent(func() { w.start(sites[2], 4, web) }),
			sent(func() { w.start(sites[1], 5, news) }),
			sent(func() { w.withdraw(sites[1].Engine, "w1", "news-5") }),
		}
		want := []string{
			"forward 0, want 9, withdraw 0", // the first of its service in its zone
			"forward 2, want 9, withdraw 0", // likewise, and each of the two is sent to the other zone
			"forward 1, want 0, withdraw 0",
			"forward 3, want 9, withdraw 0", // two that it needs, and it itself
			"forward 1, want 0, withdraw 0",
			"forward 0, want 0, withdraw 1",
		}
		if !says {
			want = slices.Repeat([]string{"forward 9, want 0, withdraw 0"}, 5)
			want = append(want, "forward 0, want 0, withdraw 9")
		}
		must.Eq(t, want, got)
	}
}
