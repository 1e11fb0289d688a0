// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
	"github.com/sif-project/sif/internal/testhost"
)

// answerDatagrams sends each datagram back.
func answerDatagrams(t testing.TB, ns, address string) {
	t.Helper()
	var c net.PacketConn
	ovstest.In(t, ns, func() {
		var err error
		c, err = net.ListenPacket("udp", address)
		must.NoError(t, err)
	})
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
}

// datagram sends a datagram by a new socket and waits for it to come back.
func datagram(t testing.TB, ns, address string, size int) error {
	t.Helper()
	c, err := net.Conn(nil), error(nil)
	ovstest.In(t, ns, func() { c, err = net.Dial("udp", address) })
	must.NoError(t, err)
	defer c.Close()
	want := bytes.Repeat([]byte{byte(size)}, size)
	_, err = c.Write(want)
	must.NoError(t, err)
	must.NoError(t, c.SetReadDeadline(time.Now().Add(3*time.Second)))
	got := make([]byte, 1<<16)
	n, err := c.Read(got)
	if err != nil {
		return err
	}
	if !bytes.Equal(want, got[:n]) {
		return fmt.Errorf("%d bytes came back otherwise", size)
	}
	return nil
}

// Datagrams of every size pass with their flow, the first ones as well as later ones.
func TestFragments(t *testing.T) {
	testhost.RequireProgram(t, "ping")
	f := newFixture(t)
	_, err := f.p.Reconcile(t.Context(), f.state)
	must.NoError(t, err)
	f.setEntries(
		ovs.Entry{ID: 2, Src: classA, Dst: classB, Protocol: 17, Ports: []ovs.PortRange{{First: 53, Last: 53}}},
		ovs.Entry{ID: 3, Src: classA, Dst: classB, Protocol: 1, Ports: []ovs.PortRange{{First: 8, Last: 8}}},
		ovs.Entry{ID: 4, Src: classA, Dst: classB, Protocol: 58, Ports: []ovs.PortRange{{First: 128, Last: 128}}})
	for _, host := range []string{"10.0.0.2", "fd00::2"} {
		address := net.JoinHostPort(host, "53")
		answerDatagrams(t, f.b, address)
		answerDatagrams(t, f.b, net.JoinHostPort(host, "54"))
		for _, size := range []int{1, 1400, 1473, 3000, 9000, 20000, 40000} {
			must.NoError(t, datagram(t, f.a, address, size), must.Sprintf("%d bytes to %s", size, host))
		}
		must.Error(t, datagram(t, f.a, net.JoinHostPort(host, "54"), 3000))
		must.True(t, pings(f.a, host, "-s3000"), must.Sprint(host))
		must.True(t, pings(f.a, host, "-s3000"), must.Sprint(host))
		must.False(t, pings(f.b, map[string]string{"10.0.0.2": "10.0.0.1", "fd00::2": "fd00::1"}[host], "-s3000"))
	}
}

// sendSCTP sends an INIT chunk between two addresses.
func sendSCTP(t testing.TB, ns, src, dst string, from, to uint16) {
	t.Helper()
	packet := binary.BigEndian.AppendUint16(nil, from)
	packet = binary.BigEndian.AppendUint16(packet, to)
	packet = append(packet, 0, 0, 0, 0, 0, 0, 0, 0) // tag and checksum
	packet = append(packet, 1, 0, 0, 20, 0, 0, 0, 7, 0, 0, 255, 255, 0, 1, 0, 1, 0, 0, 0, 7)
	binary.LittleEndian.PutUint32(packet[8:], crc32.Checksum(packet, crc32.MakeTable(crc32.Castagnoli)))
	ovstest.In(t, ns, func() {
		c, err := net.Dial("ip:132", dst)
		must.NoError(t, err)
		defer c.Close()
		_, err = c.Write(packet)
		must.NoError(t, err)
	})
}

// sctpAt returns how many packets of SCTP reached a namespace.
func sctpAt(t testing.TB, ns string, address string) func() int {
	t.Helper()
	var c net.PacketConn
	ovstest.In(t, ns, func() {
		var err error
		c, err = net.ListenPacket("ip:132", address)
		must.NoError(t, err)
	})
	t.Cleanup(func() { _ = c.Close() })
	return func() (n int) {
		for {
			must.NoError(t, c.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
			if _, _, err := c.ReadFrom(make([]byte, 100)); err != nil {
				return n
			}
			n++
		}
	}
}

// Open vSwitch in user space takes all SCTP between two addresses for one connection: an admitted
// port must not open others.
func TestSCTPIsJudgedByPorts(t *testing.T) {
	f := newFixture(t)
	_, err := f.p.Reconcile(t.Context(), f.state)
	must.NoError(t, err)
	entry := func(id uint64, port uint16) ovs.Entry {
		return ovs.Entry{ID: id, Src: classA, Dst: classB, Protocol: 132, Ports: []ovs.PortRange{{First: port, Last: port}}}
	}
	f.setEntries(entry(2, 53), entry(3, 54))
	const a, b = "10.0.0.1", "10.0.0.2"
	atA, atB := sctpAt(t, f.a, a), sctpAt(t, f.b, b)
	for _, step := range []struct {
		back     bool
		from, to uint16
		passes   int
	}{
		{true, 53, 4000, 0}, {true, 4000, 53, 0},
		{false, 4000, 53, 1}, {true, 53, 4000, 1}, {false, 4000, 53, 1},
		{false, 4000, 99, 0}, {true, 99, 4000, 0}, {false, 53, 4000, 0},
		{false, 5000, 54, 1}, {true, 54, 5000, 1}, {true, 53, 4000, 1},
	} {
		count, ns, src, dst := atB, f.a, a, b
		if step.back {
			count, ns, src, dst = atA, f.b, b, a
		}
		sendSCTP(t, ns, src, dst, step.from, step.to)
		must.Eq(t, step.passes, count(), must.Sprintf("%+v", step))
	}
	f.setEntries(entry(3, 54))
	sendSCTP(t, f.a, a, b, 4000, 53)
	sendSCTP(t, f.b, b, a, 53, 4000)
	must.Zero(t, atB())
	must.Zero(t, atA())
}
