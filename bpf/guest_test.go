// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/ndp"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/testhost"
)

var (
	guestMAC  = net.HardwareAddr{2, 0x51, 0xf0, 0, 0, 1}
	otherMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 9}
	nodeMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 7}
	allMAC    = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	guest4    = netip.MustParseAddr("100.64.0.5")
	guest6    = netip.MustParseAddr("fd5f::5")
	gateway4  = netip.MustParseAddr("169.254.1.1")
	gateway6  = netip.MustParseAddr("fe80::1")
	ownLocal  = netip.MustParseAddr("fe80::51:f0ff:fe00:1")
	solicited = netip.MustParseAddr("ff02::1:ff00:1")
)

func testGuest() Guest {
	return Guest{MAC: guestMAC, GatewayMAC: nodeMAC, IPv4: guest4, IPv6: guest6, Gateway4: gateway4, Gateway6: gateway6, MTU: 1376}
}

// joined is a namespace with a guest in it, as the agent makes them.
type joined struct {
	t *testing.T
	*Datapath
	dir string
}

const guestName = "sif0123456789a"

func join(t *testing.T, by Mechanism) *joined {
	enterNamespace(t)
	script(t, `
		ip tuntap add tap0 mode tap vnet_hdr
		ip link add eth0 type veth peer name host
		sysctl -qw net.ipv6.conf.tap0.disable_ipv6=1 net.ipv6.conf.eth0.disable_ipv6=1 net.ipv6.conf.host.disable_ipv6=1
		for i in tap0 eth0 host; do ip link set $i mtu 1376 up; done`)
	j := &joined{t: t, dir: pinDirectory(t)}
	j.Datapath = open(t, j.dir, fixtureOptions(by))
	missing, err := j.AttachGuest(guestName, "tap0", "eth0", testGuest())
	must.NoError(t, err)
	must.Eq(t, []string{"the addresses of the guest", "the from_guest program", "the to_guest program"}, missing)
	return j
}

// from is a frame with any Ethernet source and destination.
func from(source, destination net.HardwareAddr, kind uint16, payload []byte) []byte {
	return slices.Concat(destination, source, be16(kind), payload)
}

// fromGuest is an IP packet that the guest sends to its gateway.
func fromGuest(packet []byte) []byte {
	f := ethernet(packet)
	copy(f, nodeMAC)
	copy(f[6:], guestMAC)
	return f
}

func arpPacket(operation uint16, sender net.HardwareAddr, sender4 netip.Addr, target4 netip.Addr) []byte {
	return slices.Concat(be16(1, 0x0800, 0x0604, operation), sender, sender4.AsSlice(), make([]byte, 6), target4.AsSlice())
}

func arpFrame(operation uint16, sender net.HardwareAddr, sender4, target4 string) []byte {
	return from(guestMAC, allMAC, 0x0806, arpPacket(operation, sender, netip.MustParseAddr(sender4), netip.MustParseAddr(target4)))
}

// nd is a packet of neighbour discovery.
func nd(t *testing.T, m ndp.Message, source, destination netip.Addr) []byte {
	t.Helper()
	body, err := ndp.MarshalMessageChecksum(m, source, destination)
	must.NoError(t, err)
	h := ip(source.String(), destination.String(), 58, body)
	h[7] = 255
	return h
}

func ns(target netip.Addr, mac net.HardwareAddr) *ndp.NeighborSolicitation {
	m := &ndp.NeighborSolicitation{TargetAddress: target}
	if mac != nil {
		m.Options = []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: mac}}
	}
	return m
}

func na(target netip.Addr, mac net.HardwareAddr) *ndp.NeighborAdvertisement {
	return &ndp.NeighborAdvertisement{Override: true, TargetAddress: target, Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: mac}}}
}

