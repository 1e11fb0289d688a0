// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"net/http"
	"time"

	"github.com/sif-project/sif/fabric"
)

// RevokeRequest names what is to lose its rights: exactly one of a service, an endpoint and a
// certificate. A node is removed: see RemoveNode.
type RevokeRequest struct {
	Service  fabric.Ref `json:"service,omitzero"`
	Endpoint string     `json:"endpoint,omitempty"` // its ID, or the beginning of that of one with a live admission
	Serial   string     `json:"serial,omitempty"`   // of a certificate, in hexadecimal digits
	// Certificate is the certificate itself (DER), if it is at hand: Vault does not keep those that
	// it issues, and puts it on its own list of revoked certificates by this.
	Certificate []byte `json:"certificate,omitempty"`
	Reason      string `json:"reason,omitempty"`
}

// Revoked is what became of a RevokeRequest or a ReinstateRequest. It is in force at the
// controller, which hands it to the nodes.
type Revoked struct {
	Revocation fabric.Revocation `json:"revocation"`
	Sequence   uint64            `json:"sequence"`            // of the list that contains it
	Unchanged  bool              `json:"unchanged,omitempty"` // it was so before
	Endpoints  []string          `json:"endpoints,omitempty"` // that had a live admission and have lost their rights
	// Unstored says why the list is not in Consul yet. The controller hands it to the nodes, they
	// hand it to one another, and it is stored as soon as that is possible.
	Unstored string `json:"unstored,omitempty"`
	// Unchecked says why it is not known whether what was named exists.
	Unchecked string `json:"unchecked,omitempty"`
	// Vault says what Vault did with a certificate.
	Vault string `json:"vault,omitempty"`
}

// ReinstateRequest takes the revocation of a service or of an endpoint back.
type ReinstateRequest struct {
	Service  fabric.Ref `json:"service,omitzero"`
	Endpoint string     `json:"endpoint,omitempty"`
	Reason   string     `json:"reason,omitempty"` // for the audit log
}

// RevocationList is the signed list of removals and revocations, and who does not heed it yet.
type RevocationList struct {
	Sequence   uint64              `json:"sequence"`
	Issued     time.Time           `json:"issued,omitzero"`
	Tombstones []fabric.Tombstone  `json:"tombstones,omitempty"` // of removed nodes
	Revoked    []fabric.Revocation `json:"revoked,omitempty"`
	Behind     []ListBehind        `json:"behind,omitempty"` // ordered by node; as the daemons last reported
}

// ListBehind is a daemon that heeds an earlier list than the controller.
type ListBehind struct {
	Node     fabric.NodeID   `json:"node"`
	Kind     fabric.NodeKind `json:"kind"`
	Sequence uint64          `json:"sequence"`
	Reported time.Time       `json:"reported,omitzero"` // zero: not since the controller began to lead
}

// Revoke takes the rights of a service, an endpoint or a certificate away. While no controller
// leads because Consul is away, every controller does it.
func (c *Client) Revoke(ctx context.Context, req RevokeRequest) (Revoked, error) {
	var reply Revoked
	err := c.call(ctx, http.MethodPost, "/v1/revocations", req, &reply)
	return reply, err
}

// Reinstate takes the revocation of a service or an endpoint back. What was issued until then stays
// without rights.
func (c *Client) Reinstate(ctx context.Context, req ReinstateRequest) (Revoked, error) {
	var reply Revoked
	err := c.call(ctx, http.MethodPost, "/v1/revocations/reinstate", req, &reply)
	return reply, err
}

// RevocationList returns the list of removals and revocations. Every controller answers it.
func (c *Client) RevocationList(ctx context.Context) (RevocationList, error) {
	var reply RevocationList
	err := c.call(ctx, http.MethodGet, "/v1/revocations", nil, &reply)
	return reply, err
}
