// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// callerKind is who may call a route.
type callerKind string

const (
	callerOperator callerKind = "operator" // shows a token of Consul or Vault
	callerNode     callerKind = "node"     // shows a node's certificate
	callerAnyone   callerKind = "anyone"
)

// route is one call of the API. What it says beyond its handler is what
// api/openapi.json is generated from.
type route struct {
	pattern string
	caller  callerKind
	call    call
	large   bool // the body may carry a graph or a dump

	action   string // in the audit log; empty: calls are not recorded
	harmless bool   // changes nothing: only who may not do it is recorded

	summary    string
	permission string   // of operators
	query      []string // names of parameters; see parameters
	request    any      // zero value of the body; nil: none
	reply      any      // zero value; nil: 204
}

// parameters are the query parameters by name.
var parameters = map[string]string{
	"index":    "Answer once the result is newer than this index, which an earlier answer carried as " + api.IndexHeader + ".",
	"wait":     "How long to wait at most, for instance 30s.",
	"revision": "Sequence of a kept revision.",
	"from":     "Who opens the flow: a service or external (domain/name), an endpoint or allocation by its ID or the beginning of it, or an address.",
	"to":       "Who is called, likewise.",
	"port":     "Destination port; of icmp and icmpv6, the type.",
	"protocol": "tcp unless it is named.",
}

// routes is the whole API but /metrics.
func (c *Controller) routes() []route {
	blocking := []string{"index", "wait"}
	return []route{
		{pattern: "GET /v1/graph", caller: callerOperator, call: c.getGraph, query: append([]string{"revision"}, blocking...),
			summary: "The graph in force, or that of a kept revision, as far as the token may read it.", permission: "sif-read or one of sif-read-, sif-plan-, sif-apply-<domain>",
			reply: api.GraphReply{}},
		{pattern: "PUT /v1/graph", caller: callerOperator, call: c.putGraph, large: true, action: "graph.apply",
			summary: "Puts domains and guardrails in force in the place of those of the same names.", permission: "sif-apply-<domain> for each domain; sif-operator for guardrails",
			request: api.GraphRequest{}, reply: api.GraphReply{}},
		{pattern: "POST /v1/graph/validate", caller: callerOperator, call: c.validateGraph, large: true, action: "graph.validate", harmless: true,
			summary: "The problems for which a change would be refused.", permission: "sif-plan-<domain> for each domain; sif-operator for guardrails",
			request: api.GraphRequest{}, reply: api.GraphReply{}},
		{pattern: "POST /v1/graph/plan", caller: callerOperator, call: c.planGraph, large: true, action: "graph.plan", harmless: true,
			summary: "What a change would do: reachability gained and lost, live endpoints and flows concerned, and what stands against it.", permission: "sif-plan-<domain> for each domain; sif-operator for guardrails",
			request: api.GraphRequest{}, reply: api.Plan{}},
		{pattern: "POST /v1/graph/diff", caller: callerOperator, call: c.diffGraph,
			summary: "The difference between two kept revisions.", permission: "sif-read",
			request: api.DiffRequest{}, reply: api.DiffReply{}},
		{pattern: "POST /v1/graph/rollback", caller: callerOperator, call: c.rollbackGraph, action: "graph.rollback",
			summary: "Takes up the graph of a kept revision again, guardrails included.", permission: "sif-operator; sif-read for a dry run",
			request: api.RollbackRequest{}, reply: api.RollbackReply{}},
		{pattern: "DELETE /v1/graph/domain/{name}", caller: callerOperator, call: c.deleteDomain, action: "graph.delete",
			summary: "Takes a domain and its contracts out of the graph.", permission: "sif-apply-<domain>",
			reply: api.GraphReply{}},
		{pattern: "GET /v1/history", caller: callerOperator, call: c.getHistory, query: blocking,
			summary: "The kept revisions, the newest first.", permission: "any",
			reply: api.History{}},
		{pattern: "GET /v1/status", caller: callerOperator, call: c.getStatus, query: blocking,
			summary: "The state of the fabric as nodes last reported it.", permission: "sif-read",
			reply: api.Status{}},
		{pattern: "POST /v1/dump", caller: callerOperator, call: c.dump,
			summary: "Has nodes read back what their data paths enforce.", permission: "sif-read",
			request: api.DumpRequest{}, reply: api.DumpReply{}},
		{pattern: "GET /v1/explain", caller: callerOperator, call: c.explain, query: []string{"from", "to", "port", "protocol"},
			summary: "Whether one party may open a flow to another, why, and what the data paths on the way hold about it.", permission: "sif-read or sif-read-<domain>, or what includes it, for the domains of both parties",
			reply: api.Explanation{}},
		{pattern: "POST /v1/probe", caller: callerOperator, call: c.probe, large: true, action: "probe", harmless: true,
			summary: "Has nodes do tasks, such as sending packets from an endpoint, and waits for the results.", permission: "sif-operator",
			request: api.ProbeRequest{}, reply: api.ProbeReply{}},

		{pattern: "PUT /v1/node", caller: callerNode, call: c.putNode, action: "node.register",
			summary: "Registers the calling node.", request: api.NodeRequest{}, reply: fabric.NodeRecord{}},
		{pattern: "PUT /v1/node/status", caller: callerNode, call: c.putStatus,
			summary: "Reports what the calling node enforces.", request: api.NodeStatus{}},
		{pattern: "GET /v1/node/tasks", caller: callerNode, call: c.getTasks, query: []string{"wait"},
			summary: "Tasks for the calling node, as soon as there are any.", reply: []api.Task{}},
		{pattern: "PUT /v1/node/tasks/{id}", caller: callerNode, call: c.putTask, large: true,
			summary: "The result of a task.", request: api.TaskResult{}},
		{pattern: "POST /v1/node/admission", caller: callerNode, call: c.postAdmission, action: "admission.grant",
			summary: "Admits an allocation that the scheduler placed on the calling node.", request: api.AdmissionRequest{}, reply: api.AdmissionReply{}},
		{pattern: "DELETE /v1/node/admission/{endpoint}", caller: callerNode, call: c.deleteAdmission, action: "admission.release",
			summary: "Ends the admission of an endpoint of the calling node."},
		{pattern: "POST /v1/node/certificate", caller: callerNode, call: c.postCertificate, action: "certificate.issue",
			summary: "A certificate for a service of which the calling node holds a live admission.", request: api.CertificateRequest{}, reply: api.CertificateReply{}},

		{pattern: "GET /v1/health", caller: callerAnyone, summary: "200 if this controller leads, else 503.", reply: api.ControllerStatus{}},
	}
}
