// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"github.com/sif-project/sif/fabric"
)

// NodeRequest registers the calling node, whose zone, name and kind are in its certificate. A node
// registers first without a link, to learn its pools, and again each time its link statement
// changes.
type NodeRequest struct {
	Underlay    netip.Addr `json:"underlay"`
	Engine      uint16     `json:"engine,omitempty"`      // processor nodes: the TCP port of the engine; 0: the one in the record stays
	NoSwitch    bool       `json:"noSwitch,omitempty"`    // processor nodes: the engine has no switch
	Link        []byte     `json:"link,omitempty"`        // JSON of a fabric.Link; empty: the one in the record stays
	Certificate [][]byte   `json:"certificate,omitempty"` // DER, leaf first
	Signature   []byte     `json:"signature,omitempty"`   // over fabric.LinkSigningInput(Link)

	// NomadNode is the ID of the node's Nomad client, as its own agent says. The controller asks
	// Nomad's servers about it. Empty: it is not known yet.
	NomadNode string `json:"nomadNode,omitempty"`

	// Record is the record (fabric.Node) that the node holds. A controller whose Consul was set
	// back learns from it what it signed.
	Record *fabric.Signed `json:"record,omitempty"`
}

// AdmissionRequest requests the admission of a workload on the calling node: an allocation, whose
// service and roles the controller reads from the job in Nomad, or of a workload outside Nomad.
type AdmissionRequest struct {
	Allocation string     `json:"allocation"` // the endpoint's ID
	IPv4       netip.Addr `json:"ipv4"`       // chosen by the node from its pools
	IPv6       netip.Addr `json:"ipv6"`
	CSR        []byte     `json:"csr,omitempty"` // DER; empty if the node has a certificate of the service
	// VM says that the node made the interface of a virtual machine. The job must say so as well.
	VM       bool             `json:"vm,omitempty"`
	Attached *fabric.Attached `json:"attached,omitempty"` // nil: an allocation of Nomad
}

// AdmissionReply is an admission and, if the request has a CSR, the certificate of the service.
type AdmissionReply struct {
	Admission   fabric.Signed `json:"admission"`             // of a fabric.Admission
	Certificate [][]byte      `json:"certificate,omitempty"` // DER, leaf first
}

// CertificateRequest requests a certificate of a service. The calling node must have a valid
// admission of that service. Only the key of the CSR is used, not its names.
type CertificateRequest struct {
	Service fabric.Ref `json:"service"`
	CSR     []byte     `json:"csr"` // DER
}

// CertificateReply is a certificate chain.
type CertificateReply struct {
	Certificate [][]byte `json:"certificate"` // DER, leaf first
}

// NodeAdmissions is what the controller has of the endpoints of a node.
type NodeAdmissions struct {
	Live    []LiveAdmission  `json:"live,omitempty"`    // ordered by endpoint
	Resting []RestingAddress `json:"resting,omitempty"` // ordered by address
}

// LiveAdmission is an admission in force.
type LiveAdmission struct {
	Endpoint string     `json:"endpoint"`
	IPv4     netip.Addr `json:"ipv4"`
	IPv6     netip.Addr `json:"ipv6"`
	Issued   time.Time  `json:"issued"`
}

// RestingAddress is an address that no endpoint has, and that is not given to one yet.
type RestingAddress struct {
	Address netip.Addr `json:"address"`
	Until   time.Time  `json:"until"`
}

// ReleaseRequest ends admissions of endpoints that the calling node does not have any more.
type ReleaseRequest struct {
	// Issued says when the admission of each endpoint was issued. A later one stays.
	Issued map[string]time.Time `json:"issued"`
}

// RegisterNode registers the calling node and returns its record.
func (c *Client) RegisterNode(ctx context.Context, req NodeRequest) (fabric.NodeRecord, error) {
	var reply fabric.NodeRecord
	err := c.call(ctx, http.MethodPut, "/v1/node", req, &reply)
	return reply, err
}

