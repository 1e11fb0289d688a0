// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/agent/catalog"
	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/coalesce"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/netspace"
	"github.com/sif-project/sif/internal/node/number"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
	"github.com/sif-project/sif/internal/trust/revision"
)

// attaching is an agent in a namespace of its own, with a real Consul agent, that attaches
// workloads from outside Nomad.
type attachingAgent struct {
	*Agent
	t        *testing.T
	node     ns.NetNS
	consul   *consulapi.Client
	engine   *fakeEngine
	released func() []string
	spaces   netspace.Layout
}

func newAttachingAgent(t *testing.T) *attachingAgent {
	t.Helper()
	testhost.RequireRoot(t)
	_, consul := testhost.Consul(t)
	ca := identitytest.NewCA(t)
	x := &attachingAgent{t: t, node: newNamespace(t), consul: consul}
	x.Agent, x.engine, x.released = hookedAgentOf(t, ca)
	dir := x.Agent.node.Config.DataDir
	x.Agent.node.Config.RunDir = filepath.Join(dir, "run")
	x.spaces = netspace.Layout{Namespaces: filepath.Join(dir, "netns"), Config: filepath.Join(dir, "etc"), Marks: filepath.Join(x.Agent.node.Config.RunDir, "netns")}
	t.Cleanup(func() {
		entries, _ := os.ReadDir(x.spaces.Namespaces)
		for _, e := range entries {
			_ = unix.Unmount(x.spaces.Path(e.Name()), unix.MNT_DETACH)
		}
		_ = unix.Unmount(x.spaces.Namespaces, unix.MNT_DETACH)
	})
	graph := &fabric.Graph{Domains: map[string]*fabric.Domain{"shop": {Name: "shop", Services: []fabric.Service{{Name: "web", Selectors: []fabric.Selector{{Kind: fabric.SelectConsul, Service: "web"}}}}}}}
	rev := fabric.Compile(graph)
	must.NoError(t, revision.NewWriter(consul, revision.Unfenced(consul)).Publish(t.Context(), rev, ca.Sign(fabric.KindPointer, fabric.Pointer{Fabric: "test", Sequence: 1, Root: rev.Root, Time: time.Now()}), 0))
	follower, err := revision.NewFollower(consul, dir, "test", ca.Keys, hclog.NewNullLogger())
	must.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- follower.Run(ctx) }()
	t.Cleanup(func() { stop(); must.NoError(t, <-done) })
	x.Agent.node.Revision = follower
	x.registrar = catalog.NewRegistrar(catalog.RegistrarConfig{Consul: consul, Zone: "z1", Node: "w1", Identity: x.Agent.node.Identity, Want: x.registrations, Log: hclog.NewNullLogger(), Report: func(error) {}})
	x.num, err = number.Open(filepath.Join(dir, "numbers.json"))
	must.NoError(t, err)
	x.counterparts, err = lease.Open(filepath.Join(dir, "counterparts.json"), nil, hclog.NewNullLogger())
	must.NoError(t, err)
	x.reprogram = coalesce.New(func() error { return nil })
	x.inNode(func() { _, err = x.firewall.Apply() })
	must.NoError(t, err)
	return x
}

// inNode does something in the namespace of the node.
func (x *attachingAgent) inNode(do func()) {
	x.t.Helper()
	must.NoError(x.t, x.node.Do(func(ns.NetNS) error { do(); return nil }))
}

func (x *attachingAgent) register(id, service string) {
	x.t.Helper()
	must.NoError(x.t, x.consul.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{ID: id, Name: service}))
}

func (x *attachingAgent) deregister(id string) {
	x.t.Helper()
	must.NoError(x.t, x.consul.Agent().ServiceDeregister(id))
}

// request returns the call that attaches a namespace under a name.
func (x *attachingAgent) request(name, service, path string) cnicall.Request {
	at := cnicall.AttachmentOf(name)
	return cnicall.Request{Command: "ADD", ContainerID: at.ContainerID, IfName: at.IfName, Space: cnicall.Space{Path: path}, Attach: &fabric.Attached{Name: name, ConsulService: service}}
}

func (x *attachingAgent) call(r cnicall.Request) (addresses []string, err error) {
	x.t.Helper()
	if r.Space.Path != "" {
		r.Namespace, err = netspace.Open(r.Space.Path)
		must.NoError(x.t, err)
		defer r.Namespace.Close()
	}
	x.inNode(func() {
		result, fault := x.Handle(x.t.Context(), r)
		if err = fault; result != nil {
			for _, ip := range result.IPs {
				addresses = append(addresses, ip.Address.IP.String())
			}
		}
	})
	return addresses, err
}

