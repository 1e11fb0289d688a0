// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
	wgconn "golang.zx2c4.com/wireguard/conn"
	wgdevice "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/node/rpc"
	"github.com/sif-project/sif/internal/trust/identity"
)

// sightings are the datagrams that arrive at a workload, by what they begin with.
type sightings struct {
	mu   sync.Mutex
	last map[string]time.Time
	seen map[string]int
}

// watch listens for datagrams in the namespace of a workload until the test ends. The first word of
// each says who sent it.
func watch(t *testing.T, w workload, port uint16) *sightings {
	t.Helper()
	s := &sightings{last: map[string]time.Time{}, seen: map[string]int{}}
	socket, err := within(w.netns, func() (net.PacketConn, error) {
		return net.ListenPacket("udp", netip.AddrPortFrom(w.v4, port).String())
	})
	must.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, _, err := socket.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if who, _, found := strings.Cut(string(buf[:max(n, 0)]), " "); err == nil && found {
				s.mu.Lock()
				s.last[who], s.seen[who] = time.Now(), s.seen[who]+1
				s.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() {
		socket.Close()
		<-done
	})
	return s
}

func (s *sightings) of(who string) (last time.Time, count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last[who], s.seen[who]
}

// arrives waits until datagrams of a sender arrive.
func (s *sightings) arrives(t *testing.T, who string, within time.Duration) {
	t.Helper()
	_, before := s.of(who)
	eventually(t, within, func() error {
		if _, now := s.of(who); now < before+5 {
			return fmt.Errorf("of %s arrived %d datagrams, and nothing more", who, now)
		}
		return nil
	})
}

// silent waits until no datagram of a sender has arrived for quiet, and returns when the last one
// did.
func (s *sightings) silent(t *testing.T, who string, quiet, within time.Duration) (last time.Time) {
	t.Helper()
	eventually(t, within, func() error {
		if last, _ = s.of(who); time.Since(last) < quiet {
			return fmt.Errorf("datagrams of %s still arrive", who)
		}
		return nil
	})
	return last
}

// send sends datagrams of a sender from a workload at each tick until the test ends.
func send(t *testing.T, from, to workload, port uint16, who string) {
	t.Helper()
	conn, err := within(from.netns, func() (net.Conn, error) {
		return net.Dial("udp", netip.AddrPortFrom(to.v4, port).String())
	})
	must.NoError(t, err)
	repeat(t, func(n int) { _, _ = conn.Write(fmt.Appendf(nil, "%s %d", who, n)) })
	t.Cleanup(func() { conn.Close() })
}