func TestGuestFrames(t *testing.T) {
	testhost.RequireRoot(t)
	j := join(t, "")
	v6 := func(m ndp.Message, source netip.Addr) []byte { return fromGuest(nd(t, m, source, solicited)) }
	any6 := netip.IPv6Unspecified()
	own, other := tcp(4000, 80, syn), netip.MustParseAddr("fd5f::9")
	tagged := slices.Concat(nodeMAC, guestMAC, be16(0x8100, 5, 0x0800), ip(guest4.String(), "100.64.0.9", 6, own))
	for name, row := range map[string]struct {
		want  Frame
		frame []byte
	}{
		"IPv4":                     {FrameSent, fromGuest(ip(guest4.String(), "100.64.0.9", 6, own))},
		"IPv6":                     {FrameSent, fromGuest(ip(guest6.String(), "fd5f::9", 6, own))},
		"DNS":                      {FrameSent, fromGuest(ip(guest4.String(), gateway4.String(), 17, udp(4000, 53)))},
		"DHCP to another":          {FrameSent, fromGuest(ip(guest4.String(), "100.64.0.9", 17, udp(68, 67)))},
		"later fragment":           {FrameSent, fromGuest(with(ip(guest4.String(), "100.64.0.9", 17, udp(67, 68)), 6, 0, 2))},
		"other MAC":                {FrameForgedMAC, from(otherMAC, nodeMAC, 0x0800, ip(guest4.String(), "100.64.0.9", 6, own))},
		"node's MAC":               {FrameForgedMAC, from(nodeMAC, guestMAC, 0x0800, ip(guest4.String(), "100.64.0.9", 6, own))},
		"other IPv4":               {FrameForgedAddress, fromGuest(ip("100.64.0.6", "100.64.0.9", 6, own))},
		"no IPv4":                  {FrameForgedAddress, fromGuest(ip("0.0.0.0", "100.64.0.9", 6, own))},
		"gateway's IPv4":           {FrameForgedAddress, fromGuest(ip(gateway4.String(), "100.64.0.9", 17, udp(53, 53)))},
		"other IPv6":               {FrameForgedAddress, fromGuest(ip("fd5f::6", "fd5f::9", 6, own))},
		"gateway's IPv6":           {FrameForgedAddress, fromGuest(ip(gateway6.String(), "fd5f::9", 6, own))},
		"link-local":               {FrameLinkLocal, fromGuest(ip(ownLocal.String(), "ff02::fb", 17, udp(5353, 5353)))},
		"DHCP discover":            {FrameControl, fromGuest(ip("0.0.0.0", "255.255.255.255", 17, udp(68, 67)))},
		"DHCP renewal":             {FrameControl, fromGuest(ip(guest4.String(), gateway4.String(), 17, udp(68, 67)))},
		"DHCP server":              {FrameForgedDHCP, fromGuest(ip(guest4.String(), "100.64.0.9", 17, udp(67, 68)))},
		"DHCP server, other":       {FrameForgedDHCP, fromGuest(ip(gateway4.String(), "255.255.255.255", 17, udp(67, 68)))},
		"DHCPv6 solicit":           {FrameControl, fromGuest(ip(ownLocal.String(), "ff02::1:2", 17, udp(546, 547)))},
		"DHCPv6 server":            {FrameForgedDHCP, fromGuest(ip(ownLocal.String(), "fe80::9", 17, udp(547, 546)))},
		"IGMP":                     {FrameControl, fromGuest(ip("0.0.0.0", "224.0.0.22", 2, make([]byte, 8)))},
		"MLD":                      {FrameControl, fromGuest(ip(ownLocal.String(), "ff02::16", 0, append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, icmp(143, 0, 0)...)))},
		"ARP for the gateway":      {FrameAnswered, arpFrame(1, guestMAC, guest4.String(), gateway4.String())},
		"ARP for a neighbour":      {FrameAnswered, arpFrame(1, guestMAC, guest4.String(), "100.64.0.6")},
		"ARP probe":                {FrameControl, arpFrame(1, guestMAC, "0.0.0.0", guest4.String())},
		"ARP probe of the gateway": {FrameAnswered, arpFrame(1, guestMAC, "0.0.0.0", gateway4.String())},
		"ARP announcement":         {FrameControl, arpFrame(1, guestMAC, guest4.String(), guest4.String())},
		"ARP reply":                {FrameControl, arpFrame(2, guestMAC, guest4.String(), gateway4.String())},
		"ARP as the gateway":       {FrameForgedARP, arpFrame(2, guestMAC, gateway4.String(), guest4.String())},
		"ARP as another":           {FrameForgedARP, arpFrame(1, guestMAC, "100.64.0.6", "100.64.0.6")},
		"ARP of another's MAC":     {FrameForgedARP, arpFrame(2, otherMAC, guest4.String(), gateway4.String())},
		"ARP of nothing":           {FrameMalformed, arpFrame(3, guestMAC, guest4.String(), gateway4.String())},
		"ARP, short":               {FrameMalformed, arpFrame(1, guestMAC, guest4.String(), gateway4.String())[:30]},
		"NS for the gateway":       {FrameAnswered, v6(ns(gateway6, guestMAC), guest6)},
		"NS from link-local":       {FrameAnswered, v6(ns(gateway6, guestMAC), ownLocal)},
		"NS without an option":     {FrameAnswered, v6(ns(gateway6, nil), ownLocal)},
		"NS for a neighbour":       {FrameAnswered, v6(ns(other, guestMAC), guest6)},
		"DAD of its own":           {FrameControl, v6(ns(guest6, nil), any6)},
		"DAD of its link-local":    {FrameControl, v6(ns(ownLocal, nil), any6)},
		"DAD of another":           {FrameControl, v6(ns(other, nil), any6)},
		"DAD of the gateway":       {FrameAnswered, v6(ns(gateway6, nil), any6)},
		"NS as another":            {FrameForgedND, v6(ns(gateway6, guestMAC), other)},
		"NS as the gateway":        {FrameForgedND, v6(ns(guest6, guestMAC), gateway6)},
		"NS with another MAC":      {FrameForgedND, v6(ns(gateway6, otherMAC), guest6)},
		"NS from afar":             {FrameMalformed, with(v6(ns(gateway6, guestMAC), guest6), 14+7, 64)},
		"NA":                       {FrameControl, v6(na(guest6, guestMAC), guest6)},
		"NA of the gateway":        {FrameForgedND, v6(na(gateway6, guestMAC), ownLocal)},
		"NA of another":            {FrameForgedND, v6(na(other, guestMAC), guest6)},
		"NA of another's MAC":      {FrameForgedND, v6(na(guest6, otherMAC), guest6)},
		"RS":                       {FrameControl, v6(&ndp.RouterSolicitation{Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: guestMAC}}}, ownLocal)},
		"RS of the unborn":         {FrameControl, v6(&ndp.RouterSolicitation{}, any6)},
		"RS with another MAC":      {FrameForgedND, v6(&ndp.RouterSolicitation{Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: otherMAC}}}, ownLocal)},
		"RA":                       {FrameForgedRA, v6(&ndp.RouterAdvertisement{RouterLifetime: time.Hour}, ownLocal)},
		"redirect":                 {FrameForgedND, fromGuest(ip(gateway6.String(), guest6.String(), 58, icmp(137, 0, 0, make([]byte, 32)...)))},
		"VLAN":                     {FrameNotIP, tagged},
		"LLDP":                     {FrameNotIP, from(guestMAC, allMAC, 0x88cc, make([]byte, 60))},
		"IPv6 in name only":        {FrameMalformed, from(guestMAC, nodeMAC, 0x86dd, append([]byte{0x45}, make([]byte, 60)...))},
		"longest":                  {FrameSent, fromGuest(ip(guest4.String(), "100.64.0.9", 17, append(udp(1, 2), make([]byte, 1376-20-12)...)))},
		"too long":                 {FrameTooLong, fromGuest(ip(guest4.String(), "100.64.0.9", 17, append(udp(1, 2), make([]byte, 1376-20-11)...)))},
	} {
		t.Run(name, func(t *testing.T) {
			before, err := j.GuestFrames(guestName)
			must.NoError(t, err)
			held := j.guests.held[guestName]
			out := make([]byte, len(row.frame)+256)
			action, err := held.objects.SifFromGuest.Run(&ebpf.RunOptions{Data: row.frame, DataOut: out})
			must.NoError(t, err)
			after, err := j.GuestFrames(guestName)
			must.NoError(t, err)
			must.Eq(t, 1, after[row.want]-before[row.want], must.Sprintf("%v, was %v", after, before))
			passes := row.want == FrameSent || row.want == FrameAnswered
			must.Eq(t, map[bool]uint32{false: 2, true: 7}[passes], action)
			if row.want == FrameAnswered {
				checkAnswer(t, row.frame, held, row.frame[12] == 8)
			}
		})
	}
}