func (x *attachingAgent) tend() {
	x.t.Helper()
	x.inNode(func() { must.NoError(x.t, x.tendAttached(x.t.Context())) })
}

func (x *attachingAgent) make(name string) string {
	x.t.Helper()
	f, _, err := x.spaces.Make(name)
	must.NoError(x.t, err)
	must.NoError(x.t, f.Close())
	return x.spaces.Path(name)
}

// addressesIn returns the addresses of eth0 in a namespace.
func addressesIn(t *testing.T, path string) (list []string) {
	t.Helper()
	space, err := ns.GetNS(path)
	must.NoError(t, err)
	defer space.Close()
	must.NoError(t, space.Do(func(ns.NetNS) error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return nil // it is not there
		}
		addrs, err := i.Addrs()
		for _, a := range addrs {
			ip, _, _ := strings.Cut(a.String(), "/")
			if !strings.HasPrefix(ip, "fe80") {
				list = append(list, ip)
			}
		}
		return err
	}))
	return list
}

func (x *attachingAgent) only() cnicall.Attached {
	x.t.Helper()
	list := x.listAttached()
	must.Len(x.t, 1, list)
	return list[0]
}

// A workload is attached, again without effect, lives as long as its registration, and comes back
// with it.
func TestAttachedLivesWithItsRegistration(t *testing.T) {
	x := newAttachingAgent(t)
	path := x.make("db")
	r := x.request("db", "postgres", path)

	_, err := x.call(r)
	must.ErrorContains(t, err, `Consul service "postgres" is not registered with the Consul agent of this node`)
	must.SliceEmpty(t, x.listAttached())
	must.SliceEmpty(t, x.endpoints.all())
	must.MapEmpty(t, x.addresses.taken)

	x.register("pg", "postgres")
	first, err := x.call(r)
	must.NoError(t, err)
	must.Eq(t, first, addressesIn(t, path))
	is := x.only()
	must.Eq(t, "", is.Waits)
	must.Eq(t, refOf("shop/web"), is.FabricService)
	must.NotEq(t, "", is.ConsulNode)
	must.StrHasPrefix(t, is.Endpoint[:8]+"-", is.Endpoint)
	again, err := x.call(r)
	must.NoError(t, err)
	must.Eq(t, first, again)
	must.Eq(t, is.Endpoint, x.only().Endpoint)
	must.SliceEmpty(t, x.released())

	other := r
	other.Attach = &fabric.Attached{Name: "db", ConsulService: "postgres", Originate: []string{"backup"}}
	_, err = x.call(other)
	must.ErrorContains(t, err, `"db" is attached already, as Consul service "postgres": detach it first, with: sif detach db`)
	must.Eq(t, first, addressesIn(t, path))

	// Garbage collection of a runtime that does not know of it leaves it alone; so does an agent of
	// Consul that does not answer.
	_, err = x.call(cnicall.Request{Command: "GC", Network: "sif", Runtime: "podman"})
	must.NoError(t, err)
	must.Eq(t, first, addressesIn(t, path))

	// An interface that was removed comes back, with its addresses.
	out, err := exec.Command("nsenter", "--net="+path, "ip", "link", "del", "dev", "eth0").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	x.tend()
	must.Eq(t, first, addressesIn(t, path))

	x.deregister("pg")
	x.tend()
	must.Eq(t, first, addressesIn(t, path), must.Sprint("a moment without a registration ends nothing"))
	x.standings.missing[cnicall.AttachmentOf("db")] = time.Now().Add(-registrationGrace)
	x.tend()
	must.SliceEmpty(t, addressesIn(t, path))
	must.SliceEmpty(t, x.endpoints.all())
	must.Eq(t, []string{is.Endpoint}, x.released())
	must.StrContains(t, x.only().Waits, "is not registered")
	must.Len(t, 1, x.waiting())

	// It waits over a restart of the agent.
	x.standings, err = openStandings(filepath.Join(x.Agent.node.Config.DataDir, "attached.json"))
	must.NoError(t, err)
	x.tend()
	must.SliceEmpty(t, addressesIn(t, path))
	x.register("pg-2", "postgres")
	x.tend()
	must.Len(t, 2, addressesIn(t, path))
	must.Eq(t, is.Endpoint, x.only().Endpoint)
	must.Eq(t, "", x.only().Waits)
	must.SliceEmpty(t, x.waiting())

	for range 2 {
		_, err = x.call(cnicall.Request{Command: "DEL", ContainerID: r.ContainerID, IfName: r.IfName})
		must.NoError(t, err)
	}
	must.SliceEmpty(t, addressesIn(t, path))
	must.SliceEmpty(t, x.listAttached())
	x.tend()
}