// repeat calls do at each tick until the test ends.
func repeat(t *testing.T, do func(n int)) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			do(n)
			select {
			case <-ctx.Done():
			case <-time.After(tick):
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// steal copies the state directory of a node's agent, and sends with its key, from another machine
// of the lab, datagrams of one of its endpoints to a workload on a third node of the zone.
func (f *fabricUnderTest) steal(t *testing.T, from, to workload, machine string, port uint16, who string) {
	t.Helper()
	conf, err := config.Load(f.SIFConfig(from.node, "agent"), config.RoleAgent)
	must.NoError(t, err)
	copied := filepath.Join(t.TempDir(), "stolen")
	must.NoError(t, os.CopyFS(copied, os.DirFS(conf.DataDir)))
	data, err := os.ReadFile(filepath.Join(copied, "links.json"))
	must.NoError(t, err)
	var kept struct{ Key string }
	must.NoError(t, json.Unmarshal(data, &kept))
	key, err := link.ParsePrivateKey(kept.Key)
	must.NoError(t, err)
	record, theirs := f.record(t, fabric.NodeID{Zone: to.zone, Name: to.node})
	var node fabric.Node
	must.NoError(t, json.Unmarshal(record.Node.Payload, &node))

	tunnel := tuntest.NewChannelTUN()
	device := wgdevice.NewDevice(tunnel.TUN(), machineBind{wgconn.NewStdNetBind(), f.NetNS(machine)}, wgdevice.NewLogger(wgdevice.LogLevelSilent, ""))
	t.Cleanup(device.Close)
	must.NoError(t, device.IpcSet(fmt.Sprintf("private_key=%x\npublic_key=%x\nendpoint=%s\nallowed_ip=%s\npersistent_keepalive_interval=1\n",
		[32]byte(key), theirs.PublicKey, netip.AddrPortFrom(node.Underlay, theirs.Port(fabric.NodeID{})), node.Pool4)))
	must.NoError(t, device.Up())
	go func() {
		for range tunnel.Inbound { // what comes back
		}
	}()
	repeat(t, func(n int) {
		select {
		case tunnel.Outbound <- datagram(from.v4, to.v4, port, fmt.Sprintf("%s %d", who, n)):
		case <-time.After(time.Second):
		}
	})
}

// machineBind has the sockets of a WireGuard device in the namespace of a machine.
type machineBind struct {
	wgconn.Bind
	path string
}

// Open implements conn.Bind.
func (b machineBind) Open(port uint16) (fns []wgconn.ReceiveFunc, actual uint16, err error) {
	_, err = within(b.path, func() (struct{}, error) {
		fns, actual, err = b.Bind.Open(port)
		return struct{}{}, err
	})
	return fns, actual, err
}

// revokes runs sif revoke, and returns when it was called and what it printed.
func (f *fabricUnderTest) revokes(t *testing.T, args ...string) (called time.Time, reply api.Revoked) {
	t.Helper()
	called = time.Now()
	r := f.sif(t, append([]string{"revoke", args[0], "-json", "-wait=0", "-reason=e2e"}, args[1:]...)...)
	must.Zero(t, r.code, must.Sprint(r.stderr))
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &reply))
	t.Logf("sif revoke %s answered after %s", args[0], time.Since(called).Round(time.Millisecond))
	return called, reply
}

// told logs how long after a call somebody was heard last.
func told(t *testing.T, what string, called, last time.Time) {
	t.Helper()
	t.Logf("%s: the last packet arrived %s after the command began", what, last.Sub(called).Round(100*time.Microsecond))
}

// How long nothing must arrive, so that it has ended, and how long that may take. The figures that
// the tests print say how long it took.
const (
	voidFor    = 3 * time.Second
	voidWithin = 20 * time.Second
)