// checkAnswer runs the program on a question, and reads the answer as a guest does.
func checkAnswer(t *testing.T, question []byte, held *guest, isARP bool) {
	t.Helper()
	o := ebpf.RunOptions{Data: question, DataOut: make([]byte, 256)}
	_, err := held.objects.SifFromGuest.Run(&o)
	must.NoError(t, err)
	answer := o.DataOut
	must.Eq(t, nodeMAC, net.HardwareAddr(answer[6:12]))
	if isARP {
		must.Eq(t, guestMAC, net.HardwareAddr(answer[:6]))
		asked, sender := question[14+24:14+28], question[14+14:14+18]
		must.Eq(t, slices.Concat(be16(1, 0x0800, 0x0604, 2), nodeMAC, asked, guestMAC, sender), answer[14:42])
		return
	}
	source, _ := netip.AddrFromSlice(answer[14+8 : 14+24])
	destination, _ := netip.AddrFromSlice(answer[14+24 : 14+40])
	target, _ := netip.AddrFromSlice(question[14+40+8 : 14+40+24])
	asker, _ := netip.AddrFromSlice(question[14+8 : 14+24])
	must.Eq(t, target, source)
	must.Eq(t, 255, answer[14+7])
	must.Eq(t, []byte{0, 32}, answer[14+4:14+6])
	body := answer[14+40 : 14+40+32]
	m, err := ndp.ParseMessage(body)
	must.NoError(t, err)
	want := na(target, nodeMAC)
	want.Router = target == gateway6
	want.Solicited = !asker.IsUnspecified()
	must.Eq(t, ndp.Message(want), m)
	if asker.IsUnspecified() {
		must.Eq(t, netip.MustParseAddr("ff02::1"), destination)
		must.Eq(t, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, net.HardwareAddr(answer[:6]))
	} else {
		must.Eq(t, asker, destination)
		must.Eq(t, guestMAC, net.HardwareAddr(answer[:6]))
	}
	again, err := ndp.MarshalMessageChecksum(want, source, destination)
	must.NoError(t, err)
	must.Eq(t, again, body) // the checksum, too
}

