// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/hostport"
	"github.com/sif-project/sif/internal/testhost"
)

// A namespace is that of the endpoint whose interface leads there, by the kernel's account, and of
// no other: not of one whose interface has gone, and whose index or name another has now.
func TestEndpointOfNamespace(t *testing.T) {
	testhost.RequireRoot(t)
	space := func() (ns.NetNS, *os.File) {
		n, err := testutils.NewNS()
		must.NoError(t, err)
		f, err := os.Open(n.Path())
		must.NoError(t, err)
		t.Cleanup(func() {
			f.Close()
			n.Close()
			must.NoError(t, testutils.UnmountNS(n))
		})
		return n, f
	}
	node, _ := space() // so that interfaces of this machine play no part
	es, err := openEndpoints(filepath.Join(t.TempDir(), "endpoints.json"))
	must.NoError(t, err)
	w := &workloads{Agent: &Agent{endpoints: es}, seen: map[uint64]string{}}
	attach := func(id, name string, into ns.NetNS) {
		at := cnicall.Attachment{ContainerID: id, IfName: "eth0"}
		ep := endpoint{ID: id, Attachment: at, HostIf: name}
		must.NoError(t, node.Do(func(ns.NetNS) error {
			pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(into.Fd())}
			if err := netlink.LinkAdd(pair); err != nil {
				return err
			}
			link, err := netlink.LinkByName(name)
			if err == nil {
				ep.HostIndex = link.Attrs().Index
			}
			return err
		}))
		must.NoError(t, es.put(ep)())
	}
	of := func(f *os.File) (ids []string) {
		t.Helper()
		must.NoError(t, node.Do(func(ns.NetNS) error {
			found, err := w.byNamespace(f)
			for _, ep := range found {
				ids = append(ids, ep.ID)
			}
			return err
		}))
		return ids
	}
	one, oneFile := space()
	two, twoFile := space()
	_, none := space()
	must.SliceEmpty(t, of(oneFile))
	attach("one", "sifa", one)
	attach("two", "sifb", two)
	for range 2 { // by search, then as it was found before
		must.Eq(t, []string{"one"}, of(oneFile))
		must.Eq(t, []string{"two"}, of(twoFile))
		must.SliceEmpty(t, of(none))
	}
	// The interface of the first is gone, and one of its name leads to the other.
	must.NoError(t, node.Do(func(ns.NetNS) error {
		link, err := netlink.LinkByName("sifa")
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err == nil {
			err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "sifa"}, PeerName: "eth9", PeerNamespace: netlink.NsFd(two.Fd())})
		}
		return err
	}))
	must.SliceEmpty(t, of(oneFile))
	must.Eq(t, []string{"two"}, of(twoFile))

	// An endpoint of a process of the node is not that of what is in its namespace.
	es.change(cnicall.Attachment{ContainerID: "two", IfName: "eth0"}, func(ep *endpoint) { ep.Process = &process{} })
	must.SliceEmpty(t, of(twoFile))
}

func TestGroupOfProcess(t *testing.T) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil || !strings.Contains("\n"+string(text), "\n0::") {
		testhost.Unmet(t, "needs a cgroup v2 hierarchy")
	}
	group, err := groupOf(os.Getpid())
	must.NoError(t, err)
	must.StrHasPrefix(t, "/", string(group))
	_, err = groupOf(1 << 30)
	must.ErrorContains(t, err, "look at the cgroup of process")
}

// A process of the node is of the endpoint in whose cgroup it is, and of no other.
func TestEndpointOfCgroup(t *testing.T) {
	es, err := openEndpoints(filepath.Join(t.TempDir(), "endpoints.json"))
	must.NoError(t, err)
	w := &workloads{Agent: &Agent{endpoints: es}, seen: map[uint64]string{}}
	_, err = w.byCgroup(os.Getpid())
	must.ErrorContains(t, err, "none is attached by its cgroup")
	own, err := groupOf(os.Getpid())
	if err != nil {
		testhost.Unmet(t, err.Error())
	}
	attach := func(id string, group hostport.Group) {
		at := cnicall.Attachment{ContainerID: id, IfName: "eth0"}
		must.NoError(t, es.put(endpoint{ID: id, Attachment: at, HostIndex: 1, Process: &process{Group: group}})())
	}
	attach("other", own+"x")
	attach("ports only", "")
	_, err = w.byCgroup(os.Getpid())
	must.ErrorContains(t, err, "is not that of an attached process")
	attach("own", own)
	found, err := w.byCgroup(os.Getpid())
	must.NoError(t, err)
	must.Len(t, 1, found)
	must.Eq(t, "own", found[0].ID)
}
