// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/api"
)

func auditIn(t *testing.T, dir string, rotation Rotation) *audit {
	t.Helper()
	a, err := openAudit(dir, rotation, hclog.NewNullLogger())
	must.NoError(t, err)
	t.Cleanup(func() { a.Close() })
	return a
}

// auditFiles lists the files of the log, oldest first.
func auditFiles(t *testing.T, dir string) []string {
	t.Helper()
	old, err := filepath.Glob(filepath.Join(dir, "audit-*.log"))
	must.NoError(t, err)
	slices.Sort(old)
	return append(old, filepath.Join(dir, auditFile))
}

func auditLines(t *testing.T, files ...string) (entries []auditEntry) {
	t.Helper()
	for _, f := range files {
		data, err := os.ReadFile(f)
		must.NoError(t, err)
		for line := range strings.Lines(string(data)) {
			var e auditEntry
			must.NoError(t, json.Unmarshal([]byte(line), &e), must.Sprint(line))
			if !e.Begun && e.Action != actionLead { // see TestFullDisk and TestAuditSurvives
				entries = append(entries, e)
			}
		}
	}
	return entries
}

// After any number of writes and restarts, the files contain the newest entries, complete and in
// order. No file is too large, and there are not too many.
func TestAuditRotation(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		must.NoError(t, err)
		r := Rotation{
			Bytes:    int64(rapid.SampledFrom([]int{0, 1, 150, 400, 2000}).Draw(rt, "bytes")),
			MaxFiles: rapid.IntRange(0, 4).Draw(rt, "files"),
		}
		a := auditIn(t, dir, r)
		written := 0
		for range rapid.IntRange(0, 40).Draw(rt, "entries") {
			if rapid.IntRange(0, 9).Draw(rt, "restart") == 0 {
				must.NoError(t, a.Close())
				a = auditIn(t, dir, r)
			}
			must.NoError(t, a.write(auditEntry{Target: fmt.Sprint(written), Message: strings.Repeat("x", rapid.IntRange(0, 300).Draw(rt, "size"))}))
			written++
		}
		files := auditFiles(t, dir)
		lines := auditLines(t, files...)
		for i, e := range lines {
			must.Eq(t, fmt.Sprint(written-len(lines)+i), e.Target)
		}
		if r.MaxFiles == 0 || r.Bytes == 0 {
			must.Len(t, written, lines)
		} else {
			must.LessEq(t, r.MaxFiles+1, len(files))
		}
		for _, f := range files {
			info, err := os.Stat(f)
			must.NoError(t, err)
			must.Eq(t, 0o600, info.Mode())
			must.True(t, r.Bytes == 0 || info.Size() <= r.Bytes || len(auditLines(t, f)) == 1, must.Sprint(f, info.Size()))
		}
	})
}

func TestAuditReopen(t *testing.T) {
	dir := t.TempDir()
	a := auditIn(t, dir, Rotation{})
	path, moved := filepath.Join(dir, auditFile), filepath.Join(dir, "audit.log.1")
	must.NoError(t, a.write(auditEntry{Target: "1"}))
	must.NoError(t, os.Rename(path, moved))
	must.NoError(t, a.write(auditEntry{Target: "2"})) // the file was moved away, but reopen was not called yet
	must.NoError(t, a.reopen())
	must.NoError(t, a.write(auditEntry{Target: "3"}))
	must.Len(t, 2, auditLines(t, moved))
	must.Eq(t, "3", auditLines(t, path)[0].Target)

	// If the new file cannot be opened, the old one stays in use.
	must.NoError(t, os.Remove(path))
	must.NoError(t, os.Mkdir(path, 0o700))
	must.ErrorContains(t, a.reopen(), "open the audit log")
	must.NoError(t, a.write(auditEntry{Target: "4"}))
}

// An incomplete line does not spoil the entries after it.
func TestAuditTornLine(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, auditFile)
	must.NoError(t, os.WriteFile(path, []byte("{\"time\":"), 0o600))
	a := auditIn(t, dir, Rotation{})
	must.NoError(t, a.write(auditEntry{Target: "1"}))
	must.NoError(t, a.write(auditEntry{Target: "2"}))
	data, err := os.ReadFile(path)
	must.NoError(t, err)
	lines := strings.Split(string(data), "\n")
	must.Len(t, 4, lines)
	must.StrContains(t, lines[2], `"target":"2"`)
}