// openTap opens the guest's end of a tap interface of this thread's namespace, as QEMU does. Frames
// follow a virtio_net_hdr of 10 bytes.
func openTap(t testing.TB, offloads int) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	must.NoError(t, err)
	request, err := unix.NewIfreq("tap0")
	must.NoError(t, err)
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	must.NoError(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
	must.NoError(t, unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads))
	f := os.NewFile(uintptr(fd), "tap0")
	t.Cleanup(func() { _ = f.Close() })
	return f
}

const virtioHeader = 10

// receive sends something until a frame comes to the guest that matches. The kernel takes up to a
// second to let packets out to a guest that has come.
func receive(t *testing.T, tap *os.File, send func(), match func(header, frame []byte) bool) {
	t.Helper()
	must.NoError(t, tap.SetReadDeadline(time.Unix(1, 0)))
	end := time.Now().Add(20 * time.Second)
	for b := make([]byte, 1<<17); ; {
		n, err := tap.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			must.True(t, time.Now().Before(end), must.Sprint("nothing came"))
			must.NoError(t, tap.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
			send()
			continue
		}
		must.NoError(t, err)
		if n > virtioHeader && match(b[:virtioHeader], b[virtioHeader:n]) {
			return
		}
	}
}

// TestGuestByTap is a guest that speaks raw frames.
func TestGuestByTap(t *testing.T) {
	testhost.RequireRoot(t)
	byMechanism(t, func(t *testing.T, by Mechanism) {
		j := join(t, by)
		tap := openTap(t, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6)
		send := func(frame []byte) {
			_, err := tap.Write(append(make([]byte, virtioHeader), frame...))
			must.NoError(t, err)
		}
		sniff := sniffer(t, "host")

		// The gateway answers, whoever runs.
		ask := func(frame []byte) func() { return func() { send(frame) } }
		receive(t, tap, ask(arpFrame(1, guestMAC, guest4.String(), gateway4.String())), func(_, f []byte) bool { return f[12] == 8 && f[13] == 6 && f[21] == 2 })
		receive(t, tap, ask(fromGuest(nd(t, ns(gateway6, guestMAC), ownLocal, solicited))), func(_, f []byte) bool { return f[12] == 0x86 && f[14+40] == 136 })

		// What is forged does not come out, what is its own does.
		send(fromGuest(ip("100.64.0.6", "100.64.0.9", 17, udp(1111, 1))))
		send(fromGuest(ip(guest4.String(), "100.64.0.9", 17, udp(2222, 1))))
		f := sniff()
		must.Eq(t, nodeMAC, net.HardwareAddr(f[:6]))
		must.Eq(t, 2222, binary.BigEndian.Uint16(f[14+20:]))

		// A train of segments passes whole, with its checksum still to be completed.
		train := fromGuest(ip(guest4.String(), "100.64.0.9", 6, append(tcp(3333, 80, ack), make([]byte, 20000)...)))
		header := make([]byte, virtioHeader)
		header[0], header[1] = 1, 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4
		binary.NativeEndian.PutUint16(header[2:], 14+20+20)
		binary.NativeEndian.PutUint16(header[4:], 1336)
		binary.NativeEndian.PutUint16(header[6:], 14+20)
		binary.NativeEndian.PutUint16(header[8:], 16)
		_, err := tap.Write(append(header, train...))
		must.NoError(t, err)
		must.Eq(t, len(train), len(sniff()))

		// To the guest: only what is for it.
		toGuest := func() {
			for _, out := range [][]byte{
				from(nodeMAC, otherMAC, 0x0800, ip("100.64.0.9", guest4.String(), 17, udp(4444, 1))),
				from(nodeMAC, allMAC, 0x0806, arpPacket(1, nodeMAC, gateway4, guest4)),
				from(nodeMAC, guestMAC, 0x0800, ip("100.64.0.9", guest4.String(), 17, udp(5555, 1))),
			} {
				inject(t, "host", out)
			}
		}
		receive(t, tap, toGuest, func(_, f []byte) bool {
			must.NotEq(t, 4444, binary.BigEndian.Uint16(f[14+20:]))
			return binary.BigEndian.Uint16(f[14+20:]) == 5555
		})
		frames, err := j.GuestFrames(guestName)
		must.NoError(t, err)
		must.Eq(t, 2, frames[FrameSent])
		must.Eq(t, 1, frames[FrameForgedAddress])
		must.GreaterEq(t, 1, frames[FrameReceived])
		must.GreaterEq(t, 2, frames[FrameAnswered])
		must.GreaterEq(t, 2, frames[FrameNotForIt])
	})
}

