// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
	"github.com/sif-project/sif/internal/connlimit"
)

// datagrams returns a function that sends a datagram from a port of a to port 9000 of b and says
// whether it came back.
func (f *fixture) datagrams() (echoed func(port int) bool) {
	var server net.PacketConn
	ovstest.In(f.t, f.b, func() {
		var err error
		server, err = net.ListenPacket("udp4", ":9000")
		must.NoError(f.t, err)
	})
	f.t.Cleanup(func() { _ = server.Close() })
	go func() {
		buffer := make([]byte, 100)
		for {
			n, from, err := server.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buffer[:n], from)
		}
	}()
	open := map[int]net.Conn{}
	return func(port int) bool {
		c := open[port]
		if c == nil {
			ovstest.In(f.t, f.a, func() {
				var err error
				c, err = net.DialUDP("udp4", &net.UDPAddr{Port: port}, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 9000})
				must.NoError(f.t, err)
			})
			f.t.Cleanup(func() { _ = c.Close() })
			open[port] = c
		}
		return answers(c, 300*time.Millisecond) == nil
	}
}

// The switch keeps the connections that it has and refuses a further one, until one of them was
// idle for its time.
func TestLimitConnections(t *testing.T) {
	ctx := context.Background()
	f := newFixture(t)
	udp := f.state.Entries[0]
	udp.ID, udp.Protocol, udp.Ports = entryAB2, 17, []ovs.PortRange{{First: 9000, Last: 9000}}
	f.setEntries(udp)
	limits := connlimit.Default()
	must.NoError(t, f.sw.LimitConnections(ctx, 7, limits)) // and again, with others
	policy := func() string {
		return ovstest.Run(t, "ovs-vsctl", "--db=unix:"+f.instance.Config.RunDir+"/db.sock", "--bare", "--columns=_uuid", "list", "CT_Timeout_Policy")
	}
	before := policy()
	must.NoError(t, f.sw.LimitConnections(ctx, 7, limits))
	must.Eq(t, before, policy())
	limits.Switch, limits.Idle.UDP = 4, 3*time.Second
	must.NoError(t, f.sw.LimitConnections(ctx, 7, limits))
	echoed := f.datagrams()
	for port := range 4 {
		must.True(t, echoed(5000+port))
	}
	for range 10 { // longer than the time limit
		must.False(t, echoed(6000))
		for port := range 4 {
			must.True(t, echoed(5000+port), must.Sprint(port))
		}
	}
	time.Sleep(limits.Idle.UDP)
	for end := time.Now().Add(60 * time.Second); !echoed(6000); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the idle connections still take the room of another")
		}
	}
	// Others' settings stay: the time limits are those of our zone.
	out := ovstest.Run(t, "ovs-vsctl", "--db=unix:"+f.instance.Config.RunDir+"/db.sock", "list-zone-tp", f.instance.Config.Datapath)
	must.StrContains(t, out, "Zone:7, Timeout Policies:")
	for _, want := range []string{"udp_first=3", "udp_multiple=3", fmt.Sprintf("tcp_established=%d", 6*3600)} {
		must.StrContains(t, out, want)
	}
}

// What others change of the limits, or what a restart of the switch forgets, is put back.
func TestChangedLimitsAreCorrected(t *testing.T) {
	ctx := context.Background()
	f := newFixture(t)
	limits := connlimit.Default()
	limits.Switch = 2000
	must.NoError(t, f.sw.LimitConnections(ctx, 7, limits))
	datapath := f.instance.Config.Datapath
	dpctl := func(command, zone string) string {
		return ovstest.Run(t, "ovs-appctl", "-t", f.instance.Config.Control, "dpctl/"+command, datapath+"@ovs-"+datapath, zone)
	}
	vsctl := func(args ...string) {
		ovstest.Run(t, "ovs-vsctl", append([]string{"--db=unix:" + f.instance.Config.RunDir + "/db.sock"}, args...)...)
	}
	for _, c := range []struct {
		name   string
		change func()
		want   []string
	}{
		{"nothing", func() {}, nil},
		{"the number", func() { dpctl("ct-set-limits", "zone=7,limit=20001") }, []string{"most connections of zone 7"}},
		{"no number", func() { dpctl("ct-del-limits", "zone=7") }, []string{"most connections of zone 7"}},
		{"the times", func() { vsctl("del-zone-tp", datapath, "zone=7") }, []string{"idle times of connections of zone 7"}},
		{"another zone's times", func() { vsctl("add-zone-tp", datapath, "zone=8", "udp_first=7") }, nil},
		{"one time", func() {
			vsctl("del-zone-tp", datapath, "zone=7")
			vsctl("add-zone-tp", datapath, "zone=7", "udp_first=7")
		}, []string{"idle times of connections of zone 7"}},
	} {
		c.change()
		changes, err := f.sw.Repair(ctx, nil)
		must.NoError(t, err, must.Sprint(c.name))
		must.Eq(t, c.want, changes, must.Sprint(c.name))
		changes, err = f.sw.Repair(ctx, nil)
		must.NoError(t, err)
		must.SliceEmpty(t, changes, must.Sprint(c.name))
		must.StrContains(t, dpctl("ct-get-limits", "zone=7"), "zone=7,limit=2000,")
	}
	f.instance.RestartSwitch()
	_, err := f.sw.Repair(ctx, nil)
	must.NoError(t, err)
	must.StrContains(t, dpctl("ct-get-limits", "zone=7"), "zone=7,limit=2000,")
}

// The kernel's datapath shares the kernel's table, which may be smaller.
func TestConfined(t *testing.T) {
	f := newFixture(t)
	must.Eq(t, "", f.sw.Confined())
	limits := connlimit.Default()
	limits.Switch = 16_000_000
	must.NoError(t, f.sw.LimitConnections(context.Background(), 7, limits))
	if f.instance.Config.Datapath == "system" {
		must.StrContains(t, f.sw.Confined(), "run `sysctl -w net.netfilter.nf_conntrack_max=16000000`")
	} else {
		must.Eq(t, "", f.sw.Confined())
	}
}
