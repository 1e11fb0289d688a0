// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// An endpoint that is being attached while the agent compares is never taken for a lost one.
func TestAttachmentsAreNotLost(t *testing.T) {
	eps, err := openEndpoints(filepath.Join(t.TempDir(), "endpoints.json"))
	must.NoError(t, err)
	var r releases
	var mu sync.Mutex
	var live []api.LiveAdmission // at the controller
	var attaching sync.WaitGroup
	for n := range 200 {
		attaching.Go(func() {
			id := fmt.Sprint(n)
			defer r.begin(id)()
			mu.Lock()
			live = append(live, api.LiveAdmission{Endpoint: id})
			mu.Unlock()
			eps.mu.Lock()
			eps.set[at(id)], eps.ordered = &endpoint{ID: id, Attachment: at(id)}, nil
			eps.mu.Unlock()
		})
		mu.Lock()
		read := live
		mu.Unlock()
		must.SliceEmpty(t, lostOf(read, r.inProgress, eps.all))
	}
	attaching.Wait()
	must.SliceEmpty(t, r.inProgress())
	must.SliceEmpty(t, lostOf(live, r.inProgress, eps.all))
	must.Eq(t, []api.LiveAdmission{{Endpoint: "gone"}}, lostOf(append(live, api.LiveAdmission{Endpoint: "gone"}), r.inProgress, eps.all))
}

// A failed release makes the agent compare at once, otherwise it does so at intervals.
func TestWhenReleasesAreCompared(t *testing.T) {
	var r releases
	must.True(t, r.due())
	r.compared(nil)
	must.False(t, r.due())
	r.failed()
	must.True(t, r.due())
}

// With 130 addresses resting at the controller that this node has forgotten, the next one that it
// takes is free.
func TestAddressesThatRestAtTheController(t *testing.T) {
	path, now := filepath.Join(t.TempDir(), "addresses.json"), time.Now()
	pool4, pool6 := netip.MustParsePrefix("100.64.1.0/24"), netip.MustParsePrefix("fd5f:0:0:1::/64")
	a, err := openAddresses(path, pool4, pool6)
	must.NoError(t, err)
	var resting []api.RestingAddress
	for n := range 130 {
		for _, addr := range []netip.Addr{netip.AddrFrom4([4]byte{100, 64, 1, byte(firstOffset + n)}), netip.MustParseAddr("fd5f:0:0:1::9")} {
			resting = append(resting, api.RestingAddress{Address: addr, Until: now.Add(rest)})
		}
	}
	a.avoid(resting, now)
	v4, _, err := a.take(now)
	must.NoError(t, err)
	must.Eq(t, "100.64.1.132", v4.String())
	again, err := openAddresses(path, pool4, pool6)
	must.NoError(t, err)
	v4, _, err = again.take(now)
	must.NoError(t, err)
	must.Eq(t, "100.64.1.132", v4.String())
	v4, _, err = again.take(now.Add(rest))
	must.NoError(t, err)
	must.Eq(t, "100.64.1.133", v4.String())
}

// The agent releases what is gone, renews what the controller has lost, and offers no address that
// rests at the controller.
func TestReleaseLost(t *testing.T) {
	a, _, released := hookedAgent(t)
	for _, id := range []string{"kept", "lacking"} {
		ep := endpoint{ID: id, Attachment: at(id), HostIndex: 1, Admission: fabric.Admission{Endpoint: id, Issued: time.Now(), Expires: time.Now().Add(24 * time.Hour)}}
		ep.Request.Certificate = identitytest.NewCA(t).Issue(svc.SPIFFE(), "").Certificate
		must.NoError(t, a.endpoints.put(ep)())
		must.False(t, a.mustRenew(ep))
	}
	must.NoError(t, a.releaseLost(t.Context()))
	must.Eq(t, []string{"gone"}, released())
	must.False(t, a.releases.due())
	v4, _, err := a.addresses.take(a.now())
	must.NoError(t, err)
	must.Eq(t, "100.64.0.4", v4.String())

	kept, _ := a.endpoints.get(at("kept"))
	must.False(t, a.mustRenew(kept))
	lacking, _ := a.endpoints.get(at("lacking"))
	must.True(t, a.mustRenew(lacking))
	a.releases.renewed("lacking")
	must.False(t, a.mustRenew(lacking))
}

// An agent whose endpoints are lost does not take their interfaces for those of nobody. A new node
// has none.
func TestLostEndpoints(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints.json")
	open := func() *endpoints {
		es, err := openEndpoints(path)
		must.NoError(t, err)
		return es
	}
	must.ErrorContains(t, open().lost([]string{"sif1", "sif2"}), "there is no "+path+", but 2 interfaces of endpoints, sif1 first")
	must.NoError(t, open().lost(nil))
	must.NoError(t, open().lost([]string{"sif1"})) // by an ADD that was not finished
}
