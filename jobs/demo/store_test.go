// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func reopen(t testing.TB, path string) *store {
	t.Helper()
	s, err := openStore(path)
	must.NoError(t, err)
	t.Cleanup(func() { s.close() })
	return s
}

func TestStoreComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	s := reopen(t, path)
	for i := range 3 {
		position, err := s.add("votes", json.RawMessage(`{"n":1}`))
		must.NoError(t, err)
		must.Eq(t, i, position)
	}
	version, err := s.put("tally", json.RawMessage(`1`), 0)
	must.NoError(t, err)
	must.Eq(t, 1, version)
	_, err = s.put("tally", json.RawMessage(`2`), 0)
	must.ErrorIs(t, err, errConflict)
	version, err = s.put("tally", json.RawMessage(`2`), 1)
	must.NoError(t, err)
	must.Eq(t, 2, version)
	must.NoError(t, s.close())

	// A crash during a write leaves an incomplete line.
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	must.NoError(t, err)
	_, err = io.WriteString(f, `{"queue":"votes","val`)
	must.NoError(t, err)
	must.NoError(t, f.Close())

	again := reopen(t, path)
	must.Eq(t, s.id, again.id)
	must.Eq(t, s.held, again.held)
	entries, next := again.slice("votes", 1, 10)
	must.Len(t, 2, entries)
	must.Eq(t, 3, next)
	v, err := again.get("tally")
	must.NoError(t, err)
	must.Eq(t, versioned{Value: json.RawMessage(`2`), Version: 2}, v)
	_, err = again.add("votes", json.RawMessage(`4`))
	must.NoError(t, err)
	must.NoError(t, again.close())
	must.Eq(t, again.held, reopen(t, path).held)
}

func TestStoreRefusesDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	must.NoError(t, os.WriteFile(path, []byte("{\"id\":\"x\"}\nnonsense\n"), 0o600))
	_, err := openStore(path)
	must.ErrorContains(t, err, "line 2")
	kept, err := os.ReadFile(path)
	must.NoError(t, err)
	must.StrContains(t, string(kept), "nonsense")
}

func TestStoreBounds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	s := reopen(t, path)
	_, err := s.add("q", json.RawMessage(strings.Repeat("1", maxValue+1)))
	must.ErrorIs(t, err, errTooLarge)

	// The file does not grow forever when a value is set repeatedly.
	big := json.RawMessage(strings.Repeat("1", maxValue))
	for version := range uint64(40) {
		_, err := s.put("k", big, version)
		must.NoError(t, err)
	}
	info, err := os.Stat(path)
	must.NoError(t, err)
	must.Less(t, fileSlack+4*maxValue, info.Size())
	must.Eq(t, info.Size(), s.fileSize)

	memory := reopen(t, "")
	for err = nil; err == nil; {
		_, err = memory.add("q", big)
	}
	must.ErrorIs(t, err, errFull)
	must.LessEq(t, maxStored, memory.held)
}

func TestSliceFitsAMessage(t *testing.T) {
	s := reopen(t, "")
	for range 40 {
		_, err := s.add("q", json.RawMessage(strings.Repeat("1", maxValue)))
		must.NoError(t, err)
	}
	seen := 0
	for from := 0; ; {
		entries, next := s.slice("q", from, 1000)
		if len(entries) == 0 {
			break
		}
		must.LessEq(t, maxBody*3/4, len(entries)*maxValue)
		seen, from = seen+len(entries), next
	}
	must.Eq(t, 40, seen)
	entries, next := s.slice("q", 99, 10)
	must.Len(t, 0, entries)
	must.Eq(t, 99, next)
}

func TestDatabaseOverHTTP(t *testing.T) {
	r, _ := findRole("result-db")
	s, err := parseSettings(r, nil, func(string) string { return "" }, io.Discard)
	must.NoError(t, err)
	svc, err := newDatabase(s, nil)
	must.NoError(t, err)

	cases := []struct {
		name, method, path, match, body string
		status                          int
	}{
		{"no key", http.MethodGet, "/kv/a", "", "", http.StatusNotFound},
		{"put without version", http.MethodPut, "/kv/a", "", "1", http.StatusBadRequest},
		{"put", http.MethodPut, "/kv/a", "0", "1", http.StatusOK},
		{"put of an old version", http.MethodPut, "/kv/a", "0", "2", http.StatusPreconditionFailed},
		{"put what is no JSON", http.MethodPut, "/kv/a", "1", "{", http.StatusBadRequest},
		{"put too much", http.MethodPut, "/kv/a", "1", strings.Repeat("1", maxValue+1), http.StatusRequestEntityTooLarge},
		{"get", http.MethodGet, "/kv/a", "", "", http.StatusOK},
		{"long name", http.MethodPut, "/kv/" + strings.Repeat("a", 200), "0", "1", http.StatusBadRequest},
		{"append", http.MethodPost, "/queues/q", "", `{"a":1}`, http.StatusCreated},
		{"append nothing", http.MethodPost, "/queues/q", "", "", http.StatusBadRequest},
		{"read", http.MethodGet, "/queues/q?from=0&limit=1", "", "", http.StatusOK},
		{"read from before the start", http.MethodGet, "/queues/q?from=-1", "", "", http.StatusBadRequest},
		{"read with a word", http.MethodGet, "/queues/q?limit=all", "", "", http.StatusBadRequest},
		{"other method", http.MethodDelete, "/kv/a", "", "", http.StatusMethodNotAllowed},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			req := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
			if c.match != "" {
				req.Header.Set("If-Match", c.match)
			}
			rec := httptest.NewRecorder()
			svc.handler.ServeHTTP(rec, req)
			must.Eq(t, c.status, rec.Code, must.Sprint(rec.Body.String()))
		})
	}
}

// For any content of the file, openStore either fails or returns a store that is the same after it
// is reopened.
func FuzzStoreFile(f *testing.F) {
	f.Add("{\"id\":\"x\"}\n{\"queue\":\"q\",\"value\":1}\n{\"key\":\"k\",\"version\":3,\"value\":\"v\"}\n{\"que")
	f.Add("{}\n")
	f.Add("{\"key\":\"k\"}\n")
	f.Fuzz(func(t *testing.T, content string) {
		path := filepath.Join(t.TempDir(), "data")
		must.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		s, err := openStore(path)
		if err != nil {
			return
		}
		must.NoError(t, s.close())
		again, err := openStore(path)
		must.NoError(t, err)
		must.NoError(t, again.close())
		must.Eq(t, s.id, again.id)
		must.Eq(t, len(s.values), len(again.values))
		must.Eq(t, len(s.queues), len(again.queues))
	})
}
