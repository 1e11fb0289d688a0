// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// app is a running application: each role is a server on loopback, and roles call each other by
// address instead of by name.
type app struct {
	t     *testing.T
	urls  map[string]string // role name: base URL
	stops map[string]func() // role name: stops it gracefully
}

func newApp(t *testing.T) *app {
	return &app{t: t, urls: make(map[string]string), stops: make(map[string]func())}
}

// start runs a role. For a service that the role calls and that does not run, it passes an address
// where nothing listens.
func (a *app) start(name string, options ...string) {
	a.t.Helper()
	r, ok := findRole(name)
	must.True(a.t, ok)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(a.t, err)

	args := append([]string{"-listen", ln.Addr().String()}, options...)
	for _, n := range r.needs {
		target, ok := a.urls[n.service]
		if !ok {
			target = nobody(a.t)
		}
		args = append(args, "-"+n.service, target)
	}
	environment := map[string]string{
		"NOMAD_ALLOC_ID": "0a1b2c3d-" + name,
		"NOMAD_DC":       "aws1",
		"SIF_DEMO_NODE":  "node-of-" + name,
	}
	s, err := parseSettings(r, args, func(k string) string { return environment[k] }, io.Discard)
	must.NoError(a.t, err)
	log := slog.New(slog.DiscardHandler)
	svc, err := r.build(s, log)
	must.NoError(a.t, err)

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, ln, svc, log) }()
	stop := func() {
		cancel()
		must.NoError(a.t, <-ended)
		delete(a.stops, name)
	}
	a.stops[name] = stop
	a.urls[name] = "http://" + ln.Addr().String()
	a.t.Cleanup(func() {
		if running, ok := a.stops[name]; ok {
			running()
		}
	})
}

// nobody returns the URL of a port where nothing listens.
func nobody(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	defer ln.Close()
	return "http://" + ln.Addr().String()
}

// page requests a page like a browser.
func (a *app) page(role, path string) (int, string) {
	a.t.Helper()
	return fetch(a.t, http.DefaultClient, http.MethodGet, a.urls[role]+path, nil, "text/html")
}

// query requests JSON like a program.
func query[T any](a *app, method, role, path string, form url.Values) (int, reply[T]) {
	a.t.Helper()
	status, body := fetch(a.t, http.DefaultClient, method, a.urls[role]+path, form, "application/json")
	var answer reply[T]
	must.NoError(a.t, json.Unmarshal([]byte(body), &answer), must.Sprint(body))
	return status, answer
}

