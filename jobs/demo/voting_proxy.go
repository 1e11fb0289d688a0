// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
)

// voterCookie lets a browser change its vote instead of casting another.
const voterCookie = "voter"

// votePage is the data of the page /vote.
type votePage struct {
	Self    instance
	Service *instance // voting-svc, if it answered
	Options []option
	Voted   string // name of the option just voted for
	Error   string
}

// resultPage is the data of the page /result.
type resultPage struct {
	Self    instance
	Service *instance // result-svc, if it answered
	Result  *result
	Error   string
}

// newVotingProxy builds voting's http-proxy: the page /vote with a form, and the page /result. With
// "Accept: application/json" they return the answers of voting-svc and result-svc. POST /vote takes
// the form fields choice and, optionally, voter.
func newVotingProxy(s settings, log *slog.Logger) (*service, error) {
	p := votingProxy{self: s.self, votes: s.needs["voting-svc"], results: s.needs["result-svc"], log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", healthy(s.self))
	mux.Handle("GET /{$}", http.RedirectHandler("/vote", http.StatusSeeOther))
	mux.HandleFunc("GET /vote", p.showVote)
	mux.HandleFunc("POST /vote", p.castVote)
	mux.HandleFunc("GET /result", p.showResult)
	return &service{handler: mux}, nil
}

type votingProxy struct {
	self           instance
	votes, results upstream
	log            *slog.Logger
}

func (p votingProxy) showVote(w http.ResponseWriter, r *http.Request) {
	page := votePage{Self: p.self}
	answer, err := get[ballot](r.Context(), p.votes, "/options", nil)
	if err != nil {
		p.failVote(w, r, &page, err)
		return
	}
	if wantsJSON(r) {
		writeJSON(w, http.StatusOK, answer)
		return
	}
	page.Service, page.Options = &answer.Instance, answer.Data.Options
	for _, o := range page.Options {
		if o.ID == r.URL.Query().Get("voted") {
			page.Voted = o.Name
		}
	}
	writePage(w, http.StatusOK, "vote.html", page)
}

func (p votingProxy) castVote(w http.ResponseWriter, r *http.Request) {
	page := votePage{Self: p.self}
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	if err := r.ParseForm(); err != nil {
		writePageOrError(w, r, p.self, http.StatusBadRequest, "vote.html", &page, &page.Error, err)
		return
	}
	if !r.PostForm.Has("choice") {
		writePageOrError(w, r, p.self, http.StatusBadRequest, "vote.html", &page, &page.Error,
			errors.New("no option was chosen"))
		return
	}
	v := vote{Voter: p.voter(w, r), Choice: r.PostForm.Get("choice")}
	answer, err := call[receipt](r.Context(), p.votes, http.MethodPost, "/votes", nil, v, nil)
	if err != nil {
		p.failVote(w, r, &page, err)
		return
	}
	if wantsJSON(r) {
		writeJSON(w, http.StatusCreated, answer)
		return
	}
	// Redirect, so that reloading the page does not vote again.
	http.Redirect(w, r, "/vote?"+url.Values{"voted": {v.Choice}}.Encode(), http.StatusSeeOther)
}

func (p votingProxy) failVote(w http.ResponseWriter, r *http.Request, page *votePage, err error) {
	p.log.Warn("voting-svc failed", "error", err)
	writePageOrError(w, r, p.self, gatewayStatus(err), "vote.html", page, &page.Error, err)
}

// voter returns the voter's name from the form or from the cookie. It sets the cookie if there is
// none.
func (p votingProxy) voter(w http.ResponseWriter, r *http.Request) string {
	if name := r.PostForm.Get("voter"); name != "" {
		return name
	}
	if c, err := r.Cookie(voterCookie); err == nil && c.Value != "" && len(c.Value) <= maxVoter {
		return c.Value
	}
	name := rand.Text()
	http.SetCookie(w, &http.Cookie{
		Name: voterCookie, Value: name, Path: "/vote",
		HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
	return name
}

func (p votingProxy) showResult(w http.ResponseWriter, r *http.Request) {
	page := resultPage{Self: p.self}
	answer, err := get[result](r.Context(), p.results, "/results", nil)
	if err != nil {
		p.log.Warn("result-svc failed", "error", err)
		writePageOrError(w, r, p.self, gatewayStatus(err), "result.html", &page, &page.Error, err)
		return
	}
	if wantsJSON(r) {
		writeJSON(w, http.StatusOK, answer)
		return
	}
	page.Service, page.Result = &answer.Instance, answer.Data
	writePage(w, http.StatusOK, "result.html", page)
}
