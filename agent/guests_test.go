// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/agent/guest"
	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/wellknown"
)

// qemu is the guest's end of a tap interface, as QEMU has it open.
type qemu struct {
	t   *testing.T
	tap *os.File
}

func openGuest(t *testing.T, workload ns.NetNS) *qemu {
	t.Helper()
	q := &qemu{t: t}
	must.NoError(t, workload.Do(func(ns.NetNS) error {
		fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		must.NoError(t, err)
		request, err := unix.NewIfreq(wellknown.GuestTap)
		must.NoError(t, err)
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		must.NoError(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
		q.tap = os.NewFile(uintptr(fd), "tap")
		return nil
	}))
	t.Cleanup(func() { _ = q.tap.Close() })
	return q
}

const virtioHeader = 10

func (q *qemu) send(packet []byte) {
	q.t.Helper()
	frame := slices.Concat(make([]byte, virtioHeader), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, guestMAC(), []byte{8, 0}, packet)
	_, err := q.tap.Write(frame)
	must.NoError(q.t, err)
}

// datagram is a UDP packet. Nobody looks at its checksums.
func datagram(from, to netip.AddrPort, payload []byte) []byte {
	h := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0}
	binary.BigEndian.PutUint16(h[2:], uint16(28+len(payload)))
	h = slices.Concat(h, from.Addr().AsSlice(), to.Addr().AsSlice())
	for _, n := range []uint16{from.Port(), to.Port(), uint16(8 + len(payload)), 0} {
		h = binary.BigEndian.AppendUint16(h, n)
	}
	return append(h, payload...)
}

// lease asks for an address, and returns what the answer says.
func (q *qemu) lease() *dhcpv4.DHCPv4 {
	q.t.Helper()
	must.NoError(q.t, q.tap.SetReadDeadline(time.Unix(1, 0)))
	m, err := dhcpv4.NewDiscovery(guestMAC())
	must.NoError(q.t, err)
	nobody, all := netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255")
	end := time.Now().Add(20 * time.Second)
	for b := make([]byte, 4096); ; {
		n, err := q.tap.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// The kernel takes up to a second to let packets out to a guest that has come.
			must.True(q.t, time.Now().Before(end), must.Sprint("no answer"))
			must.NoError(q.t, q.tap.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
			q.send(datagram(netip.AddrPortFrom(nobody, 68), netip.AddrPortFrom(all, 67), m.ToBytes()))
			continue
		}
		must.NoError(q.t, err)
		if p := b[virtioHeader:n]; len(p) > 42 && p[12] == 8 && p[13] == 0 && p[23] == 17 {
			offer, err := dhcpv4.FromBytes(p[42:])
			must.NoError(q.t, err)
			if offer.TransactionID == m.TransactionID {
				return offer
			}
		}
	}
}

// TestGuest is the life of a virtual machine's endpoint, with a real data path.
func TestGuest(t *testing.T) {
	testhost.RequireRoot(t)
	for _, by := range []bpf.Mechanism{bpf.TCX, bpf.Clsact} {
		t.Run(string(by), func(t *testing.T) { testGuest(t, by) })
	}
}