// sniffer returns a function that returns the next IPv4 frame that came to an interface.
func sniffer(t *testing.T, name string) func() []byte {
	t.Helper()
	fd := packetSocket(t, name)
	must.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	return func() []byte {
		for b := make([]byte, 1<<17); ; {
			n, at, err := unix.Recvfrom(fd, b, 0)
			must.NoError(t, err)
			if at.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING && n > 14 && b[12] == 8 && b[13] == 0 {
				return slices.Clone(b[:n])
			}
		}
	}
}

func inject(t *testing.T, name string, frame []byte) {
	t.Helper()
	_, err := unix.Write(packetSocket(t, name), frame)
	must.NoError(t, err)
}

func packetSocket(t *testing.T, name string) int {
	t.Helper()
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all&0xffff)
	must.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	i, err := net.InterfaceByName(name)
	must.NoError(t, err)
	must.NoError(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all & 0xffff, Ifindex: i.Index}))
	return fd
}

// A guest's programs and maps outlive the process, are taken over, repaired and removed.
func TestGuestOutlivesTheProcess(t *testing.T) {
	testhost.RequireRoot(t)
	byMechanism(t, func(t *testing.T, by Mechanism) {
		j := join(t, by)
		tap := openTap(t, 0)
		sniff := sniffer(t, "host")
		port := uint16(1000)
		passes := func() {
			t.Helper()
			port++
			_, err := tap.Write(append(make([]byte, virtioHeader), fromGuest(ip(guest4.String(), "100.64.0.9", 17, udp(port, 1)))...))
			must.NoError(t, err)
			must.Eq(t, port, binary.BigEndian.Uint16(sniff()[14+20:]))
		}
		passes()
		must.NoError(t, j.Close())
		passes()
		j.Datapath = open(t, j.dir, fixtureOptions(by))
		names, err := j.Guests()
		must.NoError(t, err)
		must.Eq(t, []string{guestName}, names)
		attach := func(want ...string) {
			t.Helper()
			missing, err := j.AttachGuest(guestName, "tap0", "eth0", testGuest())
			must.NoError(t, err)
			must.Eq(t, want, missing)
			passes()
		}
		attach()
		frames, err := j.GuestFrames(guestName)
		must.NoError(t, err)
		must.Eq(t, 3, frames[FrameSent]) // it counts on
		attach()

		// What somebody takes away comes back.
		must.NoError(t, os.RemoveAll(j.guestDirectory(guestName)))
		_, err = j.AttachGuest(guestName, "tap0", "eth0", testGuest())
		must.NoError(t, err)
		passes()
		must.NoError(t, j.guests.held[guestName].objects.SifGuest.Put(uint32(0), guestGuest{}))
		attach("the addresses of the guest")
		if by == Clsact {
			script(t, "tc filter del dev tap0 ingress")
			attach("the from_guest program")
		}
		// The endpoint's interface is made again; the guest keeps its own open.
		script(t, `
			ip link del eth0; ip link add eth0 type veth peer name host
			for i in eth0 host; do ip link set $i mtu 1376 up; done`)
		sniff = sniffer(t, "host")
		attach("the addresses of the guest", "the to_guest program")

		must.NoError(t, j.DetachGuest(guestName))
		must.NoError(t, j.DetachGuest(guestName))
		names, err = j.Guests()
		must.NoError(t, err)
		must.SliceEmpty(t, names)
		_, err = os.Stat(j.guestDirectory(guestName))
		must.ErrorIs(t, err, os.ErrNotExist)
		_, err = j.AttachGuest(guestName, "tap9", "eth0", testGuest())
		must.ErrorContains(t, err, "tap9")
	})
}

