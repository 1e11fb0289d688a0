// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/internal/kvkey"
)

// goneVariable has TestGone take every row; without it there is one. It has the tests' lab use
// lives so short that what lasts goneLong is longer than all of them; a lab that is already up
// needs `sif-lab up -cert-ttl 1m -admission-life 2m -outage-bound 15m`.
const goneVariable = "SIF_E2E_GONE"

const (
	goneCertificate = time.Minute
	goneAdmission   = 2 * time.Minute
	goneBound       = 15 * time.Minute
	goneShort       = 15 * time.Second
	goneLong        = 150 * time.Second
)

// absentee is what can be away.
type absentee struct {
	name string
	away func(*goneUnderTest, *testing.T)
	back func(*goneUnderTest, *testing.T)
	// stops says which flows do not go on: those within the zone, or to the other zone.
	near, far bool
	// waits says that new workloads wait until it is back.
	waits bool
	// says is what a problem in `sif status` contains; empty: nothing is asked, or can be.
	says string
	// asks are options of `sif status` with which it can be asked meanwhile.
	asks []string
	// mute says that `sif status` cannot be asked.
	mute bool
}

// signalled returns what is away when a process stands still.
func signalled(name string, p absentee, processes ...func(*goneUnderTest) [2]string) absentee {
	send := func(g *goneUnderTest, t *testing.T, s syscall.Signal) {
		for _, of := range processes {
			at := of(g)
			must.NoError(t, world.Signal(at[0], at[1], s))
		}
	}
	p.name = name
	p.away = func(g *goneUnderTest, t *testing.T) { send(g, t, syscall.SIGSTOP) }
	p.back = func(g *goneUnderTest, t *testing.T) { send(g, t, syscall.SIGCONT) }
	return p
}

// killed returns what is away when a process has ended, until it is started again.
func killed(name string, p absentee, of func(*goneUnderTest) [2]string) absentee {
	p.name = name
	p.away = func(g *goneUnderTest, t *testing.T) {
		at := of(g)
		must.NoError(t, world.Signal(at[0], at[1], syscall.SIGKILL))
	}
	p.back = func(g *goneUnderTest, t *testing.T) {
		at := of(g)
		must.NoError(t, world.Start(at[0], at[1]))
	}
	return p
}

func onOrchestrator(process string) func(*goneUnderTest) [2]string {
	return func(*goneUnderTest) [2]string { return [2]string{world.Topology.Orchestrator().Name, process} }
}

func onOriginator(process string) func(*goneUnderTest) [2]string {
	return func(g *goneUnderTest) [2]string { return [2]string{g.svc.node, process} }
}

func onProcessor(process string) func(*goneUnderTest) [2]string {
	return func(g *goneUnderTest) [2]string { return [2]string{g.processor, process} }
}

var (
	vaultSealed = absentee{
		name: "Vault sealed",
		away: func(_ *goneUnderTest, t *testing.T) {
			client, err := world.Vault(world.Secrets.VaultRoot)
			must.NoError(t, err)
			must.NoError(t, client.Sys().Seal())
		},
		back:  func(_ *goneUnderTest, t *testing.T) { must.NoError(t, world.Unseal(t.Context())) },
		waits: true, says: "Vault is away: it is sealed", asks: []string{"-expired=1h"},
	}
	consulAway = signalled("Consul's servers away", absentee{
		waits: true, says: "no controller leads", asks: []string{"-token=", "-vault-token", "-expired=1h"},
	}, onOrchestrator("consul"))
	nomadAway      = signalled("Nomad's servers away", absentee{waits: true, says: "Nomad is away", asks: []string{"-expired=1h"}}, onOrchestrator("nomad"))
	controllerAway = killed("the controller away", absentee{waits: true, mute: true}, onOrchestrator("controller"))
	agentAway      = killed("an agent away", absentee{waits: true, says: "it has not reported for"}, onOriginator("agent"))
	engineAway     = killed("an engine away", absentee{says: "it has not reported for"}, onProcessor("engine"))
	linkAway       = killed("a link process away", absentee{near: true, far: true}, onOriginator("link"))
	switchAway     = killed("ovs-vswitchd away", absentee{far: true}, onProcessor("ovs-vswitchd"))
	zoneAway       = absentee{
		name:  "a zone cut off from the orchestrator",
		away:  func(g *goneUnderTest, t *testing.T) { g.cutZone(t) },
		back:  func(g *goneUnderTest, t *testing.T) { g.joinZone(t) },
		waits: true, says: "it has not reported for",
	}
)

