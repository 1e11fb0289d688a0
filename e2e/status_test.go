// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	consul "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/wellknown"
)

// problems returns what `sif status` says is wrong; nothing if it says that all is well.
func (f *fabricUnderTest) problems(t *testing.T) []string {
	t.Helper()
	r := f.sif(t, "status", "-json")
	var s struct {
		Healthy  bool
		Problems []string
	}
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &s), must.Sprint(r.stdout, r.stderr))
	must.Eq(t, s.Healthy, len(s.Problems) == 0)
	must.Eq(t, s.Healthy, r.code == 0)
	return s.Problems
}

// tells waits until the status names a problem with all of these words.
func (f *fabricUnderTest) tells(t *testing.T, within time.Duration, words ...string) {
	t.Helper()
	eventually(t, within, func() error {
		problems := f.problems(t)
		for _, p := range problems {
			all := true
			for _, w := range words {
				all = all && strings.Contains(p, w)
			}
			if all {
				return nil
			}
		}
		return fmt.Errorf("no problem has the words %q:\n%s", words, strings.Join(problems, "\n"))
	})
}

// well waits until the status says that all is well.
func (f *fabricUnderTest) well(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		if problems := f.problems(t); len(problems) > 0 {
			return fmt.Errorf("status says: %s", strings.Join(problems, "\n"))
		}
		return nil
	})
}

// cut drops, on a node, the encrypted packets to and from another node that match a condition of
// nftables, until undo is called or the test ends.
func (f *fabricUnderTest) cut(t *testing.T, node, peer, condition string) (undo func()) {
	t.Helper()
	address := ""
	for _, n := range f.Topology.Nodes() {
		if n.Name == peer {
			address = n.Address
		}
	}
	must.NotEq(t, "", address)
	const table = "sif-e2e-cut"
	nft := func(commands string) { must.NoError(t, f.NFT(context.Background(), node, commands)) }
	done := false
	undo = func() {
		if !done {
			done = true
			nft("delete table ip " + table)
		}
	}
	t.Cleanup(undo)
	nft(fmt.Sprintf(`table ip %s {
		chain out { type filter hook output priority 0; ip daddr %s udp dport %d-%d %s drop; }
		chain in { type filter hook input priority -300; ip saddr %s udp sport %d-%d %s drop; }
	}`, table, address, wellknown.FirstLinkPort, wellknown.LastLinkPort, condition, address, wellknown.FirstLinkPort, wellknown.LastLinkPort, condition))
	return undo
}

// TestLinkThatIsCut cuts the underlay between two nodes: the status names the link, and, between
// two processors, the path between the zones.
func TestLinkThatIsCut(t *testing.T) {
	world.well(t)
	undo := world.cut(t, "aws1-w1", "aws1-w2", "")
	world.tells(t, 30*time.Second, "aws1/aws1-w1: the link to aws1/aws1-w2 is down")
	world.tells(t, 10*time.Second, "aws1/aws1-w2: the link to aws1/aws1-w1 is down")
	undo()
	world.well(t)

	undo = world.cut(t, "aws1-p1", "gcp1-p1", "")
	world.tells(t, 30*time.Second, "aws1/aws1-p1: the link to gcp1/gcp1-p1 is down")
	world.tells(t, 60*time.Second, "the path to zone gcp1 is down")
	undo()
	world.well(t)
	r := world.sif(t, "status", "-verbose")
	for _, heading := range []string{"Probed links", "Probed paths between zones", "Path MTU"} {
		must.StrContains(t, r.stdout, heading)
	}
}

// TestPathThatLosesLargePackets lets only small packets pass between two nodes: the status says so,
// with the remedy, until they pass again. Full-size probes are sent some times a minute, of which
// several must be lost.
func TestPathThatLosesLargePackets(t *testing.T) {
	long(t)
	world.well(t)
	undo := world.cut(t, "gcp1-w1", "gcp1-w2", "udp length > 1400")
	world.tells(t, 90*time.Second, "the link to gcp1/gcp1-w", "packets of 1420 bytes do not pass", "let the underlay carry packets of 1500 bytes")
	undo()
	world.well(t)
}

// TestWorkloadsCannotReachHealthAddresses sends a probe, as nodes send them, from a workload to its
// own node, to another one, to its processor and to another zone.
func TestWorkloadsCannotReachHealthAddresses(t *testing.T) {
	from := world.workload(t, "voting-app/voting-svc", "aws1")
	payload := append([]byte("SIFp\x01\x01\x00\x00"), make([]byte, 24)...)
	_, _ = rand.Read(payload[8:24])
	probe := func(netns string, source, to netip.Addr) (answered bool) {
		must.NoError(t, ns.WithNetNSPath(netns, func(ns.NetNS) error {
			c, err := net.DialUDP("udp", &net.UDPAddr{IP: source.AsSlice(), Port: wellknown.ProbePort}, &net.UDPAddr{IP: to.AsSlice(), Port: wellknown.ProbePort})
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.Write(payload); err != nil {
				return err
			}
			must.NoError(t, c.SetReadDeadline(time.Now().Add(time.Second)))
			_, err = c.Read(make([]byte, 100))
			answered = err == nil
			return nil
		}))
		return answered
	}
	for _, n := range world.status(t).Nodes {
		for _, pair := range [][2]netip.Addr{{from.v4, n.Pool4.Addr().Next()}, {from.v6, n.Pool6.Addr().Next()}} {
			dropped, _ := world.kernelDrops(t, from.node, 0)
			must.False(t, probe(from.netns, pair[0], pair[1]), must.Sprint(pair))
			now, _ := world.kernelDrops(t, from.node, 0)
			must.Greater(t, dropped, now, must.Sprintf("the veth's program drops %v", pair))
			answer := world.sif(t, "explain", pair[0].String(), pair[1].String(), fmt.Sprintf("%d/udp", wellknown.ProbePort))
			must.StrContains(t, answer.stdout, "health address of node "+n.ID().String())
		}
	}
}