// TestRevoke revokes an endpoint while its node resists: its agent is stopped, so that its data
// path goes on, and a copy of its state directory sends with its key from another machine. Nothing
// of it arrives any more, on connections that are open too, in its own zone and in the other; all
// others go on under load. Then it is reinstated.
func TestRevoke(t *testing.T) {
	world.withTestPorts(t)
	world.allWell(t, time.Minute)
	victim, near, far := world.threeNodes(t)
	atNear, atFar := watch(t, near, newsPort), watch(t, far, newsPort)
	send(t, victim, near, newsPort, "victim")
	send(t, victim, far, newsPort, "victim")
	open := openStream(t, victim, near, newsPort, "victim")
	atNear.arrives(t, "victim", 10*time.Second)
	atFar.arrives(t, "victim", 10*time.Second)
	// Others go on under load.
	worker, db := world.workload(t, "voting-app/worker", "aws1"), world.workload(t, "voting-app/result-db", "gcp1")
	flows := openAttempts(t, worker, db, 7002)
	t.Logf("victim %s, near %s, far %s; others: %s to %s", victim, near, far, worker, db)

	world.resists(t, victim.node)
	thief := "aws1-p1"
	world.steal(t, victim, near, thief, newsPort, "thief")
	atNear.arrives(t, "thief", 20*time.Second)
	called, reply := world.revokes(t, "endpoint", victim.alloc)
	must.Eq(t, []string{victim.alloc}, reply.Endpoints)
	told(t, "the endpoint, within its zone", called, atNear.silent(t, "victim", voidFor, voidWithin))
	told(t, "the endpoint, to the other zone", called, atFar.silent(t, "victim", voidFor, voidWithin))
	told(t, "its stolen copy", called, atNear.silent(t, "thief", voidFor, voidWithin))
	served := open.served.Load()
	time.Sleep(voidFor)
	must.Eq(t, served, open.served.Load(), must.Sprint("a connection that is open"))
	reaches(t, victim, near, 9001, false, 10*time.Second)
	flows.stop()
	made, err := flows.count()
	must.NoError(t, err, must.Sprintf("some of %d connections of others failed", made))
	must.Positive(t, made)

	// People are told, by the controller, although the node says nothing.
	s := world.status(t)
	must.Eq(t, 1, s.Revocations.Endpoints)
	must.StrContains(t, world.sif(t, "status").stdout, "endpoint "+victim.alloc+" was revoked")
	must.StrContains(t, world.sif(t, "revoke", "list").stdout, victim.alloc)
	answer := world.sif(t, "explain", victim.alloc, near.alloc, "9001")
	must.StrContains(t, answer.stdout, "endpoint "+victim.alloc+" was revoked")

	// Its node hears of it, and heeds it.
	must.NoError(t, world.Signal(victim.node, "agent", syscall.SIGCONT))
	eventually(t, time.Minute, func() error {
		if behind := world.status(t).Revocations.Behind; len(behind) > 0 {
			return fmt.Errorf("behind: %v", behind)
		}
		return nil
	})
	world.allWell(t, time.Minute)
	world.verified(t, time.Minute)

	r := world.sif(t, "reinstate", "endpoint", victim.alloc[:8])
	must.Zero(t, r.code, must.Sprint(r.stderr))
	atNear.arrives(t, "victim", time.Minute)
	atFar.arrives(t, "victim", time.Minute)
	world.allWell(t, time.Minute)
	world.verified(t, time.Minute)
}

// threeNodes returns an endpoint, and two counterparts of it: on another node of its zone, and in
// the other zone.
func (f *fabricUnderTest) threeNodes(t *testing.T) (victim, near, far workload) {
	t.Helper()
	apart := func() error {
		for _, v := range f.workloads(t, "getaway-app/getaway-svc", "aws1") {
			for _, n := range f.workloads(t, "getaway-app/news-gw", "aws1") {
				if n.node != v.node {
					victim, near = v, n
				}
			}
		}
		if victim.alloc == "" {
			return errors.New("no getaway-svc and news-gw run on two nodes of aws1")
		}
		return nil
	}
	if apart() != nil { // Nomad has placed them on one node, after what earlier tests did
		news := f.workload(t, "getaway-app/news-gw", "aws1")
		for _, n := range f.Topology.Nodes() {
			if n.Zone == "aws1" && n.Kind == lab.Workload && n.Name != news.node {
				defer f.only(t, "aws1", n.Name)()
			}
		}
		_, err := f.nomad.Allocations().Stop(&nomad.Allocation{ID: news.alloc}, nil)
		must.NoError(t, err)
	}
	eventually(t, 2*time.Minute, apart)
	return victim, near, f.workload(t, "getaway-app/news-gw", "gcp1")
}

// resists stops the agent of a node until the test ends, so that it heeds nothing, while its data
// path and its links go on.
func (f *fabricUnderTest) resists(t *testing.T, node string) {
	t.Helper()
	t.Cleanup(func() { must.NoError(t, f.Signal(node, "agent", syscall.SIGCONT)) })
	must.NoError(t, f.Signal(node, "agent", syscall.SIGSTOP))
}

