// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Timeouts of a server. Idle connections are closed soon, so that a caller sees the present
// connectivity instead of that of an old connection.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	writeTimeout      = 15 * time.Second
	idleTimeout       = 2 * time.Second
	stopTimeout       = 4 * time.Second // below Nomad's kill_timeout of 5 s
)

// serve answers requests on ln until ctx ends, waits for running requests, and closes the service.
func serve(ctx context.Context, ln net.Listener, svc *service, log *slog.Logger) error {
	server := &http.Server{
		Handler:           svc.handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}

	background, endBackground := context.WithCancel(ctx)
	defer endBackground()
	var running sync.WaitGroup
	if svc.background != nil {
		running.Go(func() { svc.background(background) })
	}

	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()

	var err error
	select {
	case failed := <-served:
		err = fmt.Errorf("serve on %s: %w", ln.Addr(), failed)
	case <-ctx.Done():
		stopping, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if stopErr := server.Shutdown(stopping); stopErr != nil {
			err = fmt.Errorf("requests still running after %s: %w", stopTimeout, errors.Join(stopErr, server.Close()))
		}
	}
	endBackground()
	running.Wait()
	if closeErr := svc.close(); closeErr != nil {
		err = errors.Join(err, fmt.Errorf("close: %w", closeErr))
	}
	return err
}

// reply is the form of every JSON answer: the instance that answers, and either data or an error.
type reply[T any] struct {
	Instance instance `json:"instance"`
	Data     *T       `json:"data,omitempty"`
	Error    string   `json:"error,omitempty"`
	Origin   *origin  `json:"origin,omitempty"` // of a gateway's data
	Seen     string   `json:"seen,omitempty"`   // the client's address; from providers
	Caller   *proof   `json:"caller,omitempty"` // who the client has proved to be, by mutual TLS
	Server   *proof   `json:"-"`                // and the server
}

// origin says where outside the fabric data comes from.
type origin struct {
	Provider string `json:"provider"`
	Seen     string `json:"seen"` // the address at which the provider saw the fabric
}

func writeData[T any](w http.ResponseWriter, self instance, status int, data T) {
	writeJSON(w, status, reply[T]{Instance: self, Data: &data})
}

func writeError(w http.ResponseWriter, self instance, status int, err error) {
	writeJSON(w, status, reply[struct{}]{Instance: self, Error: err.Error()})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "encode the answer: "+err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// Writing fails only if the client has gone.
	_, _ = w.Write(append(body, '\n'))
}

// healthy answers /health for a service that can always serve. It does not check the services that
// this one calls: if they fail, restarting this instance does not help.
func healthy(self instance) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		writeData(w, self, http.StatusOK, map[string]string{"status": "ok"})
	}
}

// wantsJSON reports whether the client is a program instead of a browser.
func wantsJSON(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "application/json")
}