func testGuest(t *testing.T, by bpf.Mechanism) {
	node, workload, dir := newNamespace(t), newNamespace(t), filepath.Join(t.TempDir(), "bpf")
	_, err := bpf.MountBPFFS(dir)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, unix.Unmount(dir, 0)) })
	start := func() (*Agent, *bpf.Datapath) {
		a, _, _ := hookedAgent(t)
		a.node.Config.BPFDir = dir
		d, err := bpf.Open(filepath.Join(dir, "sif"), bpf.Options{Mechanism: by})
		if errors.Is(err, ebpf.ErrNotSupported) {
			t.Skip(err)
		}
		must.NoError(t, err)
		t.Cleanup(func() { _ = d.Close() })
		a.data = d
		return a, d
	}
	run := func(in ns.NetNS, command string) {
		t.Helper()
		out, err := exec.Command("nsenter", "--net="+in.Path(), "sh", "-ec", command).CombinedOutput()
		must.NoError(t, err, must.Sprintf("%s: %s", command, out))
	}
	a, d := start()
	ep := endpoint{ID: "0a1b2c3d-alloc", VM: true, Attachment: at("c1"), HostIf: "sif0123456789a",
		IPv4: netip.MustParseAddr("100.64.0.2"), IPv6: netip.MustParseAddr("fd5f::2"), Admission: fabric.Admission{Service: refOf("shop/web")}}
	add := func() {
		t.Helper()
		adding := &attachment{namespace: workload, endpoint: ep}
		must.NoError(t, a.makeInterfaces(adding))
		must.NoError(t, guestHook{a}.attach(t.Context(), adding))
		must.NoError(t, adding.wait())
		ep = adding.endpoint
		_, err := a.attachPrograms(ep.HostIf)
		must.NoError(t, err)
		must.NoError(t, adding.pair.raiseHost(ep.IPv4, ep.IPv6))
		must.NoError(t, adding.pair.raiseWorkload("eth0", workload, ep.IPv4, ep.IPv6))
		must.NoError(t, answersHook{a}.attach(t.Context(), adding))
		must.NoError(t, a.endpoints.put(ep)())
		result := adding.pair.result("eth0", "/run/netns/x", ep.IPv4, ep.IPv6)
		must.Len(t, 3, result.Interfaces)
		must.Eq(t, wellknown.GuestMAC, result.Interfaces[1].Mac)
		must.Eq(t, wellknown.GuestTap, result.Interfaces[2].Name)
		must.Eq(t, "/run/netns/x", result.Interfaces[2].Sandbox)
		must.Eq(t, 1, *result.IPs[0].Interface)
	}
	must.NoError(t, node.Do(func(ns.NetNS) error {
		add()
		q := openGuest(t, workload)
		works := func() {
			t.Helper()
			offer := q.lease()
			must.Eq(t, "100.64.0.2", offer.YourIPAddr.String())
			must.Eq(t, "web-0a1b2c3d", offer.HostName())
			run(workload, "ip -o link show tap0 | grep -q ',UP.* mtu 1500'; ip -o link show eth0 | grep -q ',UP.*"+wellknown.GuestMAC+"'; test -z \"$(ip -o addr show dev eth0)$(ip -o addr show dev tap0)\"")
			before, err := d.GuestFrames(ep.HostIf)
			must.NoError(t, err)
			for range 2 {
				q.send(datagram(netip.AddrPortFrom(ep.IPv4, 1), netip.MustParseAddrPort("100.64.0.9:1"), nil))
			}
			after, err := d.GuestFrames(ep.HostIf)
			must.NoError(t, err)
			must.Eq(t, 2, after[bpf.FrameSent]-before[bpf.FrameSent])
		}
		works()
		run(node, "ip neigh show dev "+ep.HostIf+" | grep 100.64.0.2 | grep -q "+wellknown.GuestMAC)

		// The node's probes leave as the guest's packets do.
		run(node, "sysctl -qw net.ipv4.conf.all.forwarding=1")
		seen := seenAt(t, ep.HostIf)
		must.NoError(t, a.way(ep).Send(workload, netip.AddrPortFrom(ep.IPv4, 5), netip.MustParseAddrPort("100.64.0.9:7"), fabric.UDP, 1))
		must.NoError(t, a.way(ep).Send(workload, netip.AddrPortFrom(ep.IPv6, 5), netip.MustParseAddrPort("[fd5f::9]:7"), fabric.UDP, 1))
		must.Eq(t, []uint16{7, 7}, []uint16{seen(), seen()})

		// What others change comes back.
		for _, command := range []string{
			"ip link set dev tap0 down", "ip link set dev eth0 down", "ip addr add 100.64.0.2/32 dev eth0; ip link set dev tap0 mtu 1300; ip link set dev eth0 address 02:00:00:00:00:01",
			map[bpf.Mechanism]string{bpf.TCX: "bpftool link detach pinned " + dir + "/sif/guests/" + ep.HostIf + "/from_guest", bpf.Clsact: "tc qdisc del dev tap0 clsact"}[by],
		} {
			run(workload, command)
			must.NoError(t, a.repairWorkloads())
			must.NoError(t, a.repairGuests())
			works()
		}
		run(workload, "ip link del tap0")
		must.NoError(t, a.repairWorkloads())
		q = openGuest(t, workload) // QEMU must be restarted
		works()

		// Another agent takes over, while the guest runs on.
		must.NoError(t, d.Close())
		a.guests.close(ep.HostIf)
		a, d = start()
		must.NoError(t, a.endpoints.put(ep)())
		must.NoError(t, a.repairGuests())
		works()

		// The endpoint's interface was lost: ADD again, and the guest keeps its own.
		must.NoError(t, removeVeth(ep.HostIf))
		add()
		works()
		must.SliceEmpty(t, a.silentGuests())

		// Forged packets are counted, also when the guest has gone.
		q.send(datagram(netip.MustParseAddrPort("100.64.0.3:1"), netip.MustParseAddrPort("100.64.0.9:1"), nil))
		drops := map[string]uint64{}
		must.NoError(t, a.guestDrops(drops))
		must.Eq(t, 1, drops["guest: forged-address"])

		// DEL, in a namespace that stays.
		must.NoError(t, interfaceHook{a}.detach(t.Context(), &detachment{endpoint: ep}))
		run(workload, "test -z \"$(ip -o link show | grep -E 'tap0|eth0')\"")
		a.endpoints.remove(ep.Attachment)

		// A repair that ran beside DEL leaves nothing either.
		run(workload, "ip tuntap add tap0 mode tap; ip link add eth0 type veth peer name x")
		_, err := a.joinGuest(ep, workload)
		must.NoError(t, err)
		must.NoError(t, a.answerGuest(ep, workload))
		must.NoError(t, a.repairGuests())
		must.SliceEmpty(t, a.guests.names())
		names, err := d.Guests()
		must.NoError(t, err)
		must.SliceEmpty(t, names)
		again := map[string]uint64{}
		must.NoError(t, a.guestDrops(again))
		must.Eq(t, drops["guest: forged-address"], again["guest: forged-address"])
		return nil
	}))
}

