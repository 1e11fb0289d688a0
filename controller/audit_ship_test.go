// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// The log has the fields that the API has.
func TestAuditRecordsAreEntries(t *testing.T) {
	names := func(v any) map[string]bool {
		m := map[string]bool{}
		for f := range reflect.TypeOf(v).Fields() {
			if tag := f.Tag.Get("json"); tag != "" {
				m[tag] = true
			}
		}
		return m
	}
	want := names(api.AuditRecord{})
	delete(want, "controller,omitempty")
	delete(want, "address,omitempty")
	must.Eq(t, want, names(auditEntry{}))
}

// chainOf verifies the lines of files.
func chainOf(t *testing.T, files ...string) (last api.AuditHead, wrong []string) {
	t.Helper()
	var chain api.AuditChain
	for _, f := range files {
		data, err := os.ReadFile(f)
		must.NoError(t, err)
		for line := range strings.Lines(string(data)) {
			if err := chain.Take(strings.TrimSuffix(line, "\n")); err != nil {
				wrong = append(wrong, err.Error())
			}
		}
	}
	return chain.Last, wrong
}

// The chain goes on over rotations and restarts, whoever rotates.
func TestAuditChain(t *testing.T) {
	dir := t.TempDir()
	a := auditIn(t, dir, Rotation{Bytes: 400})
	n := 0
	write := func() {
		t.Helper()
		n++
		must.NoError(t, a.write(auditEntry{Target: fmt.Sprint(n)}))
	}
	for range 10 {
		write()
	}
	must.NoError(t, a.Close())
	a = auditIn(t, dir, Rotation{})
	write()
	moved := filepath.Join(dir, "moved")
	must.NoError(t, os.Rename(filepath.Join(dir, auditFile), moved))
	must.NoError(t, a.reopen())
	must.NoError(t, a.Close())
	a = auditIn(t, dir, Rotation{}) // the only file is empty
	write()
	files := auditFiles(t, dir)
	last, wrong := chainOf(t, append(files[:len(files)-1], moved, files[len(files)-1])...)
	must.SliceEmpty(t, wrong)
	must.Eq(t, uint64(n), last.Number)

	// What is taken out, changed or put in is seen.
	text, err := os.ReadFile(files[0])
	must.NoError(t, err)
	lines := bytes.SplitAfter(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	must.Greater(t, 1, len(lines))
	for name, altered := range map[string][]byte{
		"missing": bytes.Join(lines[:len(lines)-1], nil),
		"changed": bytes.Replace(text, []byte(`"target":"1"`), []byte(`"target":"7"`), 1),
		"twice":   append(append([]byte{}, lines[0]...), text...),
	} {
		must.NoError(t, os.WriteFile(files[0], altered, 0o600))
		_, wrong := chainOf(t, append(files[:len(files)-1], moved, files[len(files)-1])...)
		must.SliceNotEmpty(t, wrong, must.Sprint(name))
	}
}

// TestAuditSurvives takes the log of a controller from Consul when the controller is gone, with its
// disk or without it.
func TestAuditSurvives(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	first := w.fresh(t, nil)
	_, err := first.operator.Apply(ctx, api.GraphRequest{Domains: domains(testDomain("app")), Message: "why not"})
	must.NoError(t, err)
	reader := func(c *running, policy string) *api.Client {
		return w.clientOf(t, api.Config{Address: c.address, VaultToken: w.vaultToken(t, &vaultapi.TokenCreateRequest{Policies: []string{policy}})})
	}
	_, err = reader(first, "sif-read").Apply(ctx, api.GraphRequest{Domains: domains(testDomain("b"))})
	code(t, api.CodeForbidden, err)
	first.stop()
	second := w.start(t, t.TempDir(), nil, false)
	records, err := second.operator.Audit(ctx, api.AuditFilter{Action: "graph.apply"})
	must.NoError(t, err)
	must.Len(t, 2, records)
	must.Eq(t, "why not", records[0].Message)
	must.Eq(t, first.address, records[0].Address)
	must.StrContains(t, records[1].Refused, "may not apply")
	led, err := second.operator.Audit(ctx, api.AuditFilter{Action: actionLead})
	must.NoError(t, err)
	must.Len(t, 2, led)
	refused, err := second.operator.Audit(ctx, api.AuditFilter{Refused: true, Begun: true})
	must.NoError(t, err)
	must.Len(t, 1, refused)
	_, err = reader(second, "sif-read-app").Audit(ctx, api.AuditFilter{})
	code(t, api.CodeForbidden, err)

	log := func(id string) api.AuditLog {
		t.Helper()
		logs, err := second.operator.AuditLogs(ctx)
		must.NoError(t, err)
		for _, l := range logs {
			if l.Controller == id {
				return l
			}
		}
		t.Fatalf("no log of %s: %v", id, logs)
		return api.AuditLog{}
	}
	l := log(first.peers.id)
	page, err := second.operator.AuditPage(ctx, l.Controller, 0)
	must.NoError(t, err)
	var chain api.AuditChain
	for _, line := range page.Records {
		must.NoError(t, chain.Take(line))
	}
	var signed api.AuditHead
	must.NoError(t, first.cfg.Identity.Keys().Verify(l.Signed, fabric.KindAudit, &signed))
	must.Eq(t, chain.Last.Hash, signed.Hash)
	must.LessEq(t, chain.Last.Number, l.Noted.Number)
	must.Positive(t, l.Noted.Number)

	// A controller that is killed has not copied its last records: it does so when it is back.
	second.stop()
	third := w.start(t, first.dir, nil, false)
	must.Eq(t, l.Controller, third.peers.id)
	third.stop()
	segment := kvkey.AuditSegment(l.Controller, 1)
	kv, _, err := w.consul.KV().Get(segment, nil)
	must.NoError(t, err)
	_, err = w.consul.KV().Put(&consulapi.KVPair{Key: segment, Value: mustPack(t, page.Records[:1])}, nil)
	must.NoError(t, err)
	second = w.start(t, first.dir, nil, false)
	eventually(t, func() error {
		now, _, err := w.consul.KV().Get(segment, nil)
		if err != nil {
			return err
		}
		have, err := unpackSegment(now.Value)
		if err != nil {
			return err
		}
		want, err := unpackSegment(kv.Value)
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(have, want) {
			return fmt.Errorf("the segment has %d bytes, not the %d that it had", len(have), len(want))
		}
		return nil
	})
	second.stop()

	// Without its disk, what was noted with the last change says that records are missing.
	note, _, err := w.consul.KV().Get(kvkey.AuditNote(l.Controller), nil)
	must.NoError(t, err)
	var noted api.AuditHead
	must.NoError(t, json.Unmarshal(note.Value, &noted))
	must.Greater(t, l.Noted.Number-1, noted.Number)
}

// signedBy is a Signer with the key of a test.
type signedBy struct{ ca *identitytest.CA }

func (s signedBy) Sign(_ context.Context, kind fabric.Kind, payload []byte) (fabric.Signed, error) {
	return s.ca.Sign(kind, json.RawMessage(payload)), nil
}

// The newest record is signed, also when it is the last one of a segment. A segment that is full is
// not extended, also not by a controller that starts; one that cannot be read is written again from
// the disk.
func TestAuditSegments(t *testing.T) {
	_, consul := testhost.Consul(t)
	a := auditIn(t, t.TempDir(), Rotation{})
	const id = "0123456789abcdef"
	ca := identitytest.NewCA(t)
	cfg := Config{Consul: func() *consulapi.Client { return consul }, Signer: signedBy{ca}, Identity: ca.Node("z", "c", fabric.KindWorkload), Log: hclog.NewNullLogger()}
	s := newShipper(cfg, id, a)
	write := func() {
		t.Helper()
		text := make([]byte, maxText/2)
		rand.Read(text)
		must.NoError(t, a.write(auditEntry{Message: hex.EncodeToString(text)}))
		must.NoError(t, s.ship(t.Context()))
		must.Eq(t, a.head().Number, s.signed)
	}
	segments := func() consulapi.KVPairs {
		t.Helper()
		list, _, err := consul.KV().List(kvkey.AuditLog(id), nil)
		must.NoError(t, err)
		return list
	}
	for write(); len(segments()[0].Value) < segmentBytes; {
		write()
	}
	must.Len(t, 1, segments())
	s = newShipper(cfg, id, a)
	write()
	must.Len(t, 2, segments())
	write()
	must.Len(t, 2, segments())

	_, err := consul.KV().Put(&consulapi.KVPair{Key: segments()[1].Key, Value: []byte("x")}, nil)
	must.NoError(t, err)
	s = newShipper(cfg, id, a)
	write()
	must.Len(t, 2, segments())
	var chain api.AuditChain
	for _, kv := range segments() {
		text, err := unpackSegment(kv.Value)
		must.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			must.NoError(t, chain.Take(strings.TrimSuffix(line, "\n")))
		}
	}
	must.Eq(t, a.head().Hash, chain.Last.Hash)
}

