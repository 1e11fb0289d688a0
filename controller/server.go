// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"bytes"
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
	"github.com/sif-project/sif/internal/limit"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/trust/identity"
)

const (
	maxLargeBody = 64 << 20 // bytes of a request to a route that is large
	maxBody      = 1 << 20  // bytes of any other request
)

// request is a call whose caller was authenticated.
type request struct {
	*http.Request
	operator access          // set for calls of operators
	node     identity.Node   // set for calls of nodes
	pool     int             // for calls of nodes: bits of the pool that the certificate grants, or 0
	stop     context.Context // ends when the controller stops
	term     context.Context // ends when it does not lead any more; nil for calls that every controller answers
	entry    *auditEntry     // handlers fill in target, message and revision
}

// actor returns the caller's name for the audit log.
func (r request) actor() string {
	if r.node != (identity.Node{}) {
		return r.node.NodeID.String()
	}
	return cmp.Or(r.operator.actor, unknownActor)
}

// maxRequestID is the longest ID of a call, in bytes.
const maxRequestID = 64

// id returns the ID that the caller gave the call, or "".
func (r request) id() string {
	if id := r.Header.Get(api.RequestHeader); len(id) <= maxRequestID {
		return printable(id)
	}
	return ""
}

// indexed is a reply with the index from which a later call can wait for a newer one.
type indexed struct {
	reply any
	index uint64
}

// call answers a request, with a reply that is encoded as JSON (nil: no content), or with an error.
type call func(ctx context.Context, r request) (reply any, err error)

// handler serves the API. Long polls end when stop ends.
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
				req.node, req.pool, err = c.caller(req.Request)
				return err
			}))
		case callerPeer:
			mux.Handle(r.pattern, c.handle(r, stop, func(req *request) error { return c.peerCaller(req.Request) }))
		}
	}
	mux.HandleFunc("GET /v1/health", c.limits.anyone(func(w http.ResponseWriter, r *http.Request) {
		self := c.self()
		self.Degraded = nil // only for operators, in the status
		code := http.StatusOK
		if !self.Leader && r.URL.Query().Get("standbyok") == "" {
			code = http.StatusServiceUnavailable
		}
		if c.disk.trouble() != nil {
			self.Degraded, code = []string{"the data directory cannot be written, so that nothing can be changed"}, http.StatusServiceUnavailable
		}
		respond(w, code, self)
	}))
	mux.HandleFunc("GET /metrics", c.limits.anyone(promhttp.HandlerFor(c.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP))
	mux.HandleFunc("/", c.limits.anyone(func(w http.ResponseWriter, r *http.Request) {
		refuse(w, notFound("the controller has no call %s %s", r.Method, r.URL.Path))
	}))
	return mux
}

// handle authenticates the caller, refuses the call unless this controller leads, reads the body,
// answers the call and records it. Calls beyond a limit are refused before anything is done for
// them.
func (c *Controller) handle(route route, stop context.Context, authenticate func(*request) error) http.Handler {
	pattern := route.pattern
	most, within := route.body()
	rates := limit.NewRate[string](cmp.Or(route.interval, callInterval), cmp.Or(route.burst, callBurst))
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		c.limits.hurry(w, hr, within)
		if route.caller == callerOperator && c.limits.stranger(w, hr) {
			return
		}
		r := &request{Request: hr, stop: stop, entry: &auditEntry{Remote: hr.RemoteAddr, Action: route.action, harmless: route.harmless}}
		err := authenticate(r)
		// A node whose certificate was renewed comes back on a new connection. A token is sent with
		// each call, and each new connection counts against its source.
		if err != nil && route.caller == callerNode {
			w.Header().Set("Connection", "close")
		}
		if actor := r.actor(); actor != unknownActor {
			leave, ok := c.limits.enter(w, hr, route, rates, actor)
			if !ok {
				return
			}
			defer leave()
		} else if route.caller == callerOperator && !api.IsCode(err, api.CodeUnavailable) {
			c.limits.strangers.Allow(source(hr))
		}
		if err == nil && route.compared && hr.URL.Query().Get("index") == "" {
			c.catchUp(hr.Context())
		}
		c.answeredBy(w, route)
		if err == nil && route.led != byAny {
			c.answering.Add(1)
			defer c.answering.Add(-1)
			if term := c.term.Load(); term != nil {
				r.term = *term
			} else {
				err = c.unled(hr.Context(), route)
			}
		}
		if err == nil {
			err = c.limits.body(w, r.Request, most, within)
		}
		if err == nil && route.caller == callerNode {
			err = authenticate(r) // again: the node may have been removed while its body came
		}
		var reply any
		if err == nil {
			reply, err = route.call(hr.Context(), *r)
			if api.IsCode(err, api.CodeNotLeader) { // by the fence
				err = c.notLeader(hr.Context())
			}
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
		if s, ok := reply.(streamed); ok {
			stream(hr.Context(), w, s)
			return
		}
		respond(w, http.StatusOK, reply)
	})
}

