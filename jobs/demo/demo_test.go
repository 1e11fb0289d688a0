// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestSettings(t *testing.T) {
	svc, _ := findRole("getaway-svc")
	none := func(string) string { return "" }

	t.Run("names of the fabric unless told otherwise", func(t *testing.T) {
		s, err := parseSettings(svc, nil, none, io.Discard)
		must.NoError(t, err)
		must.Eq(t, ":8080", s.listen)
		must.Eq(t, "http://news-gw.getaway-app.sif:9001", s.needs["news-gw"].base.String())
		must.Eq(t, "http://weather-gw.getaway-app.sif:9003", s.needs["weather-gw"].base.String())
		db, _ := findRole("worker")
		s, err = parseSettings(db, nil, none, io.Discard)
		must.NoError(t, err)
		must.Eq(t, "http://result-db.voting-app.sif:7002", s.needs["result-db"].base.String())
	})
	t.Run("environment, and options before it", func(t *testing.T) {
		env := map[string]string{
			"SIF_DEMO_LISTEN": "127.0.0.1:1", "SIF_DEMO_URL_NEWS_GW": "http://a:1", "SIF_DEMO_URL_PLACES_GW": "http://b:2/",
			"NOMAD_ALLOC_ID": "12345678-abcd", "NOMAD_DC": "gcp1", "SIF_DEMO_NODE": "gcp1-w1", "SIF_DEMO_RUNTIME": "container",
		}
		s, err := parseSettings(svc, []string{"-news-gw", "http://c:3"}, func(k string) string { return env[k] }, io.Discard)
		must.NoError(t, err)
		must.Eq(t, "127.0.0.1:1", s.listen)
		must.Eq(t, "http://c:3", s.needs["news-gw"].base.String())
		must.Eq(t, "http://b:2", s.needs["places-gw"].base.String())
		must.Eq(t, instance{"getaway-svc", "gcp1-w1", "gcp1", "12345678-abcd", "container"}, s.self)
		must.Eq(t, "12345678", s.self.ShortAlloc())
	})

	bad := []struct{ name, option, value, want string }{
		{"address without port", "-listen", "8080", "missing port"},
		{"scheme", "-news-gw", "ftp://a:1", "scheme must be http or https"},
		{"no host", "-news-gw", "http://:1", "has no host"},
		{"path", "-news-gw", "http://a:1/x", "only scheme, host and port"},
		{"port", "-news-gw", "http://a:x", "invalid port"},
		{"unknown option", "-data", "x", "not defined"},
	}
	for _, c := range bad {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseSettings(svc, []string{c.option, c.value}, none, io.Discard)
			must.ErrorContains(t, err, c.want)
		})
	}
	_, err := parseSettings(svc, []string{"extra"}, none, io.Discard)
	must.ErrorContains(t, err, `unexpected argument "extra"`)
}

func TestRun(t *testing.T) {
	none := func(string) string { return "" }
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	defer busy.Close()

	cases := []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no role", nil, exitUsage, "Usage: sif-demo"},
		{"help", []string{"-h"}, exitOK, "voting-app/result-db on port 7002"},
		{"help of a role", []string{"voting-db", "-h"}, exitOK, "$SIF_DEMO_DATA"},
		{"unknown role", []string{"nginx"}, exitUsage, `unknown role "nginx"`},
		{"bad option", []string{"news-gw", "-listen", "x"}, exitUsage, "option -listen"},
		{"address in use", []string{"news-gw", "-listen", busy.Addr().String()}, exitFailure, "address already in use"},
		{"data that cannot be kept", []string{"voting-db", "-data", "/nonexistent/x"}, exitFailure, "/nonexistent/x"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			must.Eq(t, c.code, run(t.Context(), c.args, none, &out))
			must.StrContains(t, out.String(), c.want)
		})
	}
	t.Run("ends when told", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var out bytes.Buffer
		must.Eq(t, exitOK, run(ctx, []string{"worker", "-listen", "127.0.0.1:0"}, none, &out))
		must.StrContains(t, out.String(), "msg=stopped")
	})
}

func upstreamAt(t *testing.T, raw string, budget time.Duration) upstream {
	t.Helper()
	base, err := url.Parse(raw)
	must.NoError(t, err)
	return newUpstream("news-gw", base, budget)
}

func TestCallExplainsFailures(t *testing.T) {
	listen := func(handler http.HandlerFunc) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		must.NoError(t, err)
		server := &http.Server{Handler: handler}
		go server.Serve(ln)
		t.Cleanup(func() { server.Close() })
		return "http://" + ln.Addr().String()
	}
	text := func(status int, body string) string {
		return listen(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, body)
		})
	}
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })

	cases := []struct {
		name, url, want string
		status          int
	}{
		{"refused", nobody(t), "refused the connection", http.StatusBadGateway},
		{"silent", listen(func(http.ResponseWriter, *http.Request) { <-hang }), "no answer from 127.0.0.1", http.StatusGatewayTimeout},
		{"no JSON", text(200, "<html>"), "decode the answer of", http.StatusBadGateway},
		{"no data", text(200, "{}"), "has no data", http.StatusBadGateway},
		{"says no", text(404, `{"error":"unknown place"}`), "news-gw answered 404: unknown place", http.StatusNotFound},
		{"fails without words", text(500, ""), "news-gw answered 500 Internal Server Error", http.StatusBadGateway},
		{"full", text(507, `{"error":"full"}`), "full", http.StatusInsufficientStorage},
		{"redirects", listen(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://elsewhere/", http.StatusFound)
		}), "302", http.StatusBadGateway},
		{"too long", text(200, strings.Repeat(" ", maxBody+1)), "exceeds", http.StatusBadGateway},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := get[[]news](t.Context(), upstreamAt(t, c.url, 300*time.Millisecond), "/news", nil)
			must.ErrorContains(t, err, c.want)
			must.Eq(t, c.status, gatewayStatus(err))
		})
	}
	t.Run("name", func(t *testing.T) {
		u := upstreamAt(t, "http://news-gw.getaway-app.sif:9001", time.Second)
		gone := u.explain(&url.Error{Op: "Get", URL: "x", Err: &net.DNSError{Name: "x", IsNotFound: true}})
		must.ErrorContains(t, gone, "the name news-gw.getaway-app.sif does not exist here: no contract leads there")
		must.StrNotContains(t, gone.Error(), "Get")
		slow := u.explain(&net.DNSError{Name: "x", IsTimeout: true})
		must.ErrorContains(t, slow, "cannot resolve the name")
		cut := u.explain(errors.New("connection reset"))
		must.ErrorContains(t, cut, "connection reset")
	})
}

// Each request opens a connection of its own, so that a change shows at the next request.
func TestCallsShareNoConnection(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	peers := make(map[string]bool)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peers[r.RemoteAddr] = true
		io.WriteString(w, `{"data":[]}`)
	})}
	go server.Serve(ln)
	defer server.Close()
	u := upstreamAt(t, "http://"+ln.Addr().String(), time.Second)
	for range 3 {
		_, err := get[[]news](t.Context(), u, "/news", nil)
		must.NoError(t, err)
	}
	must.Eq(t, 3, len(peers))
}
