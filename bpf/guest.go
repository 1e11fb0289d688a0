// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// guestsDirectory has a directory for each virtual machine, by the name of its endpoint's
// interface.
const guestsDirectory = "guests"

// Guest is a virtual machine: what it may say it is, and its way out.
type Guest struct {
	MAC        net.HardwareAddr
	IPv4, IPv6 netip.Addr
	// GatewayMAC is the Ethernet address of the node's end of the endpoint's pair. It answers for
	// every address but the guest's.
	GatewayMAC         net.HardwareAddr
	Gateway4, Gateway6 netip.Addr
	MTU                int // in bytes
}

// Frame is what became of an Ethernet frame from or to a guest. The numbers are those of enum
// guest_verdict in guest.c. The names are stable, because metrics use them.
type Frame uint8

// What becomes of frames. All after FrameControl are dropped.
const (
	FrameSent          Frame = iota + 1 // from the guest to the endpoint's interface
	FrameReceived                       // to the guest
	FrameAnswered                       // the guest asked for an Ethernet address
	FrameControl                        // a question to the node, or an announcement that nobody needs
	FrameForgedMAC                      // the Ethernet source is not the guest's
	FrameForgedAddress                  // the IP source is not the guest's
	FrameForgedARP                      // it says that another's address is the guest's
	FrameForgedND                       // likewise, in IPv6; or a redirect
	FrameForgedDHCP                     // an answer of a DHCP server
	FrameForgedRA                       // a router advertisement
	FrameLinkLocal                      // from a link-local IPv6 address, which nobody can answer
	FrameNotIP                          // neither IP nor ARP, or with a VLAN tag
	FrameMalformed                      // headers are truncated or inconsistent
	FrameTooLong                        // longer than the MTU
	FrameNotForIt                       // at the endpoint's interface, to another Ethernet address
)

const frameCount = Frame(guestGuestVerdictGUEST_VERDICT_COUNT)

var frameNames = map[Frame]string{
	FrameSent:          "sent",
	FrameReceived:      "received",
	FrameAnswered:      "answered",
	FrameControl:       "control",
	FrameForgedMAC:     "forged-mac",
	FrameForgedAddress: "forged-address",
	FrameForgedARP:     "forged-arp",
	FrameForgedND:      "forged-nd",
	FrameForgedDHCP:    "forged-dhcp",
	FrameForgedRA:      "forged-ra",
	FrameLinkLocal:     "link-local",
	FrameNotIP:         "not-ip",
	FrameMalformed:     "malformed",
	FrameTooLong:       "too-long",
	FrameNotForIt:      "not-for-guest",
}

// String returns the stable name.
func (f Frame) String() string {
	if name, ok := frameNames[f]; ok {
		return name
	}
	return fmt.Sprintf("frame-%d", uint8(f))
}

// Dropped reports whether such frames are dropped because of what they are.
func (f Frame) Dropped() bool { return f > FrameControl }

// guest is what this process holds of a guest: its own copies of the programs and maps.
type guest struct {
	objects guestObjects
	hooks   []hook // of the tap interface and of the endpoint's
	places  [2]int // the indexes of the interfaces to which this process attached
}

// guests attaches guests' programs.
type guests struct {
	spec      *ebpf.CollectionSpec
	attaching mechanism
	leaving   mechanism
	held      map[string]*guest // by name; Datapath.mu guards it
}

func (d *Datapath) guestDirectory(name string) string {
	return filepath.Join(d.dir, guestsDirectory, name)
}

// chooseGuests makes guests attach as endpoints do.
func (d *Datapath) chooseGuests(hasTCX bool) error {
	spec, err := loadGuest()
	if err != nil {
		return fmt.Errorf("read the compiled eBPF programs of guests: %w", err)
	}
	d.guests = guests{spec: spec, held: map[string]*guest{}, attaching: newClsact(hasTCX), leaving: newTCX(d.guestDirectory)}
	if d.mechanism == TCX {
		d.guests.attaching, d.guests.leaving = d.guests.leaving, d.guests.attaching
	}
	return nil
}

// AttachGuest joins the interfaces tap and peer of the network namespace of the calling thread
// (lock the thread): what the guest sends and may send goes out at peer, what comes there for it
// goes to tap. The name, by which other methods know the guest, is that of the other end of peer.
// Programs and maps outlive the process; those of a previous process are taken over without a gap.
//
// AttachGuest returns what was missing or differed: of a new guest, each program.
func (d *Datapath) AttachGuest(name, tap, peer string, g Guest) (missing []string, err error) {
	if d.programs == nil {
		return nil, fmt.Errorf("attach to the guest of %s: the data path was opened without programs", name)
	}
	ends := make([]target, 2)
	for i, end := range []string{tap, peer} {
		if ends[i], err = targetOf(end); err != nil {
			return nil, fmt.Errorf("attach to the guest of %s: %w", name, err)
		}
		ends[i].name = name
	}
	held, err := d.holdGuest(name)
	if err != nil {
		return nil, err
	}
	want, zero := g.toMap(ends[0].index, ends[1].index), uint32(0)
	altered, err := replace(held.objects.SifGuest, "sif_guest", zero, want)
	if err != nil {
		return nil, fmt.Errorf("guest of %s: %w", name, err)
	}
	if altered {
		missing = append(missing, "the addresses of the guest")
	}
	for i, h := range held.hooks {
		what, err := d.guests.attaching.put(h, ends[i])
		missing = append(missing, what...)
		if err != nil {
			return missing, fmt.Errorf("attach the %s program to the guest of %s: %w", h.name, name, err)
		}
		if held.places[i] != ends[i].index {
			if err := d.guests.leaving.remove(h, ends[i]); err != nil {
				return missing, fmt.Errorf("take what another mechanism attached from the guest of %s: %w", name, err)
			}
			held.places[i] = ends[i].index
		}
		if err := d.guests.attaching.guarded(h, ends[i]); err != nil {
			return missing, fmt.Errorf("guest of %s: %w", name, err)
		}
	}
	return missing, nil
}