var goneParts = []absentee{vaultSealed, consulAway, nomadAway, controllerAway, agentAway, engineAway, linkAway, switchAway}

// goneRow is a row of the table in docs/operations.md.
type goneRow struct {
	parts []absentee
	lasts time.Duration
	// far says that flows to the other zone end while it lasts, because there somebody else judges.
	far bool
}

func (r goneRow) name() string {
	var names []string
	for _, p := range r.parts {
		names = append(names, p.name)
	}
	name := strings.Join(names, ", and ")
	if r.lasts == goneLong {
		name += " for longer than anything lives"
	}
	return name
}

func goneRows() []goneRow {
	rows := []goneRow{{parts: []absentee{vaultSealed}, lasts: goneShort}}
	if os.Getenv(goneVariable) == "" {
		return rows
	}
	rows = append(rows, goneRow{parts: []absentee{vaultSealed}, lasts: goneLong}, goneRow{parts: []absentee{nomadAway}, lasts: goneLong},
		goneRow{parts: []absentee{consulAway}, lasts: goneLong}, goneRow{parts: []absentee{controllerAway}, lasts: goneLong},
		goneRow{parts: []absentee{zoneAway}, lasts: goneLong, far: true})
	for _, p := range goneParts[1:] {
		rows = append(rows, goneRow{parts: []absentee{p}, lasts: goneShort})
	}
	for i, a := range goneParts {
		for _, b := range goneParts[i+1:] {
			rows = append(rows, goneRow{parts: []absentee{a, b}, lasts: goneShort})
		}
	}
	return rows
}

