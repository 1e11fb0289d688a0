// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// callerKind is who may call a route.
type callerKind string

const (
	callerOperator callerKind = "operator"   // has a token of Consul or Vault
	callerNode     callerKind = "node"       // has the certificate of a node
	callerPeer     callerKind = "controller" // has the certificate of a controller
	callerAnyone   callerKind = "anyone"
)

// route is one call of the API. api/openapi.json is generated from the routes.
type route struct {
	pattern string
	caller  callerKind
	call    call
	large   bool // the body may contain a graph, a dump, or something of each endpoint of a node

	// Of the calls of one identity: so many at once, and then one each interval. Zero: callBurst
	// and callInterval.
	burst    int
	interval time.Duration

	action   string // in the audit log; empty: calls are not recorded
	harmless bool   // see auditEntry

	led leadership
	// The answer follows from the graph, which a controller that does not lead compares with Consul
	// first; or from what nodes report to the leader.
	compared, reported bool

	summary    string
	permission string   // what an operator's token needs
	query      []string // names of query parameters; see parameters
	request    any      // zero value of the body's type; nil: no body
	reply      any      // zero value of the reply's type; nil: no content
}

// leadership is which controller answers a route.
type leadership int

const (
	_ leadership = iota // the leader, which every route has that says nothing else
	// byAnyIfNone: the leader; while no controller leads, because Consul is away, every one. It is
	// for calls that take rights away, whose results of several controllers are put together, and
	// for what nodes report.
	byAnyIfNone
	byAny // every controller
)

// body returns how many bytes the body may have, and how long it may take to arrive.
func (r route) body() (most int, within time.Duration) {
	if r.large {
		return maxLargeBody, largeBodyTime
	}
	return maxBody, bodyTime
}

// parameters describes the query parameters by name.
var parameters = map[string]string{
	"index":     "Wait until the result is newer than this index, which is the value of the header " + api.IndexHeader + " of an earlier response.",
	"wait":      "Maximum time to wait, for instance 30s.",
	"since":     "Only records from this time on, in RFC 3339.",
	"until":     "Only records up to this time, in RFC 3339.",
	"actor":     "Only records whose actor contains this text.",
	"action":    "Only records whose action contains this text.",
	"target":    "Only records whose target contains this text.",
	"refused":   "true: only what was refused.",
	"begun":     "true: also the records that something is about to be carried out.",
	"limit":     "The newest so many records; 100 unless it is given.",
	"after":     "The number of the last record that the caller has; 0: none.",
	"standbyok": "With any value, a controller that does not lead and could is as good as the leader.",
	"message":   "Why, for the record of the change and the audit log.",
	"revision":  "Sequence of a revision in the history.",
	"from":      "The party that opens the flow: a service or external (domain/name), an endpoint or allocation (its ID or a prefix of it, or the name under which a node attached it), or an address.",
	"to":        "The party to which the flow is opened, in the same form as from.",
	"port":      "Destination port; the type for icmp and icmpv6.",
	"protocol":  "Protocol; the default is tcp.",
	"digest":    "Of the list that the caller has, in hexadecimal digits.",
}