// seenAt returns a function that returns the destination port of the next UDP packet that came to
// an interface of this namespace.
func seenAt(t *testing.T, name string) func() uint16 {
	t.Helper()
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	index, err := linkIndex(name)
	must.NoError(t, err)
	must.NoError(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all & 0xffff, Ifindex: index}))
	must.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	return func() uint16 {
		for b := make([]byte, 2048); ; {
			n, from, err := unix.Recvfrom(fd, b, 0)
			must.NoError(t, err)
			header := map[byte]int{4: 20, 6: 40}[b[0]>>4]
			if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING && n > header+8 && header > 0 && (b[9] == 17 || b[6] == 17) {
				return binary.BigEndian.Uint16(b[header+2:])
			}
		}
	}
}

// The answers do not keep a namespace that everybody else has left.
func TestNamespaceOfAGuestGoes(t *testing.T) {
	testhost.RequireRoot(t)
	node := newNamespace(t)
	a, _, _ := hookedAgent(t)
	must.NoError(t, node.Do(func(ns.NetNS) error {
		ep := endpoint{ID: "a", VM: true, Attachment: at("c1"), HostIf: "sif0123456789a", IPv4: netip.MustParseAddr("100.64.0.2"), IPv6: netip.MustParseAddr("fd5f::2")}
		run := func(command string) {
			t.Helper()
			out, err := exec.Command("sh", "-ec", command).CombinedOutput()
			must.NoError(t, err, must.Sprintf("%s: %s", command, out))
		}
		name := "sif-test-guest-goes"
		run("ip netns add " + name)
		space, err := ns.GetNS("/run/netns/" + name)
		must.NoError(t, err)
		pair, err := a.pairOf(ep).make("eth0", space)
		must.NoError(t, err)
		ep.HostIndex = pair.hostIndex
		_, err = pair.keepTap(space)
		must.NoError(t, err)
		must.NoError(t, a.endpoints.put(ep)())
		must.NoError(t, pair.raiseHost(ep.IPv4, ep.IPv6))
		must.NoError(t, pair.raiseWorkload("eth0", space, ep.IPv4, ep.IPv6))
		must.NoError(t, space.Close())
		must.NoError(t, a.repairGuests())
		_, answered := a.guests.get(ep.HostIf)
		must.True(t, answered)
		run("ip netns del " + name)
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			must.NoError(t, a.repairGuests())
			index, err := linkIndex(ep.HostIf)
			must.NoError(t, err)
			if index == 0 {
				break
			}
			must.True(t, time.Now().Before(deadline), must.Sprint("the interface stays"))
		}
		return nil
	}))
}

// A namespace that has something else under the name of the tap interface.
func TestTapIsInTheWay(t *testing.T) {
	testhost.RequireRoot(t)
	workload := newNamespace(t)
	out, err := exec.Command("nsenter", "--net="+workload.Path(), "ip", "link", "add", "tap0", "type", "veth", "peer", "name", "x").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	_, err = veth{host: "sif0123456789a", mtu: 1376}.keepTap(workload)
	must.ErrorContains(t, err, "has an interface tap0 of type veth")
}

func TestSilentGuests(t *testing.T) {
	asked := guest.Told{Asked: time.Now()}
	for name, row := range map[string]struct {
		frames map[bpf.Frame]uint64
		told   guest.Told
		want   string
	}{
		"well":            {map[bpf.Frame]uint64{bpf.FrameSent: 1, bpf.FrameForgedMAC: 9}, asked, ""},
		"static address":  {map[bpf.Frame]uint64{bpf.FrameSent: 1}, guest.Told{}, ""},
		"nothing":         {map[bpf.Frame]uint64{bpf.FrameReceived: 7}, guest.Told{}, "nothing came from its guest yet"},
		"other MAC":       {map[bpf.Frame]uint64{bpf.FrameForgedMAC: 7}, guest.Told{}, "mac=02:51:f0:00:00:01"},
		"other address":   {map[bpf.Frame]uint64{bpf.FrameForgedAddress: 7, bpf.FrameControl: 1}, guest.Told{}, "remove the address"},
		"no DHCP":         {map[bpf.Frame]uint64{bpf.FrameControl: 7}, guest.Told{}, "run a DHCP client"},
		"idle":            {map[bpf.Frame]uint64{bpf.FrameControl: 7}, asked, ""},
		"somebody has it": {map[bpf.Frame]uint64{bpf.FrameSent: 7}, guest.Told{Declined: time.Now()}, "another has its address"},
	} {
		t.Run(name, func(t *testing.T) {
			got := silent(row.frames, row.told)
			must.Eq(t, row.want == "", got == "")
			must.StrContains(t, got, row.want)
		})
	}
}