// TestRevokeWithoutServers revokes a service while Consul is away, after Consul and Vault were away
// for longer than a token of Consul lives: Vault is back to sign, and the list comes from the
// controller, and by other daemons to one that does not reach the controller.
func TestRevokeWithoutServers(t *testing.T) {
	world.withTestPorts(t)
	world.allWell(t, time.Minute)
	victim, near, far := world.threeNodes(t)
	atNear, atFar := watch(t, near, newsPort), watch(t, far, newsPort)
	send(t, victim, near, newsPort, "victim")
	send(t, victim, far, newsPort, "victim")
	atNear.arrives(t, "victim", 10*time.Second)
	atFar.arrives(t, "victim", 10*time.Second)
	orchestrator := world.Topology.Orchestrator()

	// When a token's life is over, it is as if it had been deleted.
	tokens, _, err := world.consul.ACL().TokenListFiltered(consul.ACLTokenFilterOptions{AuthMethod: "sif"}, nil)
	must.NoError(t, err)
	for _, token := range tokens {
		_, err := world.consul.ACL().TokenDelete(token.AccessorID, nil)
		must.NoError(t, err)
	}
	for _, server := range []string{"consul", "vault"} {
		t.Cleanup(func() { must.NoError(t, world.Signal(orchestrator.Name, server, syscall.SIGCONT)) })
		must.NoError(t, world.Signal(orchestrator.Name, server, syscall.SIGSTOP))
	}
	vault := world.Secrets.VaultRoot
	refused := world.sif(t, "revoke", "service", "-token=", "-vault-token="+vault, "getaway-app/getaway-svc")
	must.Eq(t, 1, refused.code, must.Sprint("Vault cannot be asked about the operator's token, nor sign"))
	atNear.arrives(t, "victim", 10*time.Second)

	// One node's agent reaches the controller no more, and has it from its engine.
	world.unreachable(t, near.node, orchestrator.Address, 8440)
	world.resists(t, victim.node)
	must.NoError(t, world.Signal(orchestrator.Name, "vault", syscall.SIGCONT))
	var called time.Time
	var reply api.Revoked
	eventually(t, time.Minute, func() error { // the controller finds Vault again
		called = time.Now()
		r := world.sif(t, "revoke", "service", "-json", "-wait=0", "-reason=e2e", "-vault-token="+vault, "getaway-app/getaway-svc")
		if r.code != 0 {
			return errors.New(r.stderr)
		}
		return json.Unmarshal([]byte(r.stdout), &reply)
	})
	must.NotEq(t, "", reply.Unstored, must.Sprint("Consul cannot be written"))
	told(t, "the service, at a node without controller and Consul", called, atNear.silent(t, "victim", voidFor, voidWithin))
	told(t, "the service, in the other zone, without Consul", called, atFar.silent(t, "victim", voidFor, voidWithin))

	must.NoError(t, world.Signal(orchestrator.Name, "consul", syscall.SIGCONT))
	must.NoError(t, world.Signal(victim.node, "agent", syscall.SIGCONT))
	eventually(t, 2*time.Minute, func() error {
		r := world.sif(t, "reinstate", "service", "getaway-app/getaway-svc")
		if r.code != 0 {
			return errors.New(r.stderr)
		}
		return nil
	})
	atNear.arrives(t, "victim", 2*time.Minute)
	atFar.arrives(t, "victim", 2*time.Minute)
}

// unreachable drops what a node sends to a TCP port of an address until the test ends, and ends the
// connections to it.
func (f *fabricUnderTest) unreachable(t *testing.T, node, address string, port uint16) {
	t.Helper()
	const table = "sif-e2e-unreachable"
	nft := func(commands string) { must.NoError(t, f.NFT(context.Background(), node, commands)) }
	t.Cleanup(func() { nft("delete table ip " + table) })
	nft(fmt.Sprintf("table ip %s {\n chain out { type filter hook output priority 0; ip daddr %s tcp dport %d drop; }\n}", table, address, port))
}

