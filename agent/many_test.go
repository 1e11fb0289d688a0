// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/kernel"
)

var manyEndpoints = flag.Int("endpoints", 300, "how many endpoints TestManyEndpoints attaches to one node")

// A node has more endpoints than a /24 has addresses. With real interfaces, and all of the agent's
// files; the maps are in memory. -v prints the figures:
//
//	go test -v -run TestManyEndpoints ./agent -endpoints 1000
func TestManyEndpoints(t *testing.T) {
	x := newAttachingAgent(t)
	var err error
	x.addresses, err = openAddresses(filepath.Join(t.TempDir(), "addresses.json"), netip.MustParsePrefix("100.64.4.0/22"), netip.MustParsePrefix("fd5f:0:0:4::/64"))
	must.NoError(t, err)
	workloads := newNamespace(t) // one for all: what counts here is the node
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	request := func(command string, n int) cnicall.Request {
		r := cnicall.Request{Command: command, ContainerID: fmt.Sprintf("c%d", n), IfName: fmt.Sprintf("eth%d", n), Network: "net", Runtime: "test"}
		if command == "ADD" {
			r.Allocation = fmt.Sprintf("00000000-0000-0000-0000-%012d", n)
		}
		return r
	}
	before := heap()
	var took, left []time.Duration
	addresses := map[netip.Addr]bool{}
	x.inNode(func() {
		for n := range *manyEndpoints {
			r := request("ADD", n)
			r.Namespace, err = os.Open(workloads.Path())
			must.NoError(t, err)
			began := time.Now()
			_, err := x.Handle(t.Context(), r)
			must.NoError(t, err, must.Sprint(n))
			took = append(took, time.Since(began))
			must.NoError(t, r.Namespace.Close())
		}
	})
	state := heap() - before
	for _, ep := range x.endpoints.all() {
		addresses[ep.IPv4], addresses[ep.IPv6] = true, true
	}
	must.MapLen(t, 2**manyEndpoints, addresses)
	links := func() (n int) {
		x.inNode(func() {
			list, err := netlink.LinkList()
			must.NoError(t, err)
			for _, l := range list {
				if l.Type() == "veth" {
					n++
				}
			}
		})
		return n
	}
	must.Eq(t, *manyEndpoints, links())
	info, err := os.Stat(filepath.Join(x.Agent.node.Config.DataDir, "endpoints.json"))
	must.NoError(t, err)

	x.inNode(func() { // a restart, and the comparisons of every few seconds
		began := time.Now()
		again, err := openEndpoints(filepath.Join(x.Agent.node.Config.DataDir, "endpoints.json"))
		must.NoError(t, err)
		must.Len(t, *manyEndpoints, again.all())
		t.Logf("%d endpoints: read in %s", *manyEndpoints, time.Since(began).Round(time.Millisecond))
		began = time.Now()
		var state kernel.State
		for _, ep := range x.settled() {
			state.Interfaces = append(state.Interfaces, x.pairOf(ep).hostSide(ep.IPv4, ep.IPv6))
		}
		changes, err := kernel.Repair(state)
		must.NoError(t, err)
		must.SliceEmpty(t, changes)
		t.Logf("interfaces, neighbours and routes compared in %s", time.Since(began).Round(time.Millisecond))
		for n := range *manyEndpoints {
			began := time.Now()
			_, err := x.Handle(t.Context(), request("DEL", n))
			must.NoError(t, err)
			left = append(left, time.Since(began))
		}
	})
	must.SliceEmpty(t, x.endpoints.all())
	must.Zero(t, links())
	_, resting, free := x.addresses.usage(time.Now())
	must.Eq(t, []int{*manyEndpoints, 1021 - *manyEndpoints}, []int{resting, free})
	must.NoError(t, workloads.Do(func(ns.NetNS) error {
		list, err := netlink.LinkList()
		must.Len(t, 1, list)
		return err
	}))
	percentiles := func(list []time.Duration) string {
		slices.Sort(list)
		return fmt.Sprintf("p50 %s, p99 %s", list[len(list)/2].Round(time.Microsecond), list[len(list)*99/100].Round(time.Microsecond))
	}
	t.Logf("ADD %s; DEL %s; %d KiB of heap, %d KiB in endpoints.json", percentiles(took), percentiles(left), state>>10, info.Size()>>10)
}
