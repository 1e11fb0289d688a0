// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

// transitKey writes the configuration of the fabric's key, or makes a new version of it.
func (w *world) transitKey(t *testing.T, path string, data map[string]any) {
	t.Helper()
	w.vaultWrite(t, wellknown.TransitMount+"/keys/"+wellknown.TransitKey+path, data)
}

// reread has a source ask Vault for the fabric's key, as it does once a minute.
func (w *world) reread(t *testing.T) {
	t.Helper()
	for _, s := range w.sources {
		_, err := s.SigningVersion(t.Context(), s.Signing())
		must.NoError(t, err)
	}
}

// signedIn counts the signed statements in Consul by the version that signed them.
func (w *world) signedIn(t *testing.T) map[int][]string {
	t.Helper()
	list, _, err := w.consul.KV().List("sif/", nil)
	must.NoError(t, err)
	versions := map[int][]string{}
	for _, kv := range list {
		var of struct {
			fabric.Signed
			Node  fabric.Signed `json:"node"`
			Grant fabric.Signed `json:"signed"`
		}
		if json.Unmarshal(kv.Value, &of) != nil {
			continue
		}
		for _, s := range []fabric.Signed{of.Signed, of.Node, of.Grant} {
			if len(s.Signature) > 0 {
				versions[s.Version] = append(versions[s.Version], string(s.Kind)+" "+kv.Key)
			}
		}
	}
	return versions
}

// sparing is a Signer that does not sign pools, nor bindings of Nomad nodes.
type sparing struct{ Signer }

func (s sparing) Sign(ctx context.Context, kind fabric.Kind, payload []byte) (fabric.Signed, error) {
	if kind == fabric.KindPool || kind == fabric.KindNomadNode {
		return fabric.Signed{}, errors.New("it has stopped")
	}
	return s.Signer.Sign(ctx, kind, payload)
}

// oldOnly returns an error unless what the first version has signed in Consul is of these kinds.
func (w *world) oldOnly(t *testing.T, kinds ...string) error {
	t.Helper()
	left := map[string]bool{}
	for _, s := range w.signedIn(t)[1] {
		kind, _, _ := strings.Cut(s, " ")
		left[kind] = true
	}
	if got := slices.Sorted(maps.Keys(left)); !slices.Equal(kinds, got) {
		return fmt.Errorf("the first version has signed %v, expected %v", got, kinds)
	}
	return nil
}

