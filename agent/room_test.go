// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/testhost"
)

// bootTime bounds how long an emulated machine takes to serve, on a busy host.
const bootTime = 5 * time.Minute

// room is a node with a container that may call its guest, and be called.
type room struct {
	t                         testing.TB
	dir                       string
	by                        bpf.Mechanism
	node, container, workload ns.NetNS
	a                         *Agent
	data                      *bpf.Datapath
	guest, other              endpoint
}

func newRoom(t testing.TB, by bpf.Mechanism) *room {
	r := &room{t: t, by: by, dir: filepath.Join(t.TempDir(), "bpf"), node: newNamespace(t), container: newNamespace(t), workload: newNamespace(t)}
	_, err := bpf.MountBPFFS(r.dir)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, unix.Unmount(r.dir, 0)) })
	r.start()
	service := fabric.Admission{Service: refOf("shop/web")}
	r.guest = endpoint{ID: "0a1b2c3d-alloc", VM: true, Attachment: at("c1"), HostIf: "sif0123456789a", IPv4: netip.MustParseAddr("100.64.0.2"), IPv6: netip.MustParseAddr("fd5f::2"), Admission: service}
	r.other = endpoint{ID: "b", Attachment: at("c2"), HostIf: "sif0123456789b", IPv4: netip.MustParseAddr("100.64.0.3"), IPv6: netip.MustParseAddr("fd5f::3"), Admission: service}
	r.onNode(func() {
		must.NoError(t, kernel.Set(router(fabric.Node{})))
		r.attach(&r.guest, r.workload, 1)
		r.attach(&r.other, r.container, 2)
	})
	every := []bpf.Rule{{Protocol: 6, From: 1, To: 65535, Contract: 1}}
	must.NoError(t, r.data.ReplacePair(bpf.Pair{Source: 1, Destination: 2}, every))
	must.NoError(t, r.data.ReplacePair(bpf.Pair{Source: 2, Destination: 1}, every))
	return r
}

func (r *room) onNode(do func()) {
	r.t.Helper()
	must.NoError(r.t, r.node.Do(func(ns.NetNS) error { do(); return nil }))
}

// start starts an agent, which takes over from the one before.
func (r *room) start() {
	a, _, _ := hookedAgent(r.t)
	a.node.Config.BPFDir = r.dir
	d, err := bpf.Open(filepath.Join(r.dir, "sif"), bpf.Options{Mechanism: r.by})
	must.NoError(r.t, err)
	r.t.Cleanup(func() { _ = d.Close() })
	a.data = d
	r.a, r.data = a, d
}

func (r *room) attach(ep *endpoint, space ns.NetNS, identity uint32) {
	adding := &attachment{namespace: space, endpoint: *ep}
	must.NoError(r.t, r.a.makeInterfaces(adding))
	_, err := r.a.attachPrograms(ep.HostIf)
	must.NoError(r.t, err)
	must.NoError(r.t, guestHook{r.a}.attach(r.t.Context(), adding))
	must.NoError(r.t, adding.wait())
	*ep = adding.endpoint
	must.NoError(r.t, r.data.PutEndpoint(bpf.Endpoint{Interface: uint32(ep.HostIndex), Identity: identity, IPv4: ep.IPv4, IPv6: ep.IPv6}))
	for _, address := range []netip.Addr{ep.IPv4, ep.IPv6} {
		must.NoError(r.t, r.data.PutPeer(bpf.Peer{Address: address, Identity: identity, Interface: uint32(ep.HostIndex)}))
	}
	must.NoError(r.t, adding.pair.raiseHost(ep.IPv4, ep.IPv6))
	must.NoError(r.t, adding.pair.raiseWorkload("eth0", space, ep.IPv4, ep.IPv6))
	must.NoError(r.t, answersHook{r.a}.attach(r.t.Context(), adding))
	must.NoError(r.t, r.a.endpoints.put(*ep)())
}

// dial connects from the container, without multipath TCP, which the guest's kernel has not.
func dial(space ns.NetNS, to netip.AddrPort, patience time.Duration) (c net.Conn, err error) {
	d := net.Dialer{Timeout: patience}
	d.SetMultipathTCP(false)
	err = space.Do(func(ns.NetNS) (err error) {
		c, err = d.Dial("tcp", to.String())
		return err
	})
	return c, err
}

// ask sends a line to a service of the guest and returns the line that it answers.
func ask(space ns.NetNS, to netip.AddrPort, line string) (string, error) {
	c, err := dial(space, to, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	fmt.Fprintln(c, line)
	answer, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(answer), err
}

// eventually asks until the answer is the wanted one.
func eventually(t testing.TB, space ns.NetNS, to netip.AddrPort, line, want string) {
	t.Helper()
	for end := time.Now().Add(bootTime); ; time.Sleep(200 * time.Millisecond) {
		answer, err := ask(space, to, line)
		if err == nil && answer == want {
			return
		}
		must.True(t, time.Now().Before(end), must.Sprintf("%s answers %q, %v", to, answer, err))
	}
}

// greet answers each line that comes to a port of the container.
func greet(t testing.TB, space ns.NetNS, port uint16) {
	t.Helper()
	var l net.Listener
	must.NoError(t, space.Do(func(ns.NetNS) (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if line, err := bufio.NewReader(c).ReadString('\n'); err == nil {
					fmt.Fprintf(c, "%s: %s", netip.MustParseAddrPort(c.RemoteAddr().String()).Addr().Unmap(), line)
				}
			}()
		}
	}()
}

// A guest that keeps Ethernet's MTU, whatever it is told, is answered as by a router: its packet is
// too big for the other endpoint.
func TestGuestWithAnotherMTU(t *testing.T) {
	testhost.RequireRoot(t)
	r := newRoom(t, "")
	must.NoError(t, r.data.ReplacePair(bpf.Pair{Source: 1, Destination: 2}, []bpf.Rule{{Protocol: 17, From: 1, To: 65535, Contract: 1}}))
	q := openGuest(t, r.workload)
	long := datagram(netip.AddrPortFrom(r.guest.IPv4, 1), netip.AddrPortFrom(r.other.IPv4, 8000), make([]byte, 1500-28))
	long[6] = 0x40 // it must not be cut
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(long[i])<<8 + uint32(long[i+1])
	}
	sum = ^(sum>>16 + sum&0xffff)
	long[10], long[11] = byte(sum>>8), byte(sum)
	gateway, _ := macs(r.guest.HostIf)
	frame := slices.Concat(make([]byte, virtioHeader), gateway, guestMAC(), []byte{8, 0}, long)
	must.NoError(t, q.tap.SetReadDeadline(time.Unix(1, 0)))
	end := time.Now().Add(20 * time.Second)
	for b := make([]byte, 4096); ; {
		n, err := q.tap.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			must.True(t, time.Now().Before(end), must.Sprint("no answer"))
			must.NoError(t, q.tap.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
			_, err = q.tap.Write(frame)
		}
		must.NoError(t, err)
		if p := b[:max(n, 0)]; len(p) > virtioHeader+14+28 && p[virtioHeader+12] == 8 && p[virtioHeader+23] == 1 {
			p = p[virtioHeader+34:]
			must.Eq(t, []byte{3, 4}, p[:2]) // fragmentation needed
			must.Eq(t, r.a.workloadMTU(), int(p[6])<<8+int(p[7]))
			break
		}
	}
	r.onNode(func() {
		must.NoError(t, interfaceHook{r.a}.detach(t.Context(), &detachment{endpoint: r.guest}))
		must.NoError(t, r.a.dismantle(r.other.HostIf))
	})
}
