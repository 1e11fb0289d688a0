// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// errUnknownPlace is the answer for a destination without sample data.
var errUnknownPlace = errors.New("unknown place")

// newGateway builds a gateway: it answers GET <path>?place=<id> with its provider's data for that
// destination, or with lookup's if it has no provider.
func newGateway[T any](path string, lookup map[string]T) func(settings, *slog.Logger) (*service, error) {
	return func(s settings, log *slog.Logger) (*service, error) {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /health", healthy(s.self))
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			place := r.URL.Query().Get("place")
			if s.provider == nil {
				answerFrom(w, s.self, lookup, place, proofOf(r.TLS))
				return
			}
			answer, err := get[T](r.Context(), *s.provider, path, url.Values{"place": {place}})
			if err != nil {
				log.Warn("provider failed", "provider", s.provider.service, "error", err)
				writeError(w, s.self, gatewayStatus(err), err)
				return
			}
			writeJSON(w, http.StatusOK, reply[T]{Instance: s.self, Data: answer.Data, Origin: &origin{s.provider.service, answer.Seen}})
		})
		return &service{handler: mux}, nil
	}
}

// answerFrom answers with the data of a destination.
func answerFrom[T any](w http.ResponseWriter, self instance, lookup map[string]T, place string, caller *proof) {
	data, ok := lookup[place]
	if !ok {
		writeError(w, self, http.StatusNotFound, fmt.Errorf("%w %q", errUnknownPlace, place))
		return
	}
	writeJSON(w, http.StatusOK, reply[T]{Instance: self, Data: &data, Caller: caller})
}

// newProvider builds what the gateways call outside the fabric: a service of somebody else, which
// tells its clients at which address it saw them.
func newProvider(s settings, _ *slog.Logger) (*service, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", healthy(s.self))
	mux.HandleFunc("GET /news", provide(s.self, sampleNews))
	mux.HandleFunc("GET /places", provide(s.self, samplePlaces))
	mux.HandleFunc("GET /weather", provide(s.self, sampleWeather))
	return &service{handler: mux}, nil
}

func provide[T any](self instance, lookup map[string]T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		place := r.URL.Query().Get("place")
		data, ok := lookup[place]
		if !ok {
			writeError(w, self, http.StatusNotFound, fmt.Errorf("%w %q", errUnknownPlace, place))
			return
		}
		seen, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			seen = r.RemoteAddr
		}
		writeJSON(w, http.StatusOK, reply[T]{Instance: self, Data: &data, Seen: seen})
	}
}

// part is the answer of one gateway to getaway-svc: the data and the instance that answered, or an
// error.
type part[T any] struct {
	From   *instance `json:"from,omitempty"`
	Origin *origin   `json:"origin,omitempty"`
	Data   *T        `json:"data,omitempty"`
	Caller *proof    `json:"caller,omitempty"` // who each has proved to be, by mutual TLS
	Server *proof    `json:"server,omitempty"`
	Error  string    `json:"error,omitempty"`
	Millis int64     `json:"millis"` // duration of the call in milliseconds
}

// getaway is the answer of getaway-svc about one destination.
type getaway struct {
	Place   string          `json:"place"`
	News    part[[]news]    `json:"news"`
	Places  part[[]sight]   `json:"places"`
	Weather part[[]outlook] `json:"weather"`
}

// newGetawayService builds getaway-svc: GET /getaway?place=<id> calls the three gateways
// concurrently. If one fails, its part contains the error and the answer still contains the others.
func newGetawayService(s settings, log *slog.Logger) (*service, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", healthy(s.self))
	mux.HandleFunc("GET /getaway", func(w http.ResponseWriter, r *http.Request) {
		place := r.URL.Query().Get("place")
		if _, ok := destinationName(place); !ok {
			writeError(w, s.self, http.StatusNotFound, fmt.Errorf("%w %q", errUnknownPlace, place))
			return
		}
		answer := getaway{Place: place}
		var asked sync.WaitGroup
		asked.Go(func() { answer.News = ask[[]news](r.Context(), log, s.needs["news-gw"], "/news", place) })
		asked.Go(func() { answer.Places = ask[[]sight](r.Context(), log, s.needs["places-gw"], "/places", place) })
		asked.Go(func() { answer.Weather = ask[[]outlook](r.Context(), log, s.needs["weather-gw"], "/weather", place) })
		asked.Wait()
		writeData(w, s.self, http.StatusOK, answer)
	})
	return &service{handler: mux}, nil
}

func ask[T any](ctx context.Context, log *slog.Logger, u upstream, path, place string) part[T] {
	start := time.Now()
	answer, err := get[T](ctx, u, path, url.Values{"place": {place}})
	millis := time.Since(start).Milliseconds()
	if err != nil {
		log.Warn("gateway failed", "service", u.service, "error", err)
		return part[T]{Error: err.Error(), Millis: millis}
	}
	return part[T]{From: &answer.Instance, Origin: answer.Origin, Data: answer.Data, Caller: answer.Caller, Server: answer.Server, Millis: millis}
}

// getawayPage is the data of the page of getaway.
type getawayPage struct {
	Self         instance      // the proxy
	Service      *instance     // getaway-svc, if it answered
	Error        string        // why it did not answer
	Destinations []destination // to choose from
	Chosen       destination
	Getaway      *getaway
}

// newGetawayProxy builds getaway's http-proxy: GET /?place=<id> returns the page, or the answer of
// getaway-svc with "Accept: application/json".
func newGetawayProxy(s settings, log *slog.Logger) (*service, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", healthy(s.self))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		page := getawayPage{Self: s.self, Destinations: destinations, Chosen: destinations[0]}
		if place := r.URL.Query().Get("place"); place != "" {
			name, ok := destinationName(place)
			if !ok {
				writePageOrError(w, r, s.self, http.StatusNotFound, "getaway.html", &page, &page.Error,
					fmt.Errorf("%w %q", errUnknownPlace, place))
				return
			}
			page.Chosen = destination{ID: place, Name: name}
		}
		answer, err := get[getaway](r.Context(), s.needs["getaway-svc"], "/getaway", url.Values{"place": {page.Chosen.ID}})
		if err != nil {
			log.Warn("getaway-svc failed", "error", err)
			writePageOrError(w, r, s.self, gatewayStatus(err), "getaway.html", &page, &page.Error, err)
			return
		}
		if wantsJSON(r) {
			writeJSON(w, http.StatusOK, answer)
			return
		}
		page.Service, page.Getaway = &answer.Instance, answer.Data
		writePage(w, http.StatusOK, "getaway.html", page)
	})
	return &service{handler: mux}, nil
}