// What is signed says which record is the first one. The controller deletes old segments only after
// that was signed anew, and one that somebody else has deleted stays missing, also for a controller
// that starts afterwards.
func TestAuditBeginning(t *testing.T) {
	_, consul := testhost.Consul(t)
	a := auditIn(t, t.TempDir(), Rotation{})
	const id = "0123456789abcdef"
	ca := identitytest.NewCA(t)
	cfg := Config{Consul: func() *consulapi.Client { return consul }, Signer: signedBy{ca}, Identity: ca.Node("z", "c", fabric.KindWorkload), Log: hclog.NewNullLogger()}
	s := newShipper(cfg, id, a)
	s.most = 3
	segments := func() []uint64 {
		t.Helper()
		list, err := auditSegments(consul, id, nil)
		must.NoError(t, err)
		return list
	}
	first := func() uint64 {
		t.Helper()
		kv, _, err := consul.KV().Get(kvkey.AuditHead(id), nil)
		must.NoError(t, err)
		var signed fabric.Signed
		must.NoError(t, json.Unmarshal(kv.Value, &signed))
		var head api.AuditHead
		must.NoError(t, ca.Keys().Verify(signed, fabric.KindAudit, &head))
		return head.First
	}
	grow := func(until func() bool) {
		t.Helper()
		for !until() {
			text := make([]byte, maxText/2)
			rand.Read(text)
			must.NoError(t, a.write(auditEntry{Message: hex.EncodeToString(text)}))
			must.NoError(t, s.ship(t.Context()))
		}
	}
	grow(func() bool { return len(segments()) == 3 })
	must.Eq(t, segments()[0], first())
	old := segments()
	grow(func() bool { return segments()[0] != old[0] })
	must.Eq(t, old[1], first())
	must.Eq(t, old[1], segments()[0])
	must.Len(t, 3, segments())

	_, err := consul.KV().Delete(kvkey.AuditSegment(id, old[1]), nil)
	must.NoError(t, err)
	s = newShipper(cfg, id, a)
	s.most = 3
	must.NoError(t, a.write(auditEntry{Message: "x"}))
	must.NoError(t, s.ship(t.Context()))
	must.Eq(t, old[1], first())
	must.Greater(t, first(), segments()[0])
}

