// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/trust/identity"
)

const (
	maxGraphBody = 64 << 20 // bytes of a request that carries a graph
	maxBody      = 1 << 20  // bytes of any other
)

// request is a call whose caller is known.
type request struct {
	*http.Request
	operator access        // set for calls of operators
	node     identity.Node // set for calls of nodes
	stop     context.Context
	entry    *auditEntry // handlers say in it what the call is about
}

func (r request) actor() string {
	if r.node != (identity.Node{}) {
		return r.node.NodeID.String()
	}
	return cmp.Or(r.operator.actor, unknownActor)
}

// indexed is a reply that carries an index to wait on.
type indexed struct {
	reply any
	index uint64
}

// call answers a request: with a reply that is encoded as JSON (nil: none), or
// with an error.
type call func(ctx context.Context, r request) (reply any, err error)

// handler serves the API. Long polls end with stop.
func (c *Controller) handler(stop context.Context) http.Handler {
	mux := http.NewServeMux()
	for _, r := range c.routes() {
		switch r.caller {
		case callerOperator:
			mux.Handle(r.pattern, c.handle(r, stop, func(req *request) (err error) {
				req.operator, err = c.operator(req.Context(), req.Request)
				return err
			}))
		case callerNode:
			mux.Handle(r.pattern, c.handle(r, stop, func(req *request) (err error) {
				req.node, err = c.caller(req.Request)
				return err
			}))
		}
	}
	mux.HandleFunc("GET /v1/health", func(w http.ResponseWriter, r *http.Request) {
		self := c.self()
		self.Degraded = nil // for operators; see status
		code := http.StatusOK
		if !self.Leader {
			code = http.StatusServiceUnavailable
		}
		respond(w, code, self)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, notFound("the controller has no %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// handle finds out who calls, refuses unless this controller leads, and
// answers.
func (c *Controller) handle(route route, stop context.Context, authenticate func(*request) error) http.Handler {
	pattern := route.pattern
	limit := int64(maxBody)
	if route.large {
		limit = maxGraphBody
	}
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		r := &request{Request: hr, stop: stop, entry: &auditEntry{Remote: hr.RemoteAddr, Action: route.action, harmless: route.harmless}}
		r.Body = http.MaxBytesReader(w, hr.Body, limit)
		err := authenticate(r)
		if err == nil && !c.leading.Load() {
			err = c.notLeader(hr.Context())
		}
		var reply any
		if err == nil {
			reply, err = route.call(hr.Context(), *r)
		}
		if err = c.record(*r, err); err != nil {
			e := c.asError(pattern, err)
			c.metrics.requests.WithLabelValues(pattern, e.Code).Inc()
			refuse(w, e)
			return
		}
		c.metrics.requests.WithLabelValues(pattern, "ok").Inc()
		if reply == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		if i, ok := reply.(indexed); ok {
			w.Header().Set(api.IndexHeader, strconv.FormatUint(i.index, 10))
			reply = i.reply
		}
		respond(w, http.StatusOK, reply)
	})
}

// asError makes an *api.Error of any error. What is no refusal is a fault of
// ours, and logged.
func (c *Controller) asError(pattern string, err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	c.log.Error("call failed", logkey.Call, pattern, logkey.Error, err)
	return api.Errorf(http.StatusInternalServerError, api.CodeInternal, "%v", err)
}

func (c *Controller) notLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	leader := leaderAddress(ctx, c.cfg.Consul())
	if leader == "" || leader == c.cfg.Address {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeNotLeader, "this controller does not lead yet; try again")
	}
	e := api.Errorf(http.StatusServiceUnavailable, api.CodeNotLeader, "this controller does not lead; ask the one at %s", leader)
	e.Details.Leader = leader
	return e
}

// record writes what came of a call to the audit log, if it belongs there, and
// returns err. What cannot be recorded is reported as failed.
func (c *Controller) record(r request, err error) error {
	switch {
	case r.entry.Action == "",
		r.entry.harmless && !api.IsCode(err, api.CodeForbidden),
		api.IsCode(err, api.CodeNotLeader): // the leader decides, and records it
		return err
	}
	r.entry.Actor = r.actor()
	if err != nil {
		r.entry.Refused = err.Error()
		var e *api.Error
		if errors.As(err, &e) {
			r.entry.Code = e.Code
		}
		c.log.Warn("refused", logkey.Action, r.entry.Action, logkey.Actor, r.entry.Actor, logkey.Address, r.entry.Remote, logkey.Error, err)
	}
	return errors.Join(err, c.audit.write(*r.entry))
}

// decode reads a request's body. What an operator says must be understood in
// full, lest part of a graph be lost; a node may be newer than its controller.
func decode[T any](r request) (T, error) {
	var v T
	d := json.NewDecoder(r.Body)
	if r.operator.actor != "" {
		d.DisallowUnknownFields()
	}
	err := d.Decode(&v)
	if err == nil {
		if _, extra := d.Token(); extra != io.EOF {
			err = errors.New("something follows the JSON value")
		}
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return v, api.Errorf(http.StatusRequestEntityTooLarge, api.CodeInvalid, "the request is larger than %d bytes", large.Limit)
	case err != nil:
		return v, invalid("decode the request: %v", err)
	}
	return v, nil
}

func respond(w http.ResponseWriter, code int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		refuse(w, api.Errorf(http.StatusInternalServerError, api.CodeInternal, "encode the reply: %v", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(data) // the caller is gone if this fails
}

func refuse(w http.ResponseWriter, e *api.Error) {
	respond(w, e.Status, e)
}