// A Consul agent that does not answer ends nothing, and keeps nobody from having a lost interface
// made again.
func TestUnreadableConsulEndsNothing(t *testing.T) {
	x := newAttachingAgent(t)
	path := x.make("db")
	x.register("pg", "postgres")
	first, err := x.call(x.request("db", "postgres", path))
	must.NoError(t, err)
	away, err := consulapi.NewClient(&consulapi.Config{Address: "127.0.0.1:1"})
	must.NoError(t, err)
	x.registrar.Consul = away
	unreadable := func() {
		t.Helper()
		x.inNode(func() {
			must.ErrorContains(t, x.tendAttached(t.Context()), "whether attached workloads are registered is unknown")
		})
	}
	unreadable()
	must.MapEmpty(t, x.standings.missing)
	out, err := exec.Command("nsenter", "--net="+path, "ip", "link", "del", "dev", "eth0").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	unreadable()
	must.Eq(t, first, addressesIn(t, path))
}

// An allocation whose interface is made again is handed out as before: its tasks go on, and the
// controller tells only of changes.
func TestMadeAgainIsHandedOut(t *testing.T) {
	x := newAttachingAgent(t)
	path := x.make("alloc")
	r := cnicall.Request{Command: "ADD", ContainerID: "c1", IfName: "eth0", Allocation: "a", Space: cnicall.Space{Path: path}}
	first, err := x.call(r)
	must.NoError(t, err)
	must.Eq(t, catalog.Life{Waits: "waits for its start"}, x.lives.of("a"))
	x.lives.take(api.EndpointLives{Endpoints: map[string]api.EndpointLife{"a": {State: api.LifeReady}}}, map[string]bool{"a": true})
	task := exec.Command("nsenter", "--net="+path, "sleep", "600") // by which the agent finds the namespace
	must.NoError(t, task.Start())
	defer func() { _ = task.Process.Kill(); _ = task.Wait() }()
	ep, _ := x.endpoints.get(cnicall.Attachment{ContainerID: "c1", IfName: "eth0"})
	eventuallyTrue(t, "its namespace is found", func() (found bool) {
		x.inNode(func() {
			n, err := x.namespaces.Find(ep.HostIf)
			if found = err == nil; found {
				n.Close()
			}
		})
		return found
	})
	out, err := exec.Command("nsenter", "--net="+path, "ip", "link", "del", "dev", "eth0").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	x.inNode(func() { x.sweep(t.Context()) })
	must.Eq(t, first, addressesIn(t, path))
	must.Eq(t, catalog.Life{}, x.lives.of("a"))
}

// One whose namespace or owner is gone is detached, and another namespace replaces the first.
func TestAttachedEndsWithItsNamespace(t *testing.T) {
	x := newAttachingAgent(t)
	x.register("pg", "postgres")
	path := x.make("db")
	first, err := x.call(x.request("db", "postgres", path))
	must.NoError(t, err)
	id := x.only().Endpoint
	second, err := x.call(x.request("db", "postgres", x.make("db2")))
	must.NoError(t, err)
	must.Eq(t, first, second)
	must.SliceEmpty(t, addressesIn(t, path))
	must.Eq(t, first, addressesIn(t, x.spaces.Path("db2")))
	must.Eq(t, id, x.only().Endpoint)

	must.NoError(t, x.spaces.Remove("db2"))
	eventuallyTrue(t, "it is detached", func() bool { x.tend(); return len(x.listAttached()) == 0 })
	must.SliceEmpty(t, x.endpoints.all())
	must.Eq(t, []string{id}, x.released())

	// A process is the owner.
	owner := exec.Command("sleep", "600")
	must.NoError(t, owner.Start())
	r := x.request("job", "postgres", path)
	r.Space.Owner = owner.Process.Pid
	_, err = x.call(r)
	must.NoError(t, err)
	x.tend()
	must.Len(t, 1, x.listAttached())
	must.NoError(t, owner.Process.Kill())
	var exit *exec.ExitError
	must.True(t, errors.As(owner.Wait(), &exit))
	x.tend()
	must.SliceEmpty(t, x.listAttached())
	must.SliceEmpty(t, addressesIn(t, path))
	_, err = x.call(r)
	must.ErrorContains(t, err, fmt.Sprintf("process %d, which is to keep the namespace, does not run", r.Space.Owner))
}

