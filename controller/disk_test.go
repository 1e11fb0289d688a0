// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/testhost"
)

// health asks a controller for its health, and returns the status too.
func (w *world) health(t *testing.T, r *running) (int, api.ControllerStatus) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.cfg.Identity.Roots()}, DisableKeepAlives: true}}
	resp, err := client.Get("https://" + r.address + "/v1/health")
	must.NoError(t, err)
	defer resp.Body.Close()
	var s api.ControllerStatus
	must.NoError(t, json.NewDecoder(resp.Body).Decode(&s))
	return resp.StatusCode, s
}

// padAudit fills the last page of the audit log, in which there is room also on a full disk.
func padAudit(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, auditFile), os.O_APPEND|os.O_WRONLY, 0)
	must.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	must.NoError(t, err)
	page := int64(os.Getpagesize())
	entry := fmt.Sprintf(`{"message":%q}`+"\n", "")
	_, err = f.WriteString(fmt.Sprintf(`{"message":%q}`+"\n", strings.Repeat("x", int(2*page-info.Size()%page)-len(entry))))
	must.NoError(t, err)
}

// With a full disk, what is refused has not happened, rights can be taken away, and everybody who
// asks is told. A leader whose disk is full goes on only if nobody else can lead.
func TestFullDisk(t *testing.T) {
	w := newWorld(t)
	scheduler := &fakeScheduler{placed: map[string]Placement{
		allocation(1): placed("app", "g"), allocation(2): placed("app", "g"),
	}}
	ctx := t.Context()
	disk := testhost.NewDisk(t, 4)
	w.reset(t)
	c := w.start(t, filepath.Join(disk.Dir, "data"), scheduler, false)
	w1 := w.node(t, c, "w1")
	w1.register(t, "10.0.0.1")
	_, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app"))})
	must.NoError(t, err)
	_, err = w1.Admit(ctx, request4(1, 10))
	must.NoError(t, err)
	admissions := func() []string {
		keys, _, err := w.consul.KV().Keys("sif/v1/admission/", "", nil)
		must.NoError(t, err)
		return keys
	}
	before := admissions()
	must.Len(t, 1, before)

	padAudit(t, c.dir)
	disk.Fill()
	_, err = w1.Admit(ctx, request4(2, 20))
	must.StrContains(t, code(t, api.CodeUnavailable, err).Message, "nothing was changed, because it cannot be recorded")
	must.Eq(t, before, admissions(), must.Sprint("an admission that was answered as failed has happened"))
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(ported("app", 81))})
	code(t, api.CodeUnavailable, err)
	_, err = w1.RegisterNode(ctx, api.NodeRequest{})
	must.Error(t, err)
	graph, err := c.operator.Graph(ctx)
	must.NoError(t, err)
	must.Eq(t, 1, graph.Pointer.Sequence)
	status, self := w.health(t, c)
	must.Eq(t, http.StatusServiceUnavailable, status)
	must.SliceContains(t, self.Degraded, "the data directory cannot be written, so that nothing can be changed")
	told, err := c.operator.Status(ctx)
	must.NoError(t, err)
	must.True(t, slices.ContainsFunc(told.Controller.Degraded, func(s string) bool { return strings.Contains(s, "no space left on device") }))
	must.NoError(t, w1.Release(ctx, allocation(1)), must.Sprint("a release must not need room"))
	eventually(t, func() error {
		if list := admissions(); len(list) > 0 && list[0] == before[0] {
			pair, _, err := w.consul.KV().Get(before[0], nil)
			if err == nil && pair != nil && !strings.Contains(string(pair.Value), "released") {
				return fmt.Errorf("the admission was not released: %s", pair.Value)
			}
		}
		return nil
	})
	must.True(t, c.leads(), must.Sprint("nobody else can lead"))

	// With room all is well again, and nothing of the refused admission stands in its way.
	disk.Free()
	eventually(t, func() error {
		if status, _ := w.health(t, c); status != http.StatusOK {
			return fmt.Errorf("health answers %d", status)
		}
		return nil
	})
	_, err = w1.Admit(ctx, request4(2, 20))
	must.NoError(t, err)
	lines, err := os.ReadFile(filepath.Join(c.dir, auditFile))
	must.NoError(t, err)
	must.StrContains(t, string(lines), `"begun":true`)

	// A revision that cannot be stored is in force, and stored later.
	c.policy.mu.Lock()
	c.policy.memory.dir = filepath.Join(c.dir, auditFile) // a file, so nothing can be stored in it
	c.policy.mu.Unlock()
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(ported("app", 82))})
	must.NoError(t, err)
	must.True(t, slices.ContainsFunc(c.policy.degraded(), func(s string) bool { return strings.Contains(s, "store the revision in") }))
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(ported("app", 83))})
	must.NoError(t, err)
	c.policy.mu.Lock()
	c.policy.memory.dir = filepath.Join(c.dir, "revision")
	c.policy.mu.Unlock()
	eventually(t, func() error {
		if list := c.policy.degraded(); len(list) > 0 {
			return errors.New(list[0])
		}
		return nil
	})
	stored, err := c.policy.memory.recall(testFabric, w1.source.Keys())
	must.NoError(t, err)
	must.Eq(t, 3, stored.pointer.Sequence)

	// Another controller has room.
	other := w.start(t, t.TempDir(), scheduler, true)
	disk.Fill()
	eventually(t, func() error {
		if !other.leads() || c.leads() {
			return errors.New("the controller with room does not lead")
		}
		return nil
	})
	_, err = other.operator.Apply(ctx, api.GraphRequest{Domains: domains(ported("app", 84))})
	must.NoError(t, err)
	status, _ = w.health(t, c)
	must.Eq(t, http.StatusServiceUnavailable, status)
	disk.Free()
	eventually(t, func() error {
		if status, self := w.health(t, c); len(self.Degraded) > 0 {
			return fmt.Errorf("health answers %d: %v", status, self.Degraded)
		}
		return nil
	})
	other.stop()
	eventually(t, func() error {
		_, err := c.operator.Health(ctx)
		return err
	})
	graph, err = c.operator.Graph(ctx)
	must.NoError(t, err)
	must.Eq(t, 4, graph.Pointer.Sequence)
}