// TestRotatedKey rotates the fabric's key as `sif key` does. The controller is replaced by one with
// an empty disk at each step, once in the middle of what it does, and the last one is the first
// again, which was away meanwhile.
func TestRotatedKey(t *testing.T) {
	w := newWorld(t)
	w.backdate(t)
	scheduler := &fakeScheduler{placed: map[string]Placement{}, machines: []Machine{machine("nomad-1", "10.0.0.1")}}
	for n := range 3 {
		p := placed("app", "g")
		p.Machine = scheduler.machines[0]
		scheduler.placed[allocation(n+1)] = p
	}
	first := w.fresh(t, scheduler)
	c := first
	next := func() {
		t.Helper()
		c.stop()
		c = w.start(t, t.TempDir(), scheduler, false)
	}
	_, err := c.operator.Apply(t.Context(), api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	w1 := w.reborn(t, c, "w1")
	pool := w1.register(t, "10.0.0.1").Pool4
	w1.claim(t, "10.0.0.1", "nomad-1")
	for n := range 3 {
		_, err = w1.Admit(t.Context(), request4(n+1, byte(n+10)))
		must.NoError(t, err)
	}
	must.NoError(t, w1.Release(t.Context(), allocation(2))) // its address rests
	_, err = c.operator.Revoke(t.Context(), api.RevokeRequest{Service: fabric.Ref{Domain: "app", Name: "proxy"}, Reason: "test"})
	must.NoError(t, err)
	kinds := []string{"pointer", "admission", "node", "pool", "revocations", "nomad-node", "audit"}
	eventually(t, func() error {
		all := strings.Join(w.signedIn(t)[1], "\n")
		for _, kind := range kinds {
			if !strings.Contains(all, kind+" ") {
				return errors.New(kind + " is missing")
			}
		}
		return nil
	})

	// A new version signs nothing while another one is pinned.
	w.transitKey(t, "/config", map[string]any{"min_encryption_version": 1})
	w.transitKey(t, "/rotate", nil)
	w.reread(t)
	next()
	at := func(c *running) *testNode { return w.reborn(t, c, "w1") }
	admit := func(n int) int {
		t.Helper()
		reply, err := at(c).Admit(t.Context(), request4(n, byte(n+9)))
		must.NoError(t, err)
		return reply.Admission.Version
	}
	must.Eq(t, 1, admit(1))
	must.Eq(t, 1, c.self().Signs)
	must.Eq(t, []int{1, 2}, c.self().Authorities.Keys)
	must.MapLen(t, 1, w.signedIn(t))

	// As soon as another one is, the controller signs with that, though it does not know yet.
	w.signer = func(s Signer) Signer { return sparing{s} }
	next()
	w.signer = nil
	w.transitKey(t, "/config", map[string]any{"min_encryption_version": 2})
	must.Eq(t, 2, admit(1))
	must.Eq(t, 2, c.self().Signs)
	eventually(t, func() error {
		audit, err := c.operator.Audit(t.Context(), api.AuditFilter{Action: actionSign})
		if err == nil && len(audit) == 0 {
			err = errors.New("there is no record")
		}
		return err
	})

	// What the older one signed is signed again, by whoever leads, and at last also the admissions
	// that their nodes have not renewed.
	eventually(t, func() error { return w.oldOnly(t, "admission", "nomad-node", "pool") })
	eventually(t, func() error {
		if !strings.Contains(strings.Join(c.self().Degraded, "\n"), "cannot be signed again: ") {
			return errors.New("it does not say so")
		}
		return nil
	})
	next()
	eventually(t, func() error { return w.oldOnly(t, "admission") })
	must.Eq(t, 1, c.self().Authorities.Statements[1]) // its node has time to renew it
	c.resigner.mu.Lock()
	c.resigner.since = time.Now().Add(-renewedWithin)
	c.resigner.mu.Unlock()
	eventually(t, func() error {
		if n := c.self().Authorities.Statements[1]; n > 0 {
			return fmt.Errorf("it holds %d", n)
		}
		return w.oldOnly(t)
	})
	must.SliceEmpty(t, c.self().Degraded)

	// What older ones signed does not count any more, and nothing lacks it.
	w.transitKey(t, "/config", map[string]any{"min_decryption_version": 2})
	w.reread(t)
	eventually(t, func() error {
		audit, err := c.operator.Audit(t.Context(), api.AuditFilter{Action: actionRetire})
		if err == nil && len(audit) == 0 {
			err = errors.New("there is no record")
		}
		return err
	})
	next()
	must.SliceEmpty(t, c.self().Degraded)
	must.Eq(t, 2, c.self().Authorities.Lowest)
	must.Eq(t, 2, len(c.table.admissions(func(fabric.Admission) bool { return true })))
	must.Eq(t, pool, at(c).register(t, "10.0.0.1").Pool4)
	must.Eq(t, "nomad-1", c.bound.of(w1.id).ID)

	// The first controller was away meanwhile. What it has on its disk keeps it from older
	// revisions all the same.
	c.stop()
	c = w.start(t, first.dir, scheduler, false)
	must.SliceEmpty(t, c.self().Degraded)
	must.Eq(t, 1, c.policy.pointer().Sequence)
	must.Eq(t, 2, c.policy.current.Load().signed.Version)
	held, err := at(c).RegisterNode(t.Context(), api.NodeRequest{Underlay: netip.MustParseAddr("10.0.0.1")})
	must.NoError(t, err)
	must.Eq(t, 2, held.Node.Version)
}
