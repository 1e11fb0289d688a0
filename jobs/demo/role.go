// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"log/slog"
	"net/http"
	"time"
)

// The domains of the two service graphs.
const (
	getawayDomain = "getaway-app"
	votingDomain  = "voting-app"
)

// Time limits of a call, including name resolution and connecting. A caller's limit exceeds those
// of the calls that the callee makes, so that the service nearest to the fault reports it. Go gives
// each address of a name at least two seconds to connect, so a call without further calls has time
// to try a second instance.
const (
	providerBudget = 3 * time.Second
	leafBudget     = 4 * time.Second
	frontBudget    = 6 * time.Second
)

// role is one service of a demo application.
type role struct {
	name    string // the subcommand
	domain  string // the domain of its graph
	service string // its name in the graph
	port    int    // default port to listen on
	about   string
	needs   []need // the services that it calls
	data    bool   // whether it keeps data (option -data)
	gateway bool   // whether it can have a provider outside the fabric (option -provider)
	build   func(settings, *slog.Logger) (*service, error)
}

// need is a service of the same domain that a role calls.
type need struct {
	service string
	port    int
	budget  time.Duration // longest time that one call may take
}

// service is a role that is ready to be served.
type service struct {
	handler    http.Handler
	background func(context.Context) // runs while the service is served; may be nil
	closer     func() error          // called after the last request; may be nil
}

func (s *service) close() error {
	if s.closer == nil {
		return nil
	}
	return s.closer()
}

var roles = []role{
	{
		name: "http-proxy", domain: getawayDomain, service: "http-proxy", port: 8080,
		about: "the page of getaway",
		needs: []need{{"getaway-svc", 8080, frontBudget}},
		build: newGetawayProxy,
	},
	{
		name: "getaway-svc", domain: getawayDomain, service: "getaway-svc", port: 8080,
		about: "asks the three gateways about a destination",
		needs: []need{{"news-gw", 9001, leafBudget}, {"places-gw", 9002, leafBudget}, {"weather-gw", 9003, leafBudget}},
		build: newGetawayService,
	},
	{
		name: "news-gw", domain: getawayDomain, service: "news-gw", port: 9001,
		about: "news of a destination", gateway: true,
		build: newGateway("/news", sampleNews),
	},
	{
		name: "places-gw", domain: getawayDomain, service: "places-gw", port: 9002,
		about: "sights of a destination", gateway: true,
		build: newGateway("/places", samplePlaces),
	},
	{
		name: "weather-gw", domain: getawayDomain, service: "weather-gw", port: 9003,
		about: "forecast of a destination", gateway: true,
		build: newGateway("/weather", sampleWeather),
	},
	{
		name: "provider", domain: getawayDomain, service: "provider", port: 8080,
		about: "stands for the gateways' providers outside the fabric (sample data)",
		build: newProvider,
	},
	{
		name: "voting-http-proxy", domain: votingDomain, service: "http-proxy", port: 8080,
		about: "the pages /vote and /result of voting",
		needs: []need{{"voting-svc", 8080, frontBudget}, {"result-svc", 8080, frontBudget}},
		build: newVotingProxy,
	},
	{
		name: "voting-svc", domain: votingDomain, service: "voting-svc", port: 8080,
		about: "takes votes",
		needs: []need{{"voting-db", 7001, leafBudget}},
		build: newVotingService,
	},
	{
		name: "voting-db", domain: votingDomain, service: "voting-db", port: 7001, data: true,
		about: "the queue of votes",
		build: newDatabase,
	},
	{
		name: "worker", domain: votingDomain, service: "worker", port: 8080,
		about: "counts the votes of voting-db into result-db",
		needs: []need{{"voting-db", 7001, leafBudget}, {"result-db", 7002, leafBudget}},
		build: newWorker,
	},
	{
		name: "result-db", domain: votingDomain, service: "result-db", port: 7002, data: true,
		about: "the counted result",
		build: newDatabase,
	},
	{
		name: "result-svc", domain: votingDomain, service: "result-svc", port: 8080,
		about: "reports the result",
		needs: []need{{"result-db", 7002, leafBudget}},
		build: newResultService,
	},
}

func findRole(name string) (role, bool) {
	for _, r := range roles {
		if r.name == name {
			return r, true
		}
	}
	return role{}, false
}