// FuzzGuestFrame compares what passes with what a guest may send, as Go reads it.
func FuzzGuestFrame(f *testing.F) {
	testhost.RequireRoot(f)
	discover, err := dhcpv4.NewDiscovery(guestMAC)
	must.NoError(f, err)
	f.Add(fromGuest(ip(guest4.String(), "100.64.0.9", 6, tcp(4000, 80, syn))))
	f.Add(fromGuest(ip(guest6.String(), "fd5f::9", 6, tcp(4000, 80, syn))))
	f.Add(fromGuest(ip("0.0.0.0", "255.255.255.255", 17, append(be16(68, 67, 8, 0), discover.ToBytes()...))))
	f.Add(arpFrame(1, guestMAC, guest4.String(), gateway4.String()))
	f.Add(fromGuest(ip(ownLocal.String(), "ff02::16", 0, append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, icmp(143, 0, 0)...))))
	spec, err := loadGuest()
	must.NoError(f, err)
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	var objects guestObjects
	must.NoError(f, spec.LoadAndAssign(&objects, nil))
	f.Cleanup(func() { _ = objects.Close() })
	must.NoError(f, objects.SifGuest.Put(uint32(0), testGuest().toMap(1, 1)))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 15 || len(frame) > 1400 {
			return
		}
		action, err := objects.SifFromGuest.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, 2048)})
		if err != nil {
			if strings.Contains(err.Error(), "invalid argument") {
				return
			}
			t.Fatal(err)
		}
		if action != 7 {
			return
		}
		kind, p := binary.BigEndian.Uint16(frame[12:]), frame[14:]
		own := slices.Equal(frame[6:12], guestMAC)
		switch kind {
		case 0x0800:
			own = own && slices.Equal(p[12:16], guest4.AsSlice())
		case 0x86dd:
			local, _ := netip.AddrFromSlice(p[8:24])
			// An answered question for a neighbour may come from any address of the guest.
			own = own && (local == guest6 || p[6] == 58 && p[40] == 135 && local != gateway6)
		case 0x0806:
			own = own && slices.Equal(p[8:14], guestMAC) && (slices.Equal(p[14:18], guest4.AsSlice()) || slices.Equal(p[14:18], make([]byte, 4)))
		default:
			own = false
		}
		if !own {
			t.Errorf("passes: %x", frame)
		}
	})
}