// TestGone takes away what the fabric needs, one after the other and in pairs, under traffic within
// a zone and between two: nothing that runs loses connectivity because somebody is away whose word
// is not needed for it, and everything recovers by itself.
func TestGone(t *testing.T) {
	world.withTestPorts(t)
	world.allWell(t, time.Minute)
	g := &goneUnderTest{svc: world.workload(t, "getaway-app/getaway-svc", "aws1")}
	g.near, g.far = world.workload(t, "getaway-app/news-gw", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	for _, n := range world.Topology.Nodes(lab.Processor) {
		if n.Zone == "aws1" {
			g.processor = n.Name
		}
	}
	began := time.Now()
	rows := goneRows()
	for _, row := range rows {
		if !t.Run(row.name(), func(t *testing.T) { g.take(t, row) }) {
			world.allWell(t, 3*time.Minute) // for the next row
		}
	}
	t.Logf("%d rows took %s", len(rows), time.Since(began).Round(time.Second))
}

type goneUnderTest struct {
	svc, near, far workload
	processor      string // of the zone of svc
}

// take makes one row.
func (g *goneUnderTest) take(t *testing.T, row goneRow) {
	near, far := true, !row.far
	waits, mute, asks := false, false, []string{}
	for _, p := range row.parts {
		near, far, waits, mute = near && !p.near, far && !p.far, waits || p.waits, mute || p.mute
		for _, a := range p.asks {
			if a == "-vault-token" {
				a += "=" + world.Secrets.VaultRoot
			}
			if !slices.Contains(asks, a) {
				asks = append(asks, a)
			}
		}
	}
	vault, consul := slices.ContainsFunc(row.parts, func(p absentee) bool { return p.name == vaultSealed.name }), slices.ContainsFunc(row.parts, func(p absentee) bool { return p.name == consulAway.name })
	mute = mute || vault && consul // nobody can be asked about an operator's token
	streams, packets := map[string]*stream{}, map[string]*datagrams{}
	open := func(name string, to workload, goesOn bool) {
		if goesOn {
			streams[name], packets[name] = openStream(t, g.svc, to, newsPort, name), openDatagrams(t, g.svc, to, newsPort)
		}
	}
	open("near", g.near, near)
	open("far", g.far, far)

	there := true
	back := func() {
		if there {
			return
		}
		there = true
		for _, p := range slices.Backward(row.parts) {
			p.back(g, t)
		}
	}
	started := false
	t.Cleanup(func() { // the next row has one instance, whatever became of this one
		if started {
			world.scale(t, "places-gw", "aws1", 1)
		}
	})
	t.Cleanup(back)
	there = false
	began := time.Now()
	for _, p := range row.parts {
		p.away(g, t)
	}
	started = g.start(t, row)
	for _, p := range row.parts {
		if p.says != "" && !mute {
			g.says(t, p.says, asks)
		}
	}
	for time.Since(began) < row.lasts {
		for _, s := range streams {
			s.mustFlow(t, 20*time.Second)
		}
		time.Sleep(time.Second)
	}
	if started && waits {
		must.SliceLen(t, 1, g.probes(t), must.Sprint("a new workload needs the word of who is away"))
	} else if started {
		g.started(t, near)
	}
	if row.lasts == goneLong && !mute {
		g.countsDown(t, asks)
	}
	for _, f := range streams { // new connections, too
		reaches(t, g.svc, f.to, newsPort, true, 10*time.Second)
	}
	mended := time.Now()
	back()
	for name, s := range streams {
		s.mustFlow(t, 20*time.Second)
		sent, lost := packets[name].count(5 * time.Second)
		must.Zero(t, lost, must.Sprintf("of %d datagrams %s, sent %s", sent, name, packets[name].gap(5*time.Second)))
	}
	g.recovered(t, mended)
	if started {
		g.started(t, true)
	}
	if len(streams) < 2 { // what did not go on comes back
		reaches(t, g.svc, g.near, 9001, true, 20*time.Second)
		reaches(t, g.svc, g.far, 9001, true, 20*time.Second)
	}
	t.Logf("%s away, recovered after %s", mended.Sub(began).Round(time.Second), time.Since(mended).Round(time.Second))
}

// start asks Nomad for one more instance of a service, if Nomad is there.
func (g *goneUnderTest) start(t *testing.T, row goneRow) bool {
	t.Helper()
	if slices.ContainsFunc(row.parts, func(p absentee) bool { return p.name == nomadAway.name }) {
		return false
	}
	count := 2
	_, _, err := world.nomad.Jobs().Scale("places-gw", "aws1", &count, t.Name(), false, nil, nil)
	must.NoError(t, err)
	return true
}

func (g *goneUnderTest) probes(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, a := range world.allocs(t, "places-gw") {
		if a.TaskGroup == "aws1" && a.ClientStatus == nomad.AllocClientStatusRunning {
			list = append(list, a.ID)
		}
	}
	return list
}

// started waits until the new instance runs, and svc reaches both.
func (g *goneUnderTest) started(t *testing.T, reached bool) {
	t.Helper()
	eventually(t, 4*time.Minute, func() error {
		if list := g.probes(t); len(list) != 2 {
			return fmt.Errorf("%d instances of places-gw run in aws1", len(list))
		}
		return nil
	})
	if !reached {
		return
	}
	for _, w := range world.workloads(t, "getaway-app/places-gw", "aws1") {
		reaches(t, g.svc, w, 9002, true, 20*time.Second)
	}
}

// ask returns the answer of `sif status`.
func (g *goneUnderTest) ask(t *testing.T, options []string) (s struct {
	api.Status
	Problems []string
}, err error) {
	t.Helper()
	r := world.sif(t, append([]string{"status", "-json"}, options...)...)
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		return s, fmt.Errorf("%w: %s", err, r.stderr)
	}
	return s, nil
}

func (g *goneUnderTest) says(t *testing.T, words string, options []string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		s, err := g.ask(t, options)
		if err != nil {
			return err
		}
		for _, p := range s.Problems {
			if strings.Contains(p, words) {
				return nil
			}
		}
		return fmt.Errorf("status does not say %q: %s", words, strings.Join(s.Problems, "\n"))
	})
}

// countsDown has `sif status` say that endpoints are honoured beyond their end, and for how long.
func (g *goneUnderTest) countsDown(t *testing.T, options []string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		s, err := g.ask(t, options)
		if err != nil {
			return err
		}
		for _, n := range s.Nodes {
			if o := n.Outage; o != nil && o.Honoured > 0 && time.Until(o.Until) > 0 && o.Until.Sub(o.Since) == goneBound {
				return nil
			}
		}
		return errors.New("no daemon honours anything beyond its end")
	})
}

