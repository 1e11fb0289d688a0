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
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// rousedAtOnce is how many connections of an endpoint RouseCut rouses in one call: as many as the
// programs tell it of at once.
const rousedAtOnce = 50

// RouseCut lets the workloads know of TCP connections that policy has cut, also while neither end
// sends: it sends the workload a segment that no connection accepts and every connection answers,
// and the answer meets the programs, which reset the connection at both ends. It does so for
// endpoints with Endpoint.Reject, once for each generation; call it every second or so. It returns
// how many connections it roused. The programs alone decide what is cut: a connection that policy
// still allows stays as it is.
func (d *Datapath) RouseCut() (int, error) {
	if d.programs == nil {
		return 0, errors.New("rouse connections: the data path was opened without programs")
	}
	cut, err := d.cut()
	macs := map[endpointAddr]net.HardwareAddr{}
	errs := []error{err}
	for _, key := range cut {
		errs = append(errs, d.rouse(key, macs))
	}
	if err := errors.Join(errs...); err != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.roused = 0 // again
		return len(cut), err
	}
	return len(cut), nil
}

// cut returns the connections that RouseCut has to rouse. Reading a large table of connections
// takes a while: cut spends at most a twentieth of the time on it.
func (d *Datapath) cut() ([]endpointConnKey, error) {
	began := time.Now()
	d.mu.Lock()
	if d.config == nil {
		d.mu.Unlock()
		return nil, os.ErrClosed
	}
	generation := atomic.LoadUint64(&d.config.Generation)
	idle := d.roused == generation || began.Before(d.nextRouse)
	d.mu.Unlock()
	if idle {
		return nil, nil
	}
	told := map[uint32]bool{}
	endpoints, err := dump[uint32, endpointEndpoint](d.objects.SifEndpoints, "sif_endpoints")
	if err != nil {
		return nil, err
	}
	for _, e := range endpoints {
		if e.value.Flags&endpointEndpointFlagENDPOINT_REJECT != 0 {
			told[e.key] = true
		}
	}
	var entries []entry[endpointConnKey, endpointConn]
	if len(told) > 0 {
		if entries, err = dump[endpointConnKey, endpointConn](d.objects.SifConns, "sif_conns"); err != nil {
			return nil, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return nil, os.ErrClosed
	}
	const closed = endpointConnStateCONN_FIN_ORIGINAL | endpointConnStateCONN_FIN_REPLY
	var keys []endpointConnKey
	perEndpoint, complete, known := map[uint32]int{}, true, map[alike]bool{}
	for _, e := range entries {
		s := e.value.State
		if !told[e.key.Ifindex] || e.key.Protocol != unix.IPPROTO_TCP || e.value.Generation == generation ||
			s&endpointConnStateCONN_ANSWERED == 0 || s&endpointConnStateCONN_RESET != 0 || s&closed == closed {
			continue
		}
		kind := likeness(e.key, e.value)
		cut, judged := known[kind]
		if !judged {
			cut = d.mayBeCut(kind)
			known[kind] = cut
		}
		if !cut {
			continue
		}
		if perEndpoint[e.key.Ifindex] == rousedAtOnce {
			complete = false
			continue
		}
		perEndpoint[e.key.Ifindex]++
		keys = append(keys, e.key)
	}
	if complete {
		d.roused = generation
	}
	d.nextRouse = time.Now().Add(20 * time.Since(began))
	return keys, nil
}

// alike is what policy looks at in a TCP connection.
type alike struct {
	remote                        endpointAddr
	port                          uint16 // of the responder
	outbound                      bool
	localIdentity, remoteIdentity uint32
	contract                      uint32
	exit                          uint32 // mark; 0: it is not with an external
}

func likeness(key endpointConnKey, c endpointConn) alike {
	a := alike{key.Remote, key.LocalPort, c.Flags&endpointConnFlagCONN_OUTBOUND != 0, c.LocalIdentity, c.RemoteIdentity, c.Contract, 0}
	if c.Flags&endpointConnFlagCONN_OUTSIDE != 0 {
		a.exit = c.Mark
	}
	if a.outbound {
		a.port = key.RemotePort
	}
	return a
}

// mayBeCut reports whether policy seems not to allow a connection any more. It looks only for what
// the programs refuse for certain.
func (d *Datapath) mayBeCut(c alike) bool {
	if c.contract == 0 {
		return false // the resolver, or a check
	}
	var peer endpointPeer
	var behind endpointPublished
	if c.outbound && d.objects.SifPublished.Lookup(endpointPublishedKey{Address: c.remote, Port: c.port, Protocol: unix.IPPROTO_TCP}, &behind) == nil {
		c.remote, c.port = behind.Address, behind.Port
	}
	if d.objects.SifPeers.Lookup(c.remote, &peer) == nil {
		if peer.Ifindex == peerGone {
			return true
		}
		c.remoteIdentity = peer.Identity
	} else if c.outbound {
		if d.objects.SifFabric.Lookup(endpointFabricKey{PrefixLength: 128, Address: c.remote}, new(uint32)) == nil {
			return false
		}
		if d.objects.SifExternals.Lookup(destinationKey(c.remote), &c.remoteIdentity) != nil {
			return true
		}
		if c.remoteIdentity == 0 {
			return false
		}
	}
	pair := Pair{c.localIdentity, c.remoteIdentity}
	if !c.outbound {
		pair = Pair{c.remoteIdentity, c.localIdentity}
	}
	contract, allowed := d.contract(pair, unix.IPPROTO_TCP, c.port)
	if !allowed {
		return true
	}
	if c.exit == 0 || c.exit == d.config.NodeExit && contract&nodeExit != 0 {
		return false
	}
	return (contract^c.contract)&nodeExit != 0 || d.objects.SifExits.Lookup(c.exit, new(uint32)) != nil
}

// contract returns the number of the contract that allows a pair a port.
func (d *Datapath) contract(p Pair, protocol uint8, port uint16) (uint32, bool) {
	for length := 16; length >= 0; length-- {
		key := endpointRuleKey{Source: p.Source, Destination: p.Destination, Port: port & uint16(0xffff<<(16-length)), Length: uint8(length), Protocol: protocol}
		if contract, ok := d.pairs[p][key]; ok {
			return contract, true
		}
	}
	return 0, false
}

// rouse sends the workload an acknowledgement from the other end of a connection, with a sequence
// number that is, almost surely, not in its window. TCP answers it by a segment with the numbers
// that it expects (RFC 9293, 3.10.7.4). macs remembers workloads' hardware addresses.
func (d *Datapath) rouse(key endpointConnKey, macs map[endpointAddr]net.HardwareAddr) (err error) {
	at := netip.AddrPortFrom(fromMap(key.Local), key.LocalPort)
	mac, known := macs[key.Local]
	if !known {
		if mac, err = hardwareAddress(int(key.Ifindex), at.Addr()); err != nil {
			return err
		}
		macs[key.Local] = mac
	}
	if mac == nil {
		return nil
	}
	frame := acknowledgement(netip.AddrPortFrom(fromMap(key.Remote), key.RemotePort), at)
	copy(frame, mac)
	context := struct {
		before  [9]uint32
		ingress uint32
		ifindex uint32
		after   [37]uint32
	}{ingress: key.Ifindex, ifindex: key.Ifindex}
	if _, err := d.programs.SifRouse.Run(&ebpf.RunOptions{Data: frame, Context: context}); err != nil {
		return fmt.Errorf("rouse the connection of %s: %w", at, err)
	}
	return nil
}

// hardwareAddress returns the hardware address of a workload, or nil if the node has none for it.
func hardwareAddress(ifindex int, address netip.Addr) (net.HardwareAddr, error) {
	list, err := netlink.NeighList(ifindex, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the neighbours of interface %d: %w", ifindex, err)
	}
	for _, n := range list {
		if at, ok := netip.AddrFromSlice(n.IP); ok && at.Unmap() == address {
			return n.HardwareAddr, nil
		}
	}
	return nil, nil
}

// acknowledgement is a frame with an empty TCP segment, whose sequence number is 0.
func acknowledgement(from, to netip.AddrPort) []byte {
	const header, ack, protocol = 20, 0x10, unix.IPPROTO_TCP
	tcp := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from.Port()), to.Port())
	tcp = append(tcp, 0, 0, 0, 0, 0, 0, 0, 0, header/4<<4, ack, 0, 0, 0, 0, 0, 0)
	addresses := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	pseudo := append(addresses[:len(addresses):len(addresses)], 0, protocol, 0, header)
	binary.BigEndian.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))
	frame := []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if from.Addr().Is4() {
		ip := append([]byte{0x45, 0, 0, 2 * header, 0, 0, 0x40, 0, 64, protocol, 0, 0}, addresses...)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		return append(append(append(frame, 0x08, 0x00), ip...), tcp...)
	}
	ip := append([]byte{0x60, 0, 0, 0, 0, header, protocol, 64}, addresses...)
	return append(append(append(frame, 0x86, 0xdd), ip...), tcp...)
}

// checksum is that of IPv4 and TCP, of an even number of bytes.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