// routes returns the routes of the whole API except /metrics.
func (c *Controller) routes() []route {
	blocking := []string{"index", "wait"}
	return []route{
		{pattern: "GET /v1/graph", caller: callerOperator, led: byAny, compared: true, call: c.getGraph, query: append([]string{"revision"}, blocking...),
			summary: "Returns the graph in force, or that of a revision in the history, as far as the token may read it.", permission: "sif-read or one of sif-read-, sif-plan- and sif-apply-<domain>",
			reply: api.GraphReply{}},
		{pattern: "PUT /v1/graph", caller: callerOperator, call: c.putGraph, large: true, action: "graph.apply",
			summary: "Puts domains, guardrails, bindings and links in force. They replace those with the same names.", permission: "sif-apply-<domain> for each domain; sif-operator for guardrails, bindings and links",
			request: api.GraphRequest{}, reply: api.GraphReply{}},
		{pattern: "POST /v1/graph/validate", caller: callerOperator, led: byAny, compared: true, call: c.validateGraph, large: true, action: "graph.validate", harmless: true,
			summary: "Returns the problems because of which a change would be refused.", permission: "sif-plan-<domain> for each domain; sif-operator for guardrails, bindings and links",
			request: api.GraphRequest{}, reply: api.GraphReply{}},
		{pattern: "POST /v1/graph/plan", caller: callerOperator, led: byAny, compared: true, call: c.planGraph, large: true, action: "graph.plan", harmless: true,
			summary: "Returns what a change would do: reachability gained and lost, live endpoints and flows affected, and problems that prevent it.", permission: "sif-plan-<domain> for each domain; sif-operator for guardrails, bindings and links",
			request: api.GraphRequest{}, reply: api.Plan{}},
		{pattern: "POST /v1/graph/diff", caller: callerOperator, led: byAny, compared: true, call: c.diffGraph,
			summary: "Compares two revisions in the history.", permission: "sif-read",
			request: api.DiffRequest{}, reply: api.DiffReply{}},
		{pattern: "POST /v1/graph/rollback", caller: callerOperator, call: c.rollbackGraph, action: "graph.rollback",
			summary: "Puts the domains of a revision in the history in force again, and its guardrails, bindings and links if the request says so.", permission: "sif-operator; sif-read for a dry run",
			request: api.RollbackRequest{}, reply: api.RollbackReply{}},
		{pattern: "DELETE /v1/graph/domain/{name}", caller: callerOperator, call: c.deleteDomain, action: "graph.delete",
			summary: "Removes a domain and its contracts from the graph.", permission: "sif-apply-<domain>",
			reply: api.GraphReply{}},
		{pattern: "GET /v1/history", caller: callerOperator, led: byAny, compared: true, call: c.getHistory, query: blocking,
			summary: "Returns the revisions in the history, newest first.", permission: "any",
			reply: api.History{}},
		{pattern: "GET /v1/status", caller: callerOperator, led: byAny, reported: true, call: c.getStatus, query: blocking,
			summary: "Returns the state of the fabric as the nodes last reported it.", permission: "sif-read",
			reply: api.Status{}},
		{pattern: "GET /v1/endpoints", caller: callerOperator, led: byAny, reported: true, call: c.getEndpoints,
			summary: "Returns the endpoints as their nodes last reported them, and what is attached and waits.", permission: "sif-read; or sif-read-, sif-plan- or sif-apply-<domain>: the endpoints of the domain",
			reply: api.EndpointList{}},
		{pattern: "GET /v1/nodes", caller: callerOperator, led: byAny, reported: true, call: c.getNodes,
			summary: "Returns the registered nodes, and the removals that are kept.", permission: "sif-read",
			reply: api.NodeList{}},
		{pattern: "GET /v1/links", caller: callerOperator, led: byAny, reported: true, call: c.getLinks,
			summary: "Returns the links between zones that the graph in force declares, or implies, and their tunnels as the nodes last reported them.", permission: "sif-read",
			reply: api.LinkList{}},
		{pattern: "DELETE /v1/nodes/{zone}/{name}", caller: callerOperator, call: c.deleteNode, query: []string{"message"}, action: "node.remove", led: byAnyIfNone,
			summary: "Removes a node: its links, its admissions and its certificates end on every node.", permission: "sif-operator",
			reply: api.Removal{}},
		{pattern: "PUT /v1/nodes/{zone}/{name}/drain", caller: callerOperator, call: c.putDrain, query: []string{"message"}, action: "node.drain",
			summary: "Says whether packets of other zones, and new flows to the outside, shall pass a processor.", permission: "sif-operator",
			request: api.DrainRequest{}, reply: fabric.Node{}},
		{pattern: "GET /v1/revocations", caller: callerOperator, call: c.getRevocations, led: byAny,
			summary: "Returns what was removed and revoked, and which daemons do not heed it yet.", permission: "sif-read",
			reply: api.RevocationList{}},
		{pattern: "POST /v1/revocations", caller: callerOperator, call: c.postRevocation, action: "revoke", led: byAnyIfNone,
			summary: "Revokes a service, an endpoint or a certificate: it loses all rights on every node, and is admitted no more.", permission: "sif-operator; for a service or an endpoint also sif-apply-<domain>",
			request: api.RevokeRequest{}, reply: api.Revoked{}},
		{pattern: "POST /v1/revocations/reinstate", caller: callerOperator, call: c.postReinstate, action: "reinstate",
			summary: "Takes the revocation of a service or an endpoint back. What was issued until then stays without rights.", permission: "sif-operator",
			request: api.ReinstateRequest{}, reply: api.Revoked{}},
		{pattern: "PUT /v1/nodes/{zone}/{name}/nomad", caller: callerOperator, call: c.putNomadNode, query: []string{"message"}, action: "node.bind",
			summary: "Says which Nomad node a node is, after its Nomad client was set up again.", permission: "sif-operator",
			request: api.BindRequest{}, reply: api.BindReply{}},
		{pattern: "GET /v1/audit", caller: callerOperator, led: byAny, call: c.getAudit, query: []string{"since", "until", "actor", "action", "target", "refused", "begun", "limit"},
			summary: "Returns the newest records of the audit logs of all controllers that the parameters select, oldest first.", permission: "sif-read",
			reply: []api.AuditRecord{}},
		{pattern: "GET /v1/audit/logs", caller: callerOperator, led: byAny, call: c.getAuditLogs,
			summary: "Returns the audit logs that there are, one of each controller.", permission: "sif-read",
			reply: []api.AuditLog{}},
		{pattern: "GET /v1/audit/logs/{controller}", caller: callerOperator, led: byAny, call: c.getAuditPage, query: []string{"after"},
			summary: "Returns records of the audit log of a controller as they are, for verification.", permission: "sif-read",
			reply: api.AuditPage{}},
		{pattern: "POST /v1/dump", caller: callerOperator, call: c.dump,
			summary: "Asks nodes to read back what their data paths enforce.", permission: "sif-read",
			request: api.DumpRequest{}, reply: api.DumpReply{}},
		{pattern: "GET /v1/explain", caller: callerOperator, call: c.explain, query: []string{"from", "to", "port", "protocol"},
			summary: "Explains whether one party may open a flow to another, and what the data paths on the way enforce for it.", permission: "sif-read; or sif-read-, sif-plan- or sif-apply-<domain> for the domains of both parties",
			reply: api.Explanation{}},
		{pattern: "POST /v1/flows", caller: callerOperator, call: c.postFlows,
			summary: "Returns records of flows that nodes keep, and with follow those that they make. The answer is one JSON object a line, for as long as nodes answer.", permission: "sif-read; or sif-read-, sif-plan- or sif-apply-<domain>: flows of the domain",
			request: api.FlowsRequest{}, reply: api.FlowsMessage{}},
		{pattern: "POST /v1/probe", caller: callerOperator, call: c.probe, large: true, action: "probe", harmless: true,
			summary: "Asks nodes to carry out tasks, such as sending packets from an endpoint, and returns the results.", permission: "sif-operator",
			request: api.ProbeRequest{}, reply: api.ProbeReply{}},

		{pattern: "PUT /v1/node", caller: callerNode, call: c.putNode, action: "node.register", burst: 20, interval: 3 * time.Second,
			summary: "Registers the calling node.", request: api.NodeRequest{}, reply: fabric.NodeRecord{}},
		{pattern: "PUT /v1/node/status", caller: callerNode, call: c.putStatus, led: byAnyIfNone, large: true, burst: 30, interval: 500 * time.Millisecond,
			summary: "Reports what the calling node enforces.", request: api.NodeStatus{}, reply: api.ReportReply{}},
		{pattern: "GET /v1/node/revocations", caller: callerNode, call: c.getNodeRevocations, query: []string{"index", "digest", "wait"}, led: byAny, burst: 60, interval: time.Second,
			summary: "Returns the signed list of removals and revocations, once it is another one than the calling node has.", reply: api.ListReply{}},
		{pattern: "PUT /v1/node/revocations", caller: callerNode, call: c.putRevocations, led: byAny, burst: 20, interval: 3 * time.Second,
			summary: "Accepts the signed list of removals and revocations that the calling node holds.", request: fabric.Signed{}},
		{pattern: "GET /v1/node/tasks", caller: callerNode, call: c.getTasks, query: []string{"wait"},
			summary: "Waits for tasks for the calling node.", reply: []api.Task{}},
		// `sif matrix` asks a node for thousands of probes. A result of no task is refused.
		{pattern: "PUT /v1/node/tasks/{id}", caller: callerNode, call: c.putTask, large: true, burst: 20_000, interval: time.Millisecond,
			summary: "Accepts the result of a task.", request: api.TaskResult{}},
		{pattern: "POST /v1/node/admission", caller: callerNode, call: c.postAdmission, action: "admission.grant",
			summary: "Admits an allocation that the scheduler placed on the calling node, or a workload that the node attached.", request: api.AdmissionRequest{}, reply: api.AdmissionReply{}},
		{pattern: "DELETE /v1/node/admission/{endpoint}", caller: callerNode, call: c.deleteAdmission, action: "admission.release",
			summary: "Ends the admission of an endpoint of the calling node."},
		{pattern: "GET /v1/node/admissions", caller: callerNode, call: c.getAdmissions,
			summary: "Returns the admissions of the calling node that are in force, and its addresses that rest.", reply: api.NodeAdmissions{}},
		{pattern: "GET /v1/node/lives", caller: callerNode, call: c.getLives, query: blocking,
			summary: "Returns what Nomad says about the endpoints of the calling node, once it is something else than the caller knows.", reply: api.EndpointLives{}},
		{pattern: "POST /v1/node/release", caller: callerNode, call: c.postRelease, large: true, action: "admission.release",
			summary: "Ends admissions of endpoints that the calling node does not have any more.", request: api.ReleaseRequest{}},
		{pattern: "POST /v1/node/certificate", caller: callerNode, call: c.postCertificate, action: "certificate.issue",
			summary: "Issues a certificate for a service of which the calling node has a live admission.", request: api.CertificateRequest{}, reply: api.CertificateReply{}},
		{pattern: "POST /v1/node/svid", caller: callerNode, call: c.postSVID, action: "svid.issue",
			summary: "Issues a certificate for the application of an endpoint of the calling node.", request: api.SVIDRequest{}, reply: api.CertificateReply{}},
		{pattern: "POST /v1/node/jwt-svid", caller: callerNode, call: c.postJWTSVID, action: "jwt-svid.issue",
			summary: "Issues a token for the application of an endpoint of the calling node.", request: api.JWTSVIDRequest{}, reply: api.JWTSVIDReply{}},

		{pattern: "GET /v1/controller", caller: callerPeer, led: byAny, call: c.getController,
			summary: "Returns the state of this controller, to another one.", reply: api.ControllerStatus{}},
		{pattern: "GET /v1/controller/view", caller: callerPeer, call: c.getView,
			summary: "Returns what the nodes last reported, to a controller that stands by.", reply: api.Status{}},

		{pattern: "GET /v1/health", caller: callerAnyone, query: []string{"standbyok"}, summary: "Returns status 200 if this controller leads and can write its data directory, otherwise 503.", reply: api.ControllerStatus{}},
	}
}