// Admit admits an endpoint on the calling node, or renews its admission.
func (c *Client) Admit(ctx context.Context, req AdmissionRequest) (AdmissionReply, error) {
	var reply AdmissionReply
	err := c.call(ctx, http.MethodPost, "/v1/node/admission", req, &reply)
	return reply, err
}

// Release ends the admission of an endpoint of the calling node. It is not an error if there is
// none. The addresses are not assigned again for ten minutes.
func (c *Client) Release(ctx context.Context, endpoint string) error {
	return c.call(ctx, http.MethodDelete, "/v1/node/admission/"+url.PathEscape(endpoint), nil, nil)
}

// Admissions returns what the controller has of the endpoints of the calling node.
func (c *Client) Admissions(ctx context.Context) (NodeAdmissions, error) {
	var reply NodeAdmissions
	err := c.call(ctx, http.MethodGet, "/v1/node/admissions", nil, &reply)
	return reply, err
}

// ReleaseLost ends admissions of which a Release was lost.
func (c *Client) ReleaseLost(ctx context.Context, req ReleaseRequest) error {
	return c.call(ctx, http.MethodPost, "/v1/node/release", req, nil)
}

// Certificate issues a certificate of a service for a key of the calling node.
func (c *Client) Certificate(ctx context.Context, req CertificateRequest) ([][]byte, error) {
	var reply CertificateReply
	err := c.call(ctx, http.MethodPost, "/v1/node/certificate", req, &reply)
	return reply.Certificate, err
}

// ReportReply is what the controller tells a node about removals.
type ReportReply struct {
	Revocations uint64         `json:"revocations"`     // the sequence of the list of removed nodes that the controller has
	Newer       *fabric.Signed `json:"newer,omitempty"` // that list (fabric.Revocations), if it is newer than the node's
	// Away says who does not answer the controller, so that nothing is renewed; empty: all do.
	Away string `json:"away,omitempty"`
}

// Report reports what the calling node enforces.
func (c *Client) Report(ctx context.Context, status NodeStatus) (ReportReply, error) {
	var reply ReportReply
	err := c.call(ctx, http.MethodPut, "/v1/node/status", status, &reply)
	return reply, err
}

// Revocations hands the controller the list of removals and revocations that the calling node
// holds, when the controller has another one. Every controller takes it, also one that does not
// lead.
func (c *Client) Revocations(ctx context.Context, list fabric.Signed) error {
	return c.call(ctx, http.MethodPut, "/v1/node/revocations", list, nil)
}

// ListReply is the signed list of removals and revocations that the controller has.
type ListReply struct {
	Has  fabric.ListID  `json:"has"`
	List *fabric.Signed `json:"list,omitempty"` // unless it is the one that the caller has, or there is none
}

// AwaitRevocations returns the signed list of removals and revocations (fabric.Revocations) of the
// controller. It waits at most as long as wait for another one than the calling node has. Every
// controller answers it, also one that does not lead.
func (c *Client) AwaitRevocations(ctx context.Context, has fabric.ListID, wait time.Duration) (ListReply, error) {
	var reply ListReply
	query := url.Values{"index": {strconv.FormatUint(has.Sequence, 10)}, "digest": {has.Digest.String()}, "wait": {wait.String()}}
	err := c.call(ctx, http.MethodGet, "/v1/node/revocations?"+query.Encode(), nil, &reply)
	return reply, err
}

// Tasks returns the tasks of the calling node. It waits for them at most as long as wait, and
// returns an empty list if there are none.
func (c *Client) Tasks(ctx context.Context, wait time.Duration) ([]Task, error) {
	var tasks []Task
	err := c.call(ctx, http.MethodGet, "/v1/node/tasks?wait="+url.QueryEscape(wait.String()), nil, &tasks)
	return tasks, err
}

// TaskDone sends the result of a task, or reports that an observation has begun (TaskResult.Ready).
func (c *Client) TaskDone(ctx context.Context, result TaskResult) error {
	return c.call(ctx, http.MethodPut, "/v1/node/tasks/"+url.PathEscape(result.ID), result, nil)
}