func mustPack(t *testing.T, lines []string) []byte {
	t.Helper()
	value, err := packSegment([]byte(strings.Join(lines, "\n") + "\n"))
	must.NoError(t, err)
	return value
}

// A file is read from its end, whatever the lengths of its lines, and without an incomplete last
// one.
func TestBackward(t *testing.T) {
	long := strings.Repeat("x", backwardChunk)
	for name, lines := range map[string][]string{
		"none": {}, "one": {"a"}, "empty ones": {"", "a", "", ""}, "a long one": {"a", long + long, "b"},
		"a chunk with its newline": {"a", long[1:], "b"}, "a chunk without its newline": {"a", long, "b"}, "only a long one": {long},
	} {
		for _, torn := range []string{"", "torn", long + "torn"} {
			file := filepath.Join(t.TempDir(), "file")
			text := torn
			if len(lines) > 0 {
				text = strings.Join(lines, "\n") + "\n" + torn
			}
			must.NoError(t, os.WriteFile(file, []byte(text), 0o600))
			found := []string{}
			must.NoError(t, backward(file, func(line []byte) bool {
				found = append(found, string(line))
				return true
			}))
			slices.Reverse(found)
			must.True(t, slices.Equal(lines, found), must.Sprintf("%s: %d lines, not %d", name, len(found), len(lines)))
		}
	}
}

// A log whose last lines are rests of records goes on after the record before them: a disk may have
// been full several times.
func TestAuditAfterRests(t *testing.T) {
	dir := t.TempDir()
	a := auditIn(t, dir, Rotation{})
	for range 3 {
		must.NoError(t, a.write(auditEntry{}))
	}
	last := a.head()
	must.NoError(t, a.Close())
	f, err := os.OpenFile(filepath.Join(dir, auditFile), os.O_APPEND|os.O_WRONLY, 0)
	must.NoError(t, err)
	_, err = f.WriteString("{\"n\":4,\"pr\n{\"n\":4\n")
	must.NoError(t, err)
	must.NoError(t, f.Close())
	a = auditIn(t, dir, Rotation{})
	must.Eq(t, last.Number, a.head().Number)
	must.Eq(t, last.Hash, a.head().Hash)
	must.NoError(t, a.reread(1))
	must.Len(t, 2, a.waiting)
}