// TestStatusAndVerifyAgree injects faults of all kinds. Under each of them `sif status` must not
// say that all is well for longer than its comparisons take, while `sif verify` finds differences;
// afterwards both are content. A fault that is mended by itself has been when both were content for
// longer than the pause between two comparisons.
func TestStatusAndVerifyAgree(t *testing.T) {
	const slack, mended = 15 * time.Second, 6 * time.Second
	bridge := func(node string) string { return "unix:" + filepath.Join(world.OVSRunDir(node), "sif0.mgmt") }
	ofctl := func(t *testing.T, args ...string) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, "ovs-ofctl", append([]string{"-O", "OpenFlow14"}, args...)...).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
	}
	signalled := func(node, daemon string) func(*testing.T) func() {
		return func(t *testing.T) func() {
			must.NoError(t, world.Signal(node, daemon, syscall.SIGSTOP))
			return func() { must.NoError(t, world.Signal(node, daemon, syscall.SIGCONT)) }
		}
	}
	for _, fault := range []struct {
		name   string
		lasts  bool // until it is undone, so the status must tell it
		inject func(*testing.T) (undo func())
	}{
		{"map entries deleted", false, func(t *testing.T) func() {
			d := world.kernel(t, world.workload(t, "voting-app/worker", "aws1").node)
			peers, err := d.Peers()
			must.NoError(t, err)
			for _, p := range peers {
				must.NoError(t, d.DeletePeer(p.Address))
			}
			return func() {}
		}},
		{"map entries deleted, agent frozen", true, func(t *testing.T) func() {
			node := world.workload(t, "voting-app/result-db", "gcp1").node
			thaw := signalled(node, "agent")(t)
			d := world.kernel(t, node)
			peers, err := d.Peers()
			must.NoError(t, err)
			must.NoError(t, d.DeletePeer(peers[0].Address))
			return thaw
		}},
		{"flows deleted", false, func(t *testing.T) func() {
			ofctl(t, "del-flows", bridge("aws1-p1"), "table=6")
			return func() {}
		}},
		{"flows deleted again and again", true, func(t *testing.T) func() {
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for ctx.Err() == nil {
					_ = exec.Command("ovs-ofctl", "-O", "OpenFlow14", "del-flows", bridge("gcp1-p1"), "table=1").Run()
					time.Sleep(300 * time.Millisecond)
				}
			}()
			return func() {
				cancel()
				<-ended
			}
		}},
		{"node record deleted", false, func(t *testing.T) func() {
			key := kvkey.Node(fabric.NodeID{Zone: "aws1", Name: "aws1-w2"}).String()
			good := world.get(t, key)
			_, err := world.consul.KV().Delete(key, nil)
			must.NoError(t, err)
			return func() {
				pair := &consul.KVPair{Key: key, Value: good}
				_, _, err := world.consul.KV().CAS(pair, nil) // unless it is back by itself
				must.NoError(t, err)
			}
		}},
		{"link process frozen", true, signalled("aws1-w1", "link")},
		{"engine frozen", true, signalled("gcp1-p1", "engine")},
		{"link cut", true, func(t *testing.T) func() { return world.cut(t, "aws1-w1", "aws1-p1", "") }},
	} {
		t.Run(fault.name, func(t *testing.T) {
			world.well(t)
			must.Zero(t, world.sif(t, "verify").code)
			undo := fault.inject(t)
			undone := false
			t.Cleanup(func() {
				if !undone {
					undo()
				}
			})
			told := false
			var disagree, content time.Time // since when
			for began := time.Now(); time.Since(began) < 30*time.Second && !(told && fault.lasts); {
				verified := world.sif(t, "verify")
				problems := world.problems(t)
				told = told || len(problems) > 0
				if verified.code != 0 || len(problems) > 0 {
					content = time.Time{}
				} else if content.IsZero() {
					content = time.Now()
				} else if !fault.lasts && time.Since(content) > mended {
					break
				}
				if verified.code == 0 || len(problems) > 0 {
					disagree = time.Time{}
				} else if disagree.IsZero() {
					disagree = time.Now()
				} else {
					must.Less(t, slack, time.Since(disagree), must.Sprintf("status says that all is well, verify: %s", verified.stdout))
				}
				time.Sleep(300 * time.Millisecond)
			}
			if fault.lasts {
				must.True(t, told, must.Sprint("the status does not tell it"))
			}
			undone = true
			undo()
			world.well(t)
			eventually(t, 30*time.Second, func() error {
				if r := world.sif(t, "verify"); r.code != 0 {
					return fmt.Errorf("verify: %s%s", r.stdout, r.stderr)
				}
				return nil
			})
			must.SliceEmpty(t, world.problems(t))
		})
	}
}
