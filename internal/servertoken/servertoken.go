// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package servertoken gives the HTTP clients of Consul and Nomad the token of a log-in, and a new
// one in time, or when the server does not know the old one any more. It knows when to log in, and
// what a server says of a token that is none. It does not know how to log in, and stores nothing.
package servertoken

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Placeholder is the token in whose place requests carry that of the log-in. Requests with another
// token, such as an operator's, are left as they are; nobody outside the process knows this one.
// It also keeps the clients of the servers from using the token in the environment.
var Placeholder = rand.Text()

// Token is what a log-in gives.
type Token struct {
	Secret  string
	Expires time.Time // zero: never
}

// Login is how a client gets tokens.
type Login struct {
	// New gets a new token.
	New func(ctx context.Context) (Token, error)
	// Known reports whether the server knows a token. It is for a server that refuses what a token
	// may not do and a token that is none with the same words; nil for others.
	Known func(ctx context.Context, secret string) bool
}

const (
	loginTimeout = 15 * time.Second
	// retryPause is how long after a failed log-in requests go on with the token that is there, or
	// fail.
	retryPause = time.Second
	// doubtAfter is the age from which a token is replaced if the server refuses a request with it:
	// the rights may have been made anew, under other IDs.
	doubtAfter = 30 * time.Second
	// maxRefusal bounds how much of a refusal is read.
	maxRefusal = 4096
)

// Transport is an http.RoundTripper. It is safe for concurrent use.
type Transport struct {
	base   http.RoundTripper
	header string // of the token: "X-Consul-Token"
	login  *Login // nil: the server has no ACLs

	turn chan struct{} // held by who logs in

	mu      sync.Mutex
	token   Token
	made    time.Time // when token was got
	retryAt time.Time // after a failed log-in
	failed  error     // of that log-in
}

// New returns a transport that sends requests by base. Without login, requests carry no token in
// place of the placeholder.
func New(base http.RoundTripper, header string, login *Login) *Transport {
	return &Transport{base: base, header: header, login: login, turn: make(chan struct{}, 1)}
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get(t.header) != Placeholder {
		return t.base.RoundTrip(req)
	}
	if t.login == nil {
		return t.send(req, "")
	}
	secret, err := t.current(req.Context(), "")
	if err != nil {
		closeBody(req)
		return nil, err
	}
	resp, err := t.send(req, secret)
	if err != nil || resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	if err != nil || !t.doubtful(req.Context(), secret, string(text)) || req.Body != nil && req.GetBody == nil {
		return restore(resp, text), nil
	}
	again := req.Clone(req.Context())
	if req.Body != nil {
		if again.Body, err = req.GetBody(); err != nil {
			return restore(resp, text), nil
		}
	}
	other, err := t.current(req.Context(), secret)
	if err != nil || other == secret {
		closeBody(again)
		return restore(resp, text), nil
	}
	resp.Body.Close()
	return t.send(again, other)
}

// doubtful reports whether a refusal may be the token's fault.
func (t *Transport) doubtful(ctx context.Context, secret, refusal string) bool {
	for _, words := range []string{"ACL not found", "ACL token not found", "ACL token expired", "token expired"} {
		if strings.Contains(refusal, words) {
			return true
		}
	}
	t.mu.Lock()
	old := t.token.Secret != secret || time.Since(t.made) > doubtAfter
	t.mu.Unlock()
	return old || t.login.Known != nil && !t.login.Known(ctx, secret)
}

// current returns the token to use, and logs in if there is none, if it is due, or if it is the one
// that was refused.
func (t *Transport) current(ctx context.Context, refused string) (string, error) {
	if secret := t.usable(refused); secret != "" {
		return secret, nil
	}
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if secret := t.usable(refused); secret != "" { // somebody else logged in meanwhile
		return secret, nil
	}
	t.mu.Lock()
	failed := t.failed
	if time.Now().After(t.retryAt) {
		failed = nil
	}
	t.mu.Unlock()
	if failed != nil {
		return "", failed
	}
	// The log-in serves all requests, so it does not end with this one.
	attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), loginTimeout)
	defer cancel()
	token, err := t.login.New(attempt)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.retryAt, t.failed = time.Now().Add(retryPause), fmt.Errorf("log in for a token: %w", err)
		if t.token.Secret != "" && t.token.Secret != refused && t.lives() {
			return t.token.Secret, nil
		}
		return "", t.failed
	}
	t.token, t.made, t.failed = token, time.Now(), nil
	return token.Secret, nil
}

// usable returns the token, unless it must be replaced first.
func (t *Transport) usable(refused string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.token.Secret == "" || t.token.Secret == refused || !t.lives():
		return ""
	case t.due() && time.Now().After(t.retryAt):
		return ""
	}
	return t.token.Secret
}

// lives reports whether the token may still be good. By the clock of a machine that is ahead of the
// server, a new one has ended already: it is used all the same.
func (t *Transport) lives() bool {
	return t.token.Expires.IsZero() || time.Now().Before(t.token.Expires) || !t.token.Expires.After(t.made) && time.Since(t.made) < doubtAfter
}

// due reports whether a quarter of the token's life has passed: what is left of it bridges times in
// which nobody can log in.
func (t *Transport) due() bool {
	return t.token.Expires.After(t.made) && time.Since(t.made) > t.token.Expires.Sub(t.made)/4
}

func (t *Transport) send(req *http.Request, secret string) (*http.Response, error) {
	out := req.Clone(req.Context())
	if secret == "" {
		out.Header.Del(t.header)
	} else {
		out.Header.Set(t.header, secret)
	}
	return t.base.RoundTrip(out)
}

// restore returns a response whose body was read in part.
func restore(resp *http.Response, read []byte) *http.Response {
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(read), resp.Body), resp.Body}
	return resp
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}
