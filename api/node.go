// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/sif-project/sif/fabric"
)

// NodeRequest registers the calling node, whose zone, name and kind are those
// of its certificate. A node registers first without a link, to learn its
// pools, and again whenever its link statement changes.
type NodeRequest struct {
	Underlay    netip.Addr `json:"underlay"`
	Engine      uint16     `json:"engine,omitempty"`      // processors: TCP port of the engine
	Link        []byte     `json:"link,omitempty"`        // JSON of a fabric.Link; empty keeps the one on record
	Certificate [][]byte   `json:"certificate,omitempty"` // DER, leaf first
	Signature   []byte     `json:"signature,omitempty"`   // over fabric.LinkSigningInput(Link)
}

// AdmissionRequest asks for the admission of an allocation that runs on the
// calling node. Service and roles are not in it: the controller reads them
// from the job as Nomad reports it.
type AdmissionRequest struct {
	Allocation string     `json:"allocation"`
	IPv4       netip.Addr `json:"ipv4"` // chosen by the node from its pools
	IPv6       netip.Addr `json:"ipv6"`
	CSR        []byte     `json:"csr,omitempty"` // DER; empty if the node holds a certificate of the service
}

// AdmissionReply is an admission and, if a CSR came with the request, the
// service's certificate.
type AdmissionReply struct {
	Admission   fabric.Signed `json:"admission"`             // of a fabric.Admission
	Certificate [][]byte      `json:"certificate,omitempty"` // DER, leaf first
}

// CertificateRequest asks for a certificate of a service of which the calling
// node holds a live admission. Names in the CSR are ignored; its key counts.
type CertificateRequest struct {
	Service fabric.Ref `json:"service"`
	CSR     []byte     `json:"csr"` // DER
}

// CertificateReply is a certificate chain.
type CertificateReply struct {
	Certificate [][]byte `json:"certificate"` // DER, leaf first
}

// RegisterNode registers the calling node and returns its record.
func (c *Client) RegisterNode(ctx context.Context, req NodeRequest) (fabric.NodeRecord, error) {
	var reply fabric.NodeRecord
	err := c.call(ctx, http.MethodPut, "/v1/node", req, &reply)
	return reply, err
}

// Admit admits an endpoint on the calling node. Asking again for the same
// allocation renews its admission.
func (c *Client) Admit(ctx context.Context, req AdmissionRequest) (AdmissionReply, error) {
	var reply AdmissionReply
	err := c.call(ctx, http.MethodPost, "/v1/node/admission", req, &reply)
	return reply, err
}

// Release ends the admission of an endpoint of the calling node. Releasing
// one that is not admitted is no error. Its addresses rest for ten minutes.
func (c *Client) Release(ctx context.Context, endpoint string) error {
	return c.call(ctx, http.MethodDelete, "/v1/node/admission/"+url.PathEscape(endpoint), nil, nil)
}

// Certificate has a certificate of a service issued for a key of the node.
func (c *Client) Certificate(ctx context.Context, req CertificateRequest) ([][]byte, error) {
	var reply CertificateReply
	err := c.call(ctx, http.MethodPost, "/v1/node/certificate", req, &reply)
	return reply.Certificate, err
}

// Report hands the calling node's status to the controller.
func (c *Client) Report(ctx context.Context, status NodeStatus) error {
	return c.call(ctx, http.MethodPut, "/v1/node/status", status, nil)
}

// Tasks waits at most wait for tasks of the calling node. An empty list means
// that there were none; ask again.
func (c *Client) Tasks(ctx context.Context, wait time.Duration) ([]Task, error) {
	var tasks []Task
	err := c.call(ctx, http.MethodGet, "/v1/node/tasks?wait="+url.QueryEscape(wait.String()), nil, &tasks)
	return tasks, err
}

// TaskDone hands in the result of a task, or reports that an observation has
// begun (TaskResult.Ready).
func (c *Client) TaskDone(ctx context.Context, result TaskResult) error {
	return c.call(ctx, http.MethodPut, "/v1/node/tasks/"+url.PathEscape(result.ID), result, nil)
}