// TestRevokeNode revokes a node that resists as in TestRevoke: its links, with its key, lead
// nowhere any more, from the machine itself as from the copy.
func TestRevokeNode(t *testing.T) {
	world.withTestPorts(t)
	world.allWell(t, time.Minute)
	victim, near, far := world.threeNodes(t)
	id := fabric.NodeID{Zone: victim.zone, Name: victim.node}
	var removal api.Removal
	t.Cleanup(func() { // after the senders: their sockets keep the workload's namespace
		if removal.Sequence > 0 {
			world.rejoin(t, id, removal)
		}
	})
	atNear, atFar := watch(t, near, newsPort), watch(t, far, newsPort)
	send(t, victim, near, newsPort, "victim")
	send(t, victim, far, newsPort, "victim")
	atNear.arrives(t, "victim", 10*time.Second)
	atFar.arrives(t, "victim", 10*time.Second)
	world.resists(t, victim.node)
	world.steal(t, victim, near, "aws1-p1", newsPort, "thief")
	atNear.arrives(t, "thief", 20*time.Second)
	called := time.Now()
	r := world.sif(t, "revoke", "node", "-json", "-reason=e2e", id.String())
	must.Zero(t, r.code, must.Sprint(r.stderr))
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &removal))
	told(t, "the node, within its zone", called, atNear.silent(t, "victim", voidFor, voidWithin))
	told(t, "the node, to the other zone", called, atFar.silent(t, "victim", voidFor, voidWithin))
	told(t, "its stolen copy", called, atNear.silent(t, "thief", voidFor, voidWithin))
	must.NoError(t, world.Signal(victim.node, "agent", syscall.SIGCONT))
}

// TestRevokeCertificate revokes the certificate of a workload node, of which somebody has a copy:
// it is refused by the controller and by the engine, its open connection to the engine is closed,
// and the node goes on with another certificate.
func TestRevokeCertificate(t *testing.T) {
	world.allWell(t, time.Minute)
	h := world.hostile(t, "gcp1")
	leaf := h.identity.Certificate().Leaf
	status, text := h.call(t, "GET", "/v1/node/admissions", "")
	must.Eq(t, 200, status, must.Sprint(text))
	var engine fabric.Node
	for _, n := range world.Topology.Nodes(lab.Processor) {
		if n.Zone == h.id.Zone {
			record, _ := world.record(t, fabric.NodeID{Zone: n.Zone, Name: n.Name})
			must.NoError(t, json.Unmarshal(record.Node.Payload, &engine))
		}
	}
	dial := func() (conn *rpc.Conn, err error) {
		err = world.In(h.machine, func() error {
			handler := func(context.Context, rpc.Peer, string, json.RawMessage) (any, error) {
				return nil, errors.New("a thief")
			}
			conn, err = rpc.Dial(t.Context(), netip.AddrPortFrom(engine.Underlay, engine.Engine).String(), h.identity.ClientTLS(identity.OfNode(engine)), h.identity, handler)
			return err
		})
		return conn, err
	}
	conn, err := dial()
	must.NoError(t, err)
	defer conn.Close()

	called, _ := world.revokes(t, "certificate", identity.Serial(leaf))
	select {
	case <-conn.Done():
		t.Logf("the open connection to the engine was closed %s after the command began", time.Since(called).Round(time.Millisecond))
	case <-time.After(voidWithin):
		t.Fatal("the open connection to the engine stays open")
	}
	status, text = h.call(t, "GET", "/v1/node/admissions", "")
	must.Eq(t, 403, status, must.Sprint(text))
	must.StrContains(t, text, "was revoked at")
	if again, err := dial(); err == nil {
		must.Error(t, again.Call(t.Context(), rpc.MethodSync, rpc.SyncParams{}, nil))
	}
	eventually(t, time.Minute, func() error {
		if now := world.as(t, world.nodeNamed(h.machine)).identity.Certificate().Leaf; now.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
			return errors.New("the node has no other certificate yet")
		}
		return nil
	})
	t.Logf("the node had another certificate %s after the command began", time.Since(called).Round(time.Millisecond))
	world.allWell(t, time.Minute)
	world.verified(t, time.Minute)
}

func (f *fabricUnderTest) nodeNamed(name string) *lab.Node {
	list := f.Topology.Nodes()
	return list[slices.IndexFunc(list, func(n *lab.Node) bool { return n.Name == name })]
}
