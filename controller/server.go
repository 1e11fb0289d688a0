// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/logkey"
)

const (
	maxGraphBody = 64 << 20 // bytes of a request that carries a graph
	maxBody      = 1 << 20  // bytes of any other
)

// request is a call whose caller is known.
type request struct {
	*http.Request
	operator string // set for calls of operators
	node     caller // set for calls of nodes
	stop     context.Context
}

func (r request) actor() string { return cmp.Or(r.operator, r.node.ID()) }

// call answers a request: with a reply that is encoded as JSON (nil: none), or
// with an error.
type call func(ctx context.Context, r request) (reply any, err error)

// routes returns the API. Long polls end with stop.
func (c *Controller) routes(stop context.Context) http.Handler {
	mux := http.NewServeMux()
	operator := func(pattern string, limit int64, f call) {
		mux.Handle(pattern, c.handle(pattern, stop, limit, func(r *request) (err error) {
			r.operator, err = c.operator(r.Context(), r.Request)
			return err
		}, f))
	}
	node := func(pattern string, f call) {
		limit := int64(maxBody)
		if strings.HasPrefix(pattern, "PUT /v1/node/tasks/") {
			limit = maxGraphBody // it may carry the dump of a data path
		}
		mux.Handle(pattern, c.handle(pattern, stop, limit, func(r *request) (err error) {
			r.node, err = c.caller(r.Request)
			return err
		}, f))
	}
	a := &admitter{cfg: c.cfg, policy: c.policy, nodes: c.nodes, table: c.table}

	operator("GET /v1/graph", maxBody, c.getGraph)
	operator("PUT /v1/graph", maxGraphBody, c.putGraph)
	operator("POST /v1/graph/validate", maxGraphBody, c.validateGraph)
	operator("DELETE /v1/graph/domain/{name}", maxBody, c.deleteDomain)
	operator("GET /v1/status", maxBody, func(context.Context, request) (any, error) { return c.status(), nil })
	operator("POST /v1/probe", maxGraphBody, c.probe)

	node("PUT /v1/node", c.putNode)
	node("PUT /v1/node/status", func(_ context.Context, r request) (any, error) {
		s, err := decode[api.NodeStatus](r)
		if err == nil {
			c.reports.put(r.node, s)
		}
		return nil, err
	})
	node("GET /v1/node/tasks", c.getTasks)
	node("PUT /v1/node/tasks/{id}", func(_ context.Context, r request) (any, error) {
		result, err := decode[api.TaskResult](r)
		if err != nil {
			return nil, err
		}
		result.ID = r.PathValue("id")
		return nil, c.tasks.done(r.node.ID(), result)
	})
	node("POST /v1/node/admission", func(ctx context.Context, r request) (any, error) {
		req, err := decode[api.AdmissionRequest](r)
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		reply, admission, err := a.admit(ctx, r.node, req)
		if err := c.record(r, "admission.grant", req.Allocation, admission.Identity().Key(), 0, err); err != nil {
			return nil, err
		}
		c.metrics.admission.Observe(time.Since(begin).Seconds())
		c.logAdmission(admission, time.Since(begin))
		return reply, nil
	})
	node("DELETE /v1/node/admission/{endpoint}", func(ctx context.Context, r request) (any, error) {
		endpoint := r.PathValue("endpoint")
		return nil, c.record(r, "admission.release", endpoint, "", 0, a.release(ctx, r.node, endpoint))
	})
	node("POST /v1/node/certificate", func(ctx context.Context, r request) (any, error) {
		req, err := decode[api.CertificateRequest](r)
		if err != nil {
			return nil, err
		}
		chain, err := a.certificate(ctx, r.node, req)
		return api.CertificateReply{Certificate: chain}, c.record(r, "certificate.issue", req.Service.String(), "", 0, err)
	})

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
		refuse(w, api.Errorf(http.StatusNotFound, api.CodeNotFound, "the controller has no %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// handle finds out who calls, refuses unless this controller leads, and
// answers.
func (c *Controller) handle(pattern string, stop context.Context, limit int64, authenticate func(*request) error, f call) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		r := &request{Request: hr, stop: stop}
		r.Body = http.MaxBytesReader(w, hr.Body, limit)
		err := authenticate(r)
		if err == nil && !c.leading.Load() {
			err = c.notLeader(hr.Context())
		}
		var reply any
		if err == nil {
			reply, err = f(hr.Context(), *r)
		}
		if err != nil {
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
	c.log.Error("call failed", "call", pattern, logkey.Error, err)
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

// record writes what came of a change to the audit log, and returns err. A
// change that cannot be recorded is reported as failed.
func (c *Controller) record(r request, action, target, message string, revision uint64, err error) error {
	entry := auditEntry{Actor: r.actor(), Action: action, Target: target, Message: message, Revision: revision}
	if err != nil {
		entry.Refused = err.Error()
		var e *api.Error
		if errors.As(err, &e) {
			entry.Code = e.Code
		}
		c.log.Warn("refused", "action", action, "actor", r.actor(), logkey.Error, err)
	}
	return errors.Join(err, c.audit.write(entry))
}

func (c *Controller) getGraph(context.Context, request) (any, error) {
	held := c.policy.current.Load()
	return api.GraphReply{Pointer: held.pointer, Graph: held.graph}, nil
}

func (c *Controller) putGraph(ctx context.Context, r request) (any, error) {
	req, err := decode[api.GraphRequest](r)
	if err != nil {
		return nil, err
	}
	reply, err := c.policy.apply(ctx, req)
	return reply, c.record(r, "graph.apply", domainNames(req), req.Message, reply.Pointer.Sequence, err)
}

func (c *Controller) validateGraph(_ context.Context, r request) (any, error) {
	req, err := decode[api.GraphRequest](r)
	if err != nil {
		return nil, err
	}
	problems, err := c.policy.problems(req)
	return api.GraphReply{Pointer: c.policy.pointer(), Problems: problems}, err
}

func (c *Controller) deleteDomain(ctx context.Context, r request) (any, error) {
	name := r.PathValue("name")
	reply, err := c.policy.remove(ctx, name)
	return reply, c.record(r, "graph.delete", name, "", reply.Pointer.Sequence, err)
}

func (c *Controller) putNode(ctx context.Context, r request) (any, error) {
	req, err := decode[api.NodeRequest](r)
	if err != nil {
		return nil, err
	}
	record, err := c.nodes.register(ctx, r.node, req)
	return record, c.record(r, "node.register", r.node.ID(), string(r.node.Kind), 0, err)
}

func (c *Controller) getTasks(ctx context.Context, r request) (any, error) {
	wait := time.Minute
	if s := r.URL.Query().Get("wait"); s != "" {
		var err error
		if wait, err = time.ParseDuration(s); err != nil {
			return nil, api.Errorf(http.StatusBadRequest, api.CodeInvalid, "wait: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.stop, cancel)()
	return c.tasks.next(ctx, r.node.ID(), wait), nil
}

func (c *Controller) probe(ctx context.Context, r request) (any, error) {
	req, err := decode[api.ProbeRequest](r)
	if err != nil {
		return nil, err
	}
	if len(req.Tasks) > api.MaxProbeTasks {
		return nil, api.Errorf(http.StatusBadRequest, api.CodeInvalid, "%d tasks are more than the %d of one request", len(req.Tasks), api.MaxProbeTasks)
	}
	for _, t := range req.Tasks {
		if _, ok := c.nodes.get(t.Node); !ok {
			return nil, api.Errorf(http.StatusNotFound, api.CodeNotFound, "there is no node %q", t.Node)
		}
	}
	return api.ProbeReply{Results: c.tasks.run(ctx, req.Tasks)}, nil
}

// decode reads a request's body. What an operator says must be understood in
// full, lest part of a graph be lost; a node may be newer than its controller.
func decode[T any](r request) (T, error) {
	var v T
	d := json.NewDecoder(r.Body)
	if r.operator != "" {
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
		return v, api.Errorf(http.StatusBadRequest, api.CodeInvalid, "decode the request: %v", err)
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

func domainNames(req api.GraphRequest) string {
	return strings.Join(slices.Sorted(maps.Keys(req.Domains)), ",")
}