func fetch(t *testing.T, client *http.Client, method, target string, form url.Values, accept string) (int, string) {
	t.Helper()
	var payload io.Reader
	if form != nil {
		payload = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(t.Context(), method, target, payload)
	must.NoError(t, err)
	req.Header.Set("Accept", accept)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := client.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return resp.StatusCode, string(body)
}

func TestGetaway(t *testing.T) {
	a := newApp(t)
	for _, name := range []string{"news-gw", "places-gw", "weather-gw", "getaway-svc", "http-proxy"} {
		a.start(name)
	}

	t.Run("the page shows all three answers and their nodes", func(t *testing.T) {
		status, page := a.page("http-proxy", "/")
		must.Eq(t, http.StatusOK, status)
		for _, want := range []string{
			"Getaway to Lisbon", "Tram 28", "Alfama", "Sunny",
			"node-of-news-gw", "node-of-places-gw", "node-of-weather-gw",
			"node-of-getaway-svc", "node-of-http-proxy", "allocation 0a1b2c3d",
		} {
			must.StrContains(t, page, want)
		}
		must.StrNotContains(t, page, "No answer.")
		must.StrNotContains(t, page, "ZgotmplZ") // html/template writes this for a value that it refuses
	})
	t.Run("every destination has all data", func(t *testing.T) {
		for _, d := range destinations {
			status, answer := query[getaway](a, http.MethodGet, "http-proxy", "/?place="+d.ID, nil)
			must.Eq(t, http.StatusOK, status)
			must.Eq(t, sampleNews[d.ID], *answer.Data.News.Data)
			must.Eq(t, samplePlaces[d.ID], *answer.Data.Places.Data)
			must.Eq(t, sampleWeather[d.ID], *answer.Data.Weather.Data)
			must.Eq(t, "aws1", answer.Data.News.From.Zone)
		}
	})
	t.Run("an unknown place is not found and not echoed as markup", func(t *testing.T) {
		status, page := a.page("http-proxy", "/?place=%3Cscript%3E")
		must.Eq(t, http.StatusNotFound, status)
		must.StrContains(t, page, "unknown place")
		must.StrNotContains(t, page, "<script>")
		status, _ = query[getaway](a, http.MethodGet, "getaway-svc", "/getaway?place=atlantis", nil)
		must.Eq(t, http.StatusNotFound, status)
		status, _ = query[[]news](a, http.MethodGet, "news-gw", "/news?place=atlantis", nil)
		must.Eq(t, http.StatusNotFound, status)
	})
	t.Run("a gateway that is gone is said to be, the others answer", func(t *testing.T) {
		a.stops["places-gw"]()
		status, page := a.page("http-proxy", "/?place=kyoto")
		must.Eq(t, http.StatusOK, status)
		must.StrContains(t, page, "No answer. places-gw:")
		must.StrContains(t, page, "refused the connection")
		must.StrContains(t, page, "Maple leaves")
		must.StrContains(t, page, "Haze")
	})
	t.Run("without getaway-svc the page says why", func(t *testing.T) {
		a.stops["getaway-svc"]()
		status, page := a.page("http-proxy", "/")
		must.Eq(t, http.StatusBadGateway, status)
		must.StrContains(t, page, "No answer. getaway-svc:")
		status, answer := query[getaway](a, http.MethodGet, "http-proxy", "/", nil)
		must.Eq(t, http.StatusBadGateway, status)
		must.StrContains(t, answer.Error, "refused the connection")
	})
}

func startVoting(t *testing.T, votingData ...string) *app {
	a := newApp(t)
	a.start("voting-db", votingData...)
	for _, name := range []string{"result-db", "worker", "voting-svc", "result-svc", "voting-http-proxy"} {
		a.start(name)
	}
	return a
}

// awaitResult waits until the result has a number of voters for an option.
func (a *app) awaitResult(choice string, voters int) result {
	a.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		status, answer := query[result](a, http.MethodGet, "voting-http-proxy", "/result", nil)
		must.Eq(a.t, http.StatusOK, status)
		for _, o := range answer.Data.Options {
			if o.ID == choice && o.Voters == voters {
				return *answer.Data
			}
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("no result of %d voters for %s: %+v", voters, choice, answer.Data)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (a *app) vote(voter, choice string) {
	a.t.Helper()
	status, answer := query[receipt](a, http.MethodPost, "voting-http-proxy", "/vote",
		url.Values{"voter": {voter}, "choice": {choice}})
	must.Eq(a.t, http.StatusCreated, status, must.Sprint(answer.Error))
	must.Eq(a.t, "node-of-voting-db", answer.Data.Database.Node)
}

// TestProviders shows that gateways pass on their providers' data, and at which address these saw
// them.
func TestProviders(t *testing.T) {
	a := newApp(t)
	a.start("provider")
	a.start("news-gw", "-provider", a.urls["provider"])
	a.start("places-gw", "-provider", a.urls["provider"])
	a.start("weather-gw", "-provider", nobody(t))
	a.start("getaway-svc")
	a.start("http-proxy")

	status, answer := query[getaway](a, http.MethodGet, "http-proxy", "/?place=kyoto", nil)
	must.Eq(t, http.StatusOK, status)
	must.Eq(t, sampleNews["kyoto"], *answer.Data.News.Data)
	must.Eq(t, &origin{"127.0.0.1", "127.0.0.1"}, answer.Data.News.Origin)
	must.Eq(t, samplePlaces["kyoto"], *answer.Data.Places.Data)
	must.Nil(t, answer.Data.Weather.Data)
	must.StrContains(t, answer.Data.Weather.Error, "refused the connection")

	status, page := a.page("http-proxy", "/?place=kyoto")
	must.Eq(t, http.StatusOK, status)
	must.StrContains(t, page, "data of <strong>127.0.0.1</strong>, which saw <strong>127.0.0.1</strong>")

	status, none := query[[]news](a, http.MethodGet, "news-gw", "/news?place=nowhere", nil)
	must.Eq(t, http.StatusNotFound, status)
	must.StrContains(t, none.Error, "unknown place")
}

func TestVoting(t *testing.T) {
	a := startVoting(t)
	status, page := a.page("voting-http-proxy", "/result")
	must.Eq(t, http.StatusOK, status)
	must.StrContains(t, page, "Voters: 0, votes cast: 0")

	a.vote("ann", "sea")
	a.vote("ben", "sea")
	a.vote("cem", "mountains")
	res := a.awaitResult("sea", 2)
	must.Eq(t, 3, res.Voters)
	must.Eq(t, 67, res.Options[1].Percent)
	must.Eq(t, "node-of-result-db", res.Database.Node)

	a.vote("cem", "sea") // changes the vote
	res = a.awaitResult("sea", 3)
	must.Eq(t, 3, res.Voters)
	must.Eq(t, 4, res.Votes)
	must.Eq(t, 100, res.Options[1].Percent)

	status, page = a.page("voting-http-proxy", "/result")
	must.Eq(t, http.StatusOK, status)
	must.StrContains(t, page, "Voters: 3, votes cast: 4")
	must.StrContains(t, page, "node-of-result-svc")
	must.StrNotContains(t, page, "ZgotmplZ")

	// When result-db has lost its data, the worker counts again.
	resultDB := a.urls["result-db"]
	a.stops["result-db"]()
	a.restartAt("result-db", resultDB)
	a.awaitResult("sea", 3)
}

// restartAt restarts a role at its previous address.
func (a *app) restartAt(name, base string, options ...string) {
	a.t.Helper()
	r, _ := findRole(name)
	address := strings.TrimPrefix(base, "http://")
	s, err := parseSettings(r, append([]string{"-listen", address}, options...), func(string) string { return "" }, io.Discard)
	must.NoError(a.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- runRole(ctx, r, s, slog.New(slog.DiscardHandler)) }()
	a.t.Cleanup(func() {
		cancel()
		must.NoError(a.t, <-ended)
	})
	a.awaitHealth(name)
}

func (a *app) awaitHealth(name string) {
	a.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get(a.urls[name] + "/health")
		if err == nil {
			resp.Body.Close()
			must.Eq(a.t, http.StatusOK, resp.StatusCode)
			return
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("%s does not come back: %v", name, err)
		}
	}
}

func TestVotingFromABrowser(t *testing.T) {
	a := startVoting(t)
	jar, err := cookiejar.New(nil)
	must.NoError(t, err)
	browser := &http.Client{Jar: jar}

	status, page := fetch(t, browser, http.MethodGet, a.urls["voting-http-proxy"]+"/", nil, "text/html")
	must.Eq(t, http.StatusOK, status)
	must.StrContains(t, page, `value="mountains"`)
	must.StrContains(t, page, "node-of-voting-svc")

	for _, choice := range []string{"mountains", "city"} {
		status, page = fetch(t, browser, http.MethodPost, a.urls["voting-http-proxy"]+"/vote", url.Values{"choice": {choice}}, "text/html")
		must.Eq(t, http.StatusOK, status)
		must.StrContains(t, page, "was taken")
	}
	must.Eq(t, 1, a.awaitResult("city", 1).Voters) // the cookie identifies the voter

	status, page = fetch(t, browser, http.MethodPost, a.urls["voting-http-proxy"]+"/vote", url.Values{"choice": {"<b>moon"}}, "text/html")
	must.Eq(t, http.StatusBadRequest, status)
	must.StrContains(t, page, "unknown option")
	must.StrNotContains(t, page, "<b>moon")
	status, _ = fetch(t, browser, http.MethodPost, a.urls["voting-http-proxy"]+"/vote", url.Values{}, "text/html")
	must.Eq(t, http.StatusBadRequest, status)
}

func TestVotesOutliveTheirDatabase(t *testing.T) {
	data := t.TempDir() + "/votes.jsonl"
	a := startVoting(t, "-data", data)
	a.vote("ann", "sea")
	a.awaitResult("sea", 1)

	votingDB := a.urls["voting-db"]
	a.stops["voting-db"]()
	status, answer := query[receipt](a, http.MethodPost, "voting-http-proxy", "/vote", url.Values{"voter": {"ben"}, "choice": {"sea"}})
	must.Eq(t, http.StatusBadGateway, status)
	must.StrContains(t, answer.Error, "the vote was not taken: voting-db:")

	a.restartAt("voting-db", votingDB, "-data", data)
	status, answer = query[receipt](a, http.MethodPost, "voting-http-proxy", "/vote", url.Values{"voter": {"ben"}, "choice": {"sea"}})
	must.Eq(t, http.StatusCreated, status, must.Sprint(answer.Error))
	must.Eq(t, 2, a.awaitResult("sea", 2).Votes)
}

func TestVotesLostAreCountedAnew(t *testing.T) {
	a := startVoting(t)
	a.vote("ann", "sea")
	a.vote("ben", "sea")
	a.awaitResult("sea", 2)
	votingDB := a.urls["voting-db"]
	a.stops["voting-db"]()
	a.restartAt("voting-db", votingDB) // in memory: empty now
	status, _ := query[receipt](a, http.MethodPost, "voting-http-proxy", "/vote", url.Values{"voter": {"cem"}, "choice": {"city"}})
	must.Eq(t, http.StatusCreated, status)
	must.Eq(t, 1, a.awaitResult("city", 1).Voters)
}

func TestEveryRoleIsHealthyAlone(t *testing.T) {
	for _, r := range roles {
		a := newApp(t)
		a.start(r.name)
		status, answer := query[map[string]any](a, http.MethodGet, r.name, "/health", nil)
		must.Eq(t, http.StatusOK, status)
		must.Eq(t, r.service, answer.Instance.Service)
		must.Eq(t, "ok", (*answer.Data)["status"].(string))
	}
}