func TestAttachRefuses(t *testing.T) {
	x := newAttachingAgent(t)
	x.register("pg", "postgres")
	path := x.make("db")
	_, err := x.call(x.request("host", "postgres", "/proc/self/ns/net"))
	must.ErrorContains(t, err, "the node's own network namespace")
	_, err = x.call(x.request("", "postgres", path))
	must.ErrorContains(t, err, "needs a name and a Consul service")
	_, err = x.call(x.request("db", "", path))
	must.ErrorContains(t, err, "needs a name and a Consul service")
	unseen := x.request("db", "postgres", path)
	unseen.Namespace, err = netspace.Open(path)
	must.NoError(t, err)
	defer unseen.Namespace.Close()
	unseen.Space.Path = "/nowhere"
	x.inNode(func() { _, err = x.Handle(t.Context(), unseen) })
	must.ErrorContains(t, err, "the agent does not see the network namespace at /nowhere")
	must.SliceEmpty(t, x.listAttached())
	must.SliceEmpty(t, x.endpoints.all())
	must.SliceEmpty(t, addressesIn(t, path))

	// What has a network keeps it.
	occupied := x.make("occupied")
	out, err := exec.Command("nsenter", "--net="+occupied, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	_, err = x.call(x.request("occupied", "postgres", occupied))
	must.ErrorContains(t, err, "the namespace has an interface eth0")
	out, err = exec.Command("nsenter", "--net="+occupied, "ip", "link", "show", "dev", "eth0").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))

	// The name is taken, whoever attached it.
	_, err = x.call(x.request("db", "postgres", path))
	must.NoError(t, err)
	taken := x.request("db", "postgres", x.make("other"))
	taken.ContainerID = "c1"
	_, err = x.call(taken)
	must.ErrorContains(t, err, `"db" is attached already, by container attached-db`)

	// What a runtime attached, it collects.
	taken.Attach.Name = "pod"
	taken.Network, taken.Runtime = "sif", "podman"
	_, err = x.call(taken)
	must.NoError(t, err)
	must.Len(t, 2, x.listAttached())
	_, err = x.call(cnicall.Request{Command: "GC", Network: "sif", Runtime: "podman"})
	must.NoError(t, err)
	must.Eq(t, "db", x.only().Name)

	// An ADD that was interrupted before it was recorded leaves nothing.
	must.NoError(t, x.standings.remove(cnicall.AttachmentOf("db")))
	x.inNode(func() { x.sweep(t.Context()) })
	must.SliceEmpty(t, x.endpoints.all())
	must.SliceEmpty(t, addressesIn(t, path))
}

// An ADD waits for a registration that is about to come.
func TestAttachWaitsForItsRegistration(t *testing.T) {
	x := newAttachingAgent(t)
	r := x.request("db", "postgres", x.make("db"))
	r.Patience = answerTime + time.Minute
	time.AfterFunc(500*time.Millisecond, func() {
		_ = x.consul.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{ID: "pg", Name: "postgres"})
	})
	_, err := x.call(r)
	must.NoError(t, err)
}

// Of several registrations, that with the name of the attachment counts, else all of them.
func TestWhichRegistrationCounts(t *testing.T) {
	x := newAttachingAgent(t)
	x.register("pg", "postgres")
	for name, counts := range map[string]string{"db": "db", "other": ""} {
		if counts != "" {
			x.register(counts, "postgres")
		}
		_, err := x.call(x.request(name, "postgres", x.make(name)))
		must.NoError(t, err)
		s, is := x.standings.get(cnicall.AttachmentOf(name))
		must.True(t, is)
		must.Eq(t, catalog.Source{Service: "postgres", ID: counts}, s.source())
	}
	x.deregister("db")
	x.tend()
	for at := range x.standings.missing {
		must.Eq(t, cnicall.AttachmentOf("db"), at)
		x.standings.missing[at] = time.Now().Add(-registrationGrace)
	}
	x.tend()
	must.Len(t, 1, x.waiting())
	must.StrContains(t, x.waiting()[0].Why, `"db" of Consul service "postgres" is not registered`)
	x.register("db", "postgres")
	x.tend()
	must.SliceEmpty(t, x.waiting())
}

func eventuallyTrue(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 30 s: " + what)
		}
	}
}