// asError returns any error as an *api.Error. An error that is not one already is a fault of the
// controller, and is logged.
func (c *Controller) asError(pattern string, err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	c.log.Error("call failed", logkey.Call, pattern, logkey.Error, err)
	return api.Errorf(http.StatusInternalServerError, api.CodeInternal, "%v", err)
}

// unled refuses a call that not every controller answers, because this one does not lead.
func (c *Controller) unled(ctx context.Context, route route) error {
	if route.led == byAnyIfNone {
		asking, cancel := context.WithTimeout(ctx, vacantTimeout)
		defer cancel()
		if leader := leaderAddress(asking, c.cfg.Consul()); leader == "" || leader == c.cfg.Address {
			return nil
		}
	}
	return c.notLeader(ctx)
}

func (c *Controller) notLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	leader := leaderAddress(ctx, c.cfg.Consul())
	if leader == "" || leader == c.cfg.Address {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeNotLeader, "no controller leads yet; try again")
	}
	e := api.Errorf(http.StatusServiceUnavailable, api.CodeNotLeader, "this controller does not lead; call the leader at %s", leader)
	e.Details.Leader = leader
	return e
}

// intend writes to the audit log that a call is about to be carried out. A call that cannot be
// recorded is refused, and nothing has happened.
func (c *Controller) intend(r request) error {
	entry := *r.entry
	entry.Actor, entry.Begun = r.actor(), true
	if err := c.audit.write(entry); err != nil {
		c.disk.failed(err)
		return unavailable("nothing was changed, because it cannot be recorded: %v", err)
	}
	r.entry.intended = true
	return nil
}

// intendRemoval is intend for a call that only takes rights away, which does not depend on a
// record: without one, the controller's log has it.
func (c *Controller) intendRemoval(r request) {
	if err := c.intend(r); err != nil {
		r.entry.intended = true
		c.log.Error("removing without a record", logkey.Action, r.entry.Action, logkey.Actor, r.actor(), logkey.Target, r.entry.Target, logkey.Address, r.entry.Remote, logkey.Error, err)
	}
}

// record writes the result of a call to the audit log, if it belongs there, and returns err. A call
// that cannot be recorded fails, unless intend has recorded it and it was carried out.
func (c *Controller) record(r request, err error) error {
	switch {
	case r.entry.Action == "",
		r.entry.harmless && !api.IsCode(err, api.CodeForbidden),
		api.IsCode(err, api.CodeNotLeader) && !r.entry.intended: // the leader decides and records
		return err
	}
	r.entry.Actor = r.actor()
	if err != nil {
		r.entry.Refused = err.Error()
		var e *api.Error
		if errors.As(err, &e) {
			r.entry.Code = e.Code
		}
		if !r.entry.intended && !c.audit.admits(*r.entry) {
			c.limits.count(limitAudit)
			return err
		}
		c.log.Warn("call refused", logkey.Action, r.entry.Action, logkey.Actor, r.entry.Actor, logkey.Address, r.entry.Remote, logkey.Error, err)
	}
	writing := c.audit.write(*r.entry)
	if writing == nil {
		return err
	}
	c.disk.failed(writing)
	c.log.Error("cannot record how a call ended", logkey.Action, r.entry.Action, logkey.Actor, r.entry.Actor, logkey.Target, r.entry.Target, logkey.Error, writing)
	if err == nil && !r.entry.intended {
		err = writing
	}
	return err
}

// decode decodes the body of a request. Unknown fields are refused from operators, because a part
// of a graph would be lost, and ignored from nodes, which may run a newer version than the
// controller.
func decode[T any](r request) (T, error) {
	var v T
	d := json.NewDecoder(r.Body)
	if r.operator.actor != "" {
		d.DisallowUnknownFields()
	}
	err := d.Decode(&v)
	if err == nil {
		if _, extra := d.Token(); extra != io.EOF {
			err = errors.New("unexpected data after the JSON value")
		}
	}
	if err == nil && r.operator.actor == "" {
		err = lasting(v)
	}
	if err != nil {
		return v, invalid("decode the request: %v", err)
	}
	return v, nil
}

// lasting returns an error if a value is not the same after it was encoded and decoded, for
// instance because a name is null. The controller passes on what nodes send, and one value that
// cannot be decoded would make the whole reply useless. What operators send is checked by the
// model.
func lasting[T any](v T) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var back T
	if err := json.Unmarshal(text, &back); err != nil {
		return err
	}
	if again, err := json.Marshal(back); err != nil || !bytes.Equal(text, again) {
		return errors.Join(errors.New("it is not the same after it was encoded and decoded"), err)
	}
	return nil
}

func respond(w http.ResponseWriter, code int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		refuse(w, api.Errorf(http.StatusInternalServerError, api.CodeInternal, "encode the reply: %v", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(data) // fails only if the caller is gone
}

func refuse(w http.ResponseWriter, e *api.Error) {
	respond(w, e.Status, e)
}