func (g Guest) toMap(tap, peer int) guestGuest {
	const header = 14 // Ethernet's
	c := guestGuest{Tap: uint32(tap), Peer: uint32(peer), Longest: uint32(g.MTU + header)}
	copy(c.Mac[:], g.MAC)
	copy(c.GatewayMac[:], g.GatewayMAC)
	c.Ip4, c.Gateway4 = word(g.IPv4.AsSlice()), word(g.Gateway4.AsSlice())
	for i := range c.Ip6 {
		c.Ip6[i], c.Gateway6[i] = word(g.IPv6.AsSlice()[4*i:]), word(g.Gateway6.AsSlice()[4*i:])
	}
	return c
}

// word returns the next four bytes of an address as they are in memory.
func word(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }

// holdGuest returns the guest's programs and maps, which it loads if this process has not done so.
func (d *Datapath) holdGuest(name string) (*guest, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return nil, os.ErrClosed
	}
	dir := d.guestDirectory(name)
	held := d.guests.held[name]
	if held != nil {
		for pin, m := range held.maps() {
			if _, err := os.Stat(filepath.Join(dir, pin)); !errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err := errors.Join(os.MkdirAll(dir, 0o700), m.Unpin(), m.Pin(filepath.Join(dir, pin))); err != nil {
				return nil, fmt.Errorf("pin map %s of the guest of %s again: %w", pin, name, err)
			}
		}
		return held, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the pin directory of the guest of %s: %w", name, err)
	}
	held = new(guest)
	load := func() error {
		return d.guests.spec.Copy().LoadAndAssign(&held.objects, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}})
	}
	err := load()
	if errors.Is(err, ebpf.ErrMapIncompatible) { // of another version; its programs keep them
		if err = discard(dir, held.maps()); err == nil {
			err = load()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("load the programs of the guest of %s: %w", name, lacking(err))
	}
	held.hooks = []hook{
		{name: "from_guest", tcx: ebpf.AttachTCXIngress, clsact: netlink.HANDLE_MIN_INGRESS, program: held.objects.SifFromGuest},
		{name: "to_guest", tcx: ebpf.AttachTCXIngress, clsact: netlink.HANDLE_MIN_INGRESS, program: held.objects.SifToGuest},
	}
	if err := identify(held.hooks); err != nil {
		held.objects.Close()
		return nil, err
	}
	d.guests.held[name] = held
	return held, nil
}

func (g *guest) maps() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{guestMapSifGuest: g.objects.SifGuest, guestMapSifGuestFrames: g.objects.SifGuestFrames}
}

// discard removes the pins of maps.
func discard(dir string, maps map[string]*ebpf.Map) error {
	for name := range maps {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("discard pinned map: %w", err)
		}
	}
	return nil
}

// DetachGuest takes away what AttachGuest of any process pinned for a guest. Its interfaces may be
// gone; what is left of them must be deleted or set down first. It is not an error if there is
// nothing.
func (d *Datapath) DetachGuest(name string) error {
	if d.programs == nil {
		return fmt.Errorf("detach from the guest of %s: the data path was opened without programs", name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	held := d.guests.held[name]
	delete(d.guests.held, name)
	if held == nil {
		held = &guest{hooks: []hook{{name: "from_guest"}, {name: "to_guest"}}}
	}
	defer held.objects.Close()
	var errs []error
	for _, h := range held.hooks {
		gone := target{name: name}
		errs = append(errs, d.guests.attaching.remove(h, gone), d.guests.leaving.remove(h, gone))
	}
	dir := d.guestDirectory(name)
	errs = append(errs, discard(dir, held.maps()))
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach from the guest of %s: %w", name, err)
	}
	return nil
}

// Guests returns the names of the guests of this or an earlier process.
func (d *Datapath) Guests() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.dir, guestsDirectory))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the guests: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// GuestFrames returns the numbers of frames of a guest since it was attached, without zeros. A
// guest that is not attached has none.
func (d *Datapath) GuestFrames(name string) (map[Frame]uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	held := d.guests.held[name]
	if held == nil {
		return nil, nil
	}
	frames := map[Frame]uint64{}
	for f := FrameSent; f < frameCount; f++ {
		var perCPU []uint64
		if err := held.objects.SifGuestFrames.Lookup(uint32(f), &perCPU); err != nil {
			return nil, fmt.Errorf("read map sif_guest_frames of %s: %w", name, err)
		}
		for _, n := range perCPU {
			if n > 0 {
				frames[f] += n
			}
		}
	}
	return frames, nil
}

// close releases what the process holds. What is pinned stays in force.
func (g *guests) close() error {
	var errs []error
	for name, held := range g.held {
		errs = append(errs, held.objects.Close())
		delete(g.held, name)
	}
	if g.attaching != nil {
		errs = append(errs, g.attaching.close(), g.leaving.close())
	}
	return errors.Join(errs...)
}
