// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package guest

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/mdlayher/ndp"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/testhost"
)

// machine is a namespace with a tap interface, and the guest's end of it.
type machine struct {
	t     *testing.T
	space ns.NetNS
	tap   *os.File
}

func newMachine(t *testing.T) *machine {
	testhost.RequireRoot(t)
	space, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, space.Close())
		must.NoError(t, testutils.UnmountNS(space))
	})
	m := &machine{t: t, space: space}
	m.run("ip tuntap add tap0 mode tap; sysctl -qw net.ipv6.conf.tap0.disable_ipv6=1; ip link set tap0 up")
	m.inside(func() {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		must.NoError(t, err)
		request, err := unix.NewIfreq("tap0")
		must.NoError(t, err)
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		must.NoError(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
		m.tap = os.NewFile(uintptr(fd), "tap0")
	})
	t.Cleanup(func() { _ = m.tap.Close() })
	return m
}

func (m *machine) inside(do func()) {
	must.NoError(m.t, m.space.Do(func(ns.NetNS) error { do(); return nil }))
}

func (m *machine) run(command string) {
	m.t.Helper()
	out, err := exec.Command("nsenter", "--net="+m.space.Path(), "sh", "-ec", command).CombinedOutput()
	must.NoError(m.t, err, must.Sprintf("%s: %s", command, out))
}

func (m *machine) open() (r *Responder) {
	m.inside(func() {
		var err error
		r, err = Open("tap0", config)
		must.NoError(m.t, err)
	})
	m.t.Cleanup(func() { _ = r.Close() })
	return r
}

func (m *machine) send(frame []byte) {
	m.t.Helper()
	_, err := m.tap.Write(frame)
	must.NoError(m.t, err)
}

// ask sends a frame until one that matches comes, and returns that. The kernel takes up to a second
// to let packets out to a guest that has come.
func (m *machine) ask(frame []byte, match func([]byte) bool) []byte {
	m.t.Helper()
	must.NoError(m.t, m.tap.SetReadDeadline(time.Unix(1, 0)))
	end := time.Now().Add(20 * time.Second)
	for b := make([]byte, 4096); ; {
		n, err := m.tap.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			must.True(m.t, time.Now().Before(end), must.Sprint("no answer"))
			must.NoError(m.t, m.tap.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
			m.send(frame)
			continue
		}
		must.NoError(m.t, err)
		if match(b[:n]) {
			return b[:n]
		}
	}
}

func kind(k uint16) func([]byte) bool {
	return func(b []byte) bool { return binary.BigEndian.Uint16(b[12:]) == k }
}

func isUDP6(b []byte) bool { return kind(etherIPv6)(b) && b[ethernetLength+6] == protocolUDP }

// A guest gets its addresses over a tap interface, learns of its router unasked, and asks too much.
func TestResponder(t *testing.T) {
	m := newMachine(t)
	r := m.open()
	must.Eq(t, Told{}, r.Told())
	_, offer := read4(t, m.ask(sent4(any4, message4(t, dhcpv4.MessageTypeDiscover)), kind(etherIPv4)))
	must.Eq(t, dhcpv4.MessageTypeOffer, offer.MessageType())
	must.False(t, r.Told().Asked.IsZero())
	must.True(t, r.Told().IPv4.IsZero())
	request, err := dhcpv4.NewRequestFromOffer(offer)
	must.NoError(t, err)
	isAck := func(b []byte) bool {
		if !kind(etherIPv4)(b) {
			return false
		}
		_, m := read4(t, b)
		return m.MessageType() == dhcpv4.MessageTypeAck
	}
	_, ack := read4(t, m.ask(sent4(any4, request), isAck))
	must.True(t, ack.YourIPAddr.Equal(own4))

	m.ask(sent6(local, message6(dhcpv6.MessageTypeSolicit, dhcpv6.OptClientID(client), &dhcpv6.OptIANA{})), isUDP6)
	body, err := ndp.MarshalMessageChecksum(&ndp.RouterSolicitation{}, local, allNodes)
	must.NoError(t, err)
	m.ask(sent(config.MAC, ipPacket(local, netip.MustParseAddr("ff02::2"), protocolICMPv6, 255, body)),
		func(b []byte) bool { return kind(etherIPv6)(b) && b[ethernetLength+ipv6Length] == 134 })

	// What is not for the node never reaches the socket, and a flood ends at the bound.
	m.send(sent(config.MAC, udpPacket(netip.AddrPortFrom(config.IPv4, 68), netip.AddrPortFrom(broadcast4, 53), make([]byte, 300))))
	for deadline := time.Now().Add(20 * time.Second); r.Told().Limited == 0; {
		must.True(t, time.Now().Before(deadline))
		m.send(sent4(any4, message4(t, dhcpv4.MessageTypeDiscover)))
	}
	must.NoError(t, r.Close())
	must.True(t, r.Ended())
}

// A guest that asks without end is not read without end: what it asks waits in the kernel, which
// drops what is too much, and that is counted.
func TestResponderIsNotKeptBusy(t *testing.T) {
	m := newMachine(t)
	r := m.open()
	question := sent4(any4, message4(t, dhcpv4.MessageTypeDiscover))
	waits := func() (bytes int) {
		raw, err := r.socket.SyscallConn()
		must.NoError(t, err)
		must.NoError(t, raw.Control(func(fd uintptr) {
			bytes, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ)
			must.NoError(t, err)
		}))
		return bytes
	}
	sent := uint64(0)
	for end := time.Now().Add(20 * time.Second); ; {
		for range 1000 {
			m.send(question)
			sent++
		}
		time.Sleep(2 * pause)
		if waits() > 0 {
			break
		}
		must.True(t, time.Now().Before(end), must.Sprint("everything was read"))
	}
	for end := time.Now().Add(20 * time.Second); r.Told().Limited < sent/2; time.Sleep(pause) {
		must.True(t, time.Now().Before(end), must.Sprintf("%d of %d counted", r.Told().Limited, sent))
	}
	m.ask(question, kind(etherIPv4))
}

// A responder outlives that its interface is down, and another one takes its place.
func TestResponderGoesOn(t *testing.T) {
	m := newMachine(t)
	first := m.open()
	discover := sent4(any4, message4(t, dhcpv4.MessageTypeDiscover))
	m.ask(discover, kind(etherIPv4))
	m.run("ip link set tap0 down; ip link set tap0 up")
	m.ask(discover, kind(etherIPv4))
	must.False(t, first.Ended())
	must.NoError(t, first.Close())
	m.open()
	m.ask(discover, kind(etherIPv4))
	m.inside(func() {
		_, err := Open("tap9", config)
		must.ErrorContains(t, err, "tap9")
	})
}