// BenchmarkGuest measures the programs of guests by the kernel's test run, ns per frame.
func BenchmarkGuest(b *testing.B) {
	testhost.RequireRoot(b)
	spec, err := loadGuest()
	must.NoError(b, err)
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	var objects guestObjects
	must.NoError(b, spec.LoadAndAssign(&objects, nil))
	defer objects.Close()
	must.NoError(b, objects.SifGuest.Put(uint32(0), testGuest().toMap(1, 1)))
	for _, row := range []struct {
		name    string
		program *ebpf.Program
		frame   []byte
	}{
		{"from/tcp4", objects.SifFromGuest, fromGuest(ip(guest4.String(), "100.64.0.9", 6, tcp(4000, 80, ack)))},
		{"from/udp4", objects.SifFromGuest, fromGuest(ip(guest4.String(), "100.64.0.9", 17, udp(4000, 80)))},
		{"from/tcp6", objects.SifFromGuest, fromGuest(ip(guest6.String(), "fd5f::9", 6, tcp(4000, 80, ack)))},
		{"from/forged", objects.SifFromGuest, fromGuest(ip("100.64.0.6", "100.64.0.9", 6, tcp(4000, 80, ack)))},
		{"to/tcp4", objects.SifToGuest, from(nodeMAC, guestMAC, 0x0800, ip("100.64.0.9", guest4.String(), 6, tcp(80, 4000, ack)))},
	} {
		b.Run(row.name, func(b *testing.B) {
			ns, err := testRun(row.program, skb{}, row.frame, b.N)
			must.NoError(b, err)
			b.ReportMetric(float64(ns), "ns/packet")
		})
	}
}

// Every name of a frame is that of the program.
func TestFrameNames(t *testing.T) {
	spec, err := loadGuest()
	must.NoError(t, err)
	var names []string
	for _, v := range enumOf(t, spec, "guest_verdict") {
		names = append(names, v.Name)
	}
	for f := FrameSent; f < frameCount; f++ {
		want := constantName("GUEST_", f.String())
		if f == FrameNotForIt {
			want = "GUEST_NOT_FOR_IT"
		}
		must.Eq(t, want, names[f])
	}
	must.Eq(t, "frame-0", Frame(0).String())
	must.True(t, FrameForgedMAC.Dropped())
	must.False(t, FrameControl.Dropped())
}