// Every change is recorded, accepted or refused, from any caller. A call that changes nothing is
// recorded only if the caller may not make it.
func testRecorded(t *testing.T, w *world) {
	c, ctx := w.fresh(t, nil), t.Context()
	reader := w.clientOf(t, at(c, tokenKinds["vault token"](t, w, []string{"sif-read-app"})))
	stranger := w.client(t, c.address, "")
	node := w.node(t, c, "w1")
	change := api.GraphRequest{Domains: domains(testDomain("app")), Message: "why"}
	bad := testDomain("bad")
	bad.Contracts[0].Originators[0].Name = "nobody"
	body := func(method, path, body, token string) error {
		req, err := http.NewRequestWithContext(ctx, method, "https://"+c.address+path, strings.NewReader(body))
		must.NoError(t, err)
		req.Header.Set(api.TokenHeader, token)
		resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.cfg.Identity.Roots()}, DisableKeepAlives: true}}).Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	seen := 0
	for _, tt := range []struct {
		name string
		call func() error
		want []string // actor's beginning, action, target, message, code of one entry; nil: none
	}{
		{"applied", func() error { _, err := c.operator.Apply(ctx, change); return err }, []string{"token ", "graph.apply", "app", "why", ""}},
		{"refused for what it says", func() error { _, err := c.operator.Apply(ctx, api.GraphRequest{Domains: domains(bad)}); return err },
			[]string{"token ", "graph.apply", "bad", "", api.CodeProblems}},
		{"refused for who asks", func() error { _, err := reader.Apply(ctx, change); return err }, []string{"vault token ", "graph.apply", "app", "why", api.CodeForbidden}},
		{"refused unread", func() error { _, err := stranger.Apply(ctx, change); return err }, []string{unknownActor, "graph.apply", "", "", api.CodeForbidden}},
		{"removal by nobody", func() error { _, err := stranger.DeleteDomain(ctx, "app"); return err }, []string{unknownActor, "graph.delete", "", "", api.CodeForbidden}},
		{"rollback by nobody", func() error {
			_, err := stranger.Rollback(ctx, api.RollbackRequest{Revision: 1, DryRun: true})
			return err
		},
			[]string{unknownActor, "graph.rollback", "", "", api.CodeForbidden}},
		{"not understood", func() error { return body("PUT", "/v1/graph", "{", w.tokens.Operator) }, []string{"token ", "graph.apply", "", "", api.CodeInvalid}},
		{"a node that is none", func() error { return body("PUT", "/v1/node", "{}", w.tokens.Operator) }, []string{unknownActor, "node.register", "", "", api.CodeForbidden}},
		{"a node", func() error {
			_, err := node.RegisterNode(ctx, api.NodeRequest{Underlay: netip.MustParseAddr("192.0.2.1")})
			return err
		}, []string{"aws1/w1", "node.register", "aws1/w1", "workload", ""}},
		{"planned", func() error { _, err := c.operator.Plan(ctx, change); return err }, nil},
		{"planned wrongly", func() error { _, err := c.operator.Plan(ctx, api.GraphRequest{}); return err }, nil},
		{"not to be planned", func() error { _, err := reader.Plan(ctx, change); return err }, []string{"vault token ", "graph.plan", "app", "why", api.CodeForbidden}},
		{"a rollback planned", func() error {
			_, err := c.operator.Rollback(ctx, api.RollbackRequest{Revision: 1, DryRun: true})
			return err
		}, nil},
		{"rolled back", func() error {
			_, err := c.operator.Rollback(ctx, api.RollbackRequest{Revision: 1, Message: "oops"})
			return err
		}, []string{"token ", "graph.rollback", "revision 1", "oops", ""}},
		{"read", func() error { _, err := c.operator.Status(ctx); return err }, nil},
		{"not to be read", func() error { _, err := stranger.Status(ctx); return err }, nil},
	} {
		_ = tt.call() // the log shows whether it was refused
		lines := auditLines(t, filepath.Join(c.dir, auditFile))
		fresh := lines[seen:]
		seen = len(lines)
		if tt.want == nil {
			must.SliceEmpty(t, fresh, must.Sprint(tt.name))
			continue
		}
		must.Len(t, 1, fresh, must.Sprint(tt.name))
		e := fresh[0]
		must.StrHasPrefix(t, tt.want[0], e.Actor, must.Sprint(tt.name))
		must.Eq(t, tt.want[1:], []string{e.Action, e.Target, e.Message, e.Code}, must.Sprint(tt.name))
		must.Eq(t, e.Code != "", e.Refused != "", must.Sprint(tt.name))
		must.StrHasPrefix(t, "127.0.0.1:", e.Remote)
	}

	// A call that cannot be recorded fails, and has not happened.
	must.NoError(t, c.audit.Close())
	before, err := c.operator.Graph(ctx)
	must.NoError(t, err)
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(ported("app", 81))})
	must.StrContains(t, code(t, api.CodeUnavailable, err).Message, "nothing was changed, because it cannot be recorded: write the audit log")
	after, err := c.operator.Graph(ctx)
	must.NoError(t, err)
	must.Eq(t, before.Pointer.Sequence, after.Pointer.Sequence)
	must.NoError(t, c.audit.reopen())
}

// A rotation that fails loses no entries, and only files of the log are deleted.
func TestAuditRotationInTrouble(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, auditFile)
	foreign := filepath.Join(dir, "audit-of-last-year.log")
	must.NoError(t, os.WriteFile(foreign, nil, 0o600))
	a := auditIn(t, dir, Rotation{Bytes: 1, MaxFiles: 1})
	must.NoError(t, a.write(auditEntry{Target: "1"}))

	// Somebody moved the file away.
	must.NoError(t, os.Rename(path, filepath.Join(dir, "moved")))
	must.NoError(t, a.write(auditEntry{Target: "2"}))
	must.Eq(t, "2", auditLines(t, path)[0].Target)

	// The clock is behind the newest file.
	future := a.rotatedPath(time.Now().Add(time.Hour))
	must.NoError(t, os.Rename(path, future))
	must.NoError(t, a.reopen())
	must.NoError(t, a.write(auditEntry{Target: "3"}))
	must.NoError(t, a.write(auditEntry{Target: "4"}))
	old, err := a.rotated()
	must.NoError(t, err)
	must.Len(t, 1, old)
	must.Eq(t, "3", auditLines(t, a.rotatedPath(old[0]))[0].Target)
	_, err = os.Stat(foreign)
	must.NoError(t, err)
}