// recovered waits until nobody has an outage any more, status says that all is well, and the nodes
// enforce what they must.
func (g *goneUnderTest) recovered(t *testing.T, mended time.Time) {
	t.Helper()
	answers := func() error { // the controller's certificate may have ended meanwhile
		_, err := g.ask(t, nil)
		return err
	}
	eventually(t, time.Minute, answers)
	world.allWell(t, 3*time.Minute)
	eventually(t, 2*time.Minute, func() error {
		r := world.sif(t, "verify")
		if r.code != 0 {
			return fmt.Errorf("sif verify: %s%s", r.stdout, r.stderr)
		}
		return nil
	})
	t.Logf("all is well %s after it was mended", time.Since(mended).Round(time.Second))
}

const goneTable = "sif-e2e-gone"

// cutZone drops everything between the zone of svc and that of the orchestrator.
func (g *goneUnderTest) cutZone(t *testing.T) {
	t.Helper()
	subnet := func(node string) string {
		return netip.PrefixFrom(netip.MustParseAddr(world.Topology.Node(node).Address), 24).Masked().String()
	}
	here, there := subnet(g.svc.node), subnet(world.Topology.Orchestrator().Name)
	must.NoError(t, world.NFT(t.Context(), "internet", fmt.Sprintf("table ip %s {\n chain cut { type filter hook forward priority -10; ip saddr %s ip daddr %s drop; ip saddr %s ip daddr %s drop; }\n}", goneTable, here, there, there, here)))
}

func (g *goneUnderTest) joinZone(t *testing.T) {
	t.Helper()
	// There is none if something else could not be taken away before.
	must.NoError(t, world.NFT(context.Background(), "internet", fmt.Sprintf("add table ip %[1]s\ndelete table ip %[1]s", goneTable)))
}

// TestGoneState restores an old snapshot of Consul, and empties Consul of all that is the fabric's,
// under traffic. Nothing that runs loses connectivity, and nodes refuse what is older than what
// they know. The operator puts the pointer back, and applies the same graph again.
func TestGoneState(t *testing.T) {
	if os.Getenv(goneVariable) == "" {
		t.Skipf("%s is not set", goneVariable)
	}
	world.withTestPorts(t)
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	near, far := world.workload(t, "getaway-app/news-gw", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	pointer := filepath.Join(world.SIFDataDir(world.Topology.Orchestrator().Name), "revision", "pointer.json")
	for _, tc := range []struct {
		name string
		lose func(t *testing.T, graph string)
	}{
		{"an old snapshot", func(t *testing.T, graph string) {
			snapshot, _, err := world.consul.Snapshot().Save(nil)
			must.NoError(t, err)
			old, err := io.ReadAll(snapshot)
			must.NoError(t, err)
			must.NoError(t, snapshot.Close())
			world.apply(t, graph+"\ndomain \"gone\" {\n  service \"nobody\" {\n    selector \"nomad\" {\n      job = \"nobody\"\n    }\n  }\n}\n")
			world.allWell(t, time.Minute)
			must.NoError(t, world.consul.Snapshot().Restore(nil, bytes.NewReader(old)))
		}},
		{"an empty one", func(t *testing.T, _ string) {
			_, err := world.consul.KV().DeleteTree(kvkey.Root, nil)
			must.NoError(t, err)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			world.allWell(t, time.Minute)
			graph := world.sif(t, "graph", "show").stdout
			streams := []*stream{openStream(t, svc, near, newsPort, "near"), openStream(t, svc, far, newsPort, "far")}
			packets := []*datagrams{openDatagrams(t, svc, near, newsPort), openDatagrams(t, svc, far, newsPort)}
			tc.lose(t, graph)
			world.tells(t, time.Minute, "sif/v1/current")
			time.Sleep(goneShort)
			flow := func() {
				for i, s := range streams {
					s.mustFlow(t, 20*time.Second)
					sent, lost := packets[i].count(5 * time.Second)
					must.Zero(t, lost, must.Sprintf("of %d datagrams to %s", sent, s.to))
				}
			}
			flow()
			value, err := os.ReadFile(pointer)
			must.NoError(t, err)
			_, err = world.consul.KV().Put(&consul.KVPair{Key: kvkey.Current, Value: value}, nil)
			must.NoError(t, err)
			eventually(t, time.Minute, func() error {
				r := world.sif(t, "graph", "apply", "-message="+t.Name(), write(t, "graph.sif.hcl", graph))
				if r.code != 0 {
					return errors.New(r.stderr)
				}
				return nil
			})
			world.allWell(t, 2*time.Minute)
			flow()
		})
	}
}
