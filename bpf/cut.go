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

// cut returns the connections that RouseCut has to rouse.
func (d *Datapath) cut() (keys []endpointConnKey, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return nil, os.ErrClosed
	}
	generation := atomic.LoadUint64(&d.config.Generation)
	if d.roused == generation {
		return nil, nil
	}
	told := map[uint32]bool{}
	endpoints, err := dump[uint32, endpointEndpoint](d.objects.SifEndpoints, "sif_endpoints")
	if err != nil {
		return nil, err
	}
	for _, e := range endpoints {
		told[e.key] = e.value.Flags&endpointEndpointFlagENDPOINT_REJECT != 0
	}
	entries, err := dump[endpointConnKey, endpointConn](d.objects.SifConns, "sif_conns")
	if err != nil {
		return nil, err
	}
	const closed = endpointConnStateCONN_FIN_ORIGINAL | endpointConnStateCONN_FIN_REPLY
	perEndpoint, complete := map[uint32]int{}, true
	for _, e := range entries {
		s := e.value.State
		if !told[e.key.Ifindex] || e.key.Protocol != unix.IPPROTO_TCP || e.value.Generation == generation ||
			s&endpointConnStateCONN_ANSWERED == 0 || s&endpointConnStateCONN_RESET != 0 || s&closed == closed || !d.mayBeCut(e.key, e.value) {
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
	return keys, nil
}

// mayBeCut reports whether policy seems not to allow a connection any more. It looks only for what
// the programs refuse for certain.
func (d *Datapath) mayBeCut(key endpointConnKey, c endpointConn) bool {
	outbound := c.Flags&endpointConnFlagCONN_OUTBOUND != 0
	port, remote := key.LocalPort, c.RemoteIdentity
	address := key.Remote
	if outbound {
		port = key.RemotePort
		var behind endpointPublished
		if d.objects.SifPublished.Lookup(endpointPublishedKey{Address: address, Port: port, Protocol: key.Protocol}, &behind) == nil {
			address, port = behind.Address, behind.Port
		}
	}
	var peer endpointPeer
	if d.objects.SifPeers.Lookup(address, &peer) == nil {
		if peer.Ifindex == peerGone {
			return true
		}
		remote = peer.Identity
	} else if outbound && c.Contract != 0 {
		err := d.objects.SifExternals.Lookup(endpointExternalKey{PrefixLength: 160, Address: address}, &remote)
		if err != nil || remote == 0 {
			return err != nil && d.objects.SifFabric.Lookup(endpointFabricKey{PrefixLength: 128, Address: address}, new(uint32)) != nil
		}
	}
	if c.Contract == 0 {
		return false // the resolver, or a check
	}
	pair := Pair{c.LocalIdentity, remote}
	if !outbound {
		pair = Pair{remote, c.LocalIdentity}
	}
	contract, allowed := d.contract(pair, key.Protocol, port)
	if !allowed {
		return true
	}
	var one uint32
	return c.Mark != 0 && (contract^c.Contract)&nodeExit != 0 ||
		c.Mark != 0 && c.Mark != d.config.NodeExit && d.objects.SifExits.Lookup(c.Mark, &one) != nil
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
