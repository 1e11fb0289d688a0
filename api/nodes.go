// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/sif-project/sif/fabric"
)

// NodeList lists the nodes of the fabric.
type NodeList struct {
	Nodes   []NodeInfo         `json:"nodes"`             // ordered by zone and name
	Removed []fabric.Tombstone `json:"removed,omitempty"` // removals that are still kept, ordered by node and time
}

// NodeInfo is a registered node.
type NodeInfo struct {
	Node      fabric.Node `json:"node"`
	PublicKey []byte      `json:"publicKey,omitempty"` // of its links; empty: it has published none
	Endpoints int         `json:"endpoints"`           // with a live admission
	NomadNode string      `json:"nomadNode,omitempty"` // the ID of the Nomad node that it is; empty: it is not bound to one
	Version   string      `json:"version,omitempty"`   // as it last reported
	Reported  time.Time   `json:"reported,omitzero"`   // zero: not since the controller began to lead
}

// Removal is the removal of a node.
type Removal struct {
	Tombstone fabric.Tombstone `json:"tombstone"`
	Endpoints int              `json:"endpoints"` // whose admissions ended with it
	Sequence  uint64           `json:"sequence"`  // of the list of removed nodes
	Rests     time.Time        `json:"rests"`     // until then its pools are given to nobody
	// Unstored says why the list is not in Consul yet; see Revoked.
	Unstored string `json:"unstored,omitempty"`
}

// BindRequest binds a node to a Nomad node.
type BindRequest struct {
	// NomadNode is the ID of the Nomad node. Empty: the one at the node's underlay address.
	NomadNode string `json:"nomadNode,omitempty"`
}

// BindReply says which Nomad node a node is.
type BindReply struct {
	Node       fabric.NodeID `json:"node"`
	NomadNode  string        `json:"nomadNode"`
	Name       string        `json:"name"` // Nomad's name of it
	Datacenter string        `json:"datacenter"`
	Before     string        `json:"before,omitempty"` // the Nomad node that it was before
}

// BindNode says which Nomad node a node is, for one whose Nomad client was set up again. The
// message says why, for the audit log.
func (c *Client) BindNode(ctx context.Context, node fabric.NodeID, req BindRequest, message string) (BindReply, error) {
	var reply BindReply
	err := c.call(ctx, http.MethodPut, nodePath(node, "nomad", message), req, &reply)
	return reply, err
}

// DrainRequest says whether packets of other zones, and new flows to the outside, shall pass a
// processor.
type DrainRequest struct {
	Draining bool `json:"draining"`
}

// DrainNode says whether packets of other zones, and new flows to the outside, shall pass a
// processor, and returns its record. The message says why, for the audit log.
func (c *Client) DrainNode(ctx context.Context, node fabric.NodeID, req DrainRequest, message string) (fabric.Node, error) {
	var reply fabric.Node
	err := c.call(ctx, http.MethodPut, nodePath(node, "drain", message), req, &reply)
	return reply, err
}

// nodePath returns the path of a call about a node: of the node itself, or with what of a part of
// it. The message is the caller's reason.
func nodePath(node fabric.NodeID, what, message string) string {
	path := "/v1/nodes/" + url.PathEscape(node.Zone) + "/" + url.PathEscape(node.Name)
	if what != "" {
		path += "/" + what
	}
	if message != "" {
		path += "?message=" + url.QueryEscape(message)
	}
	return path
}

// Nodes lists the registered nodes.
func (c *Client) Nodes(ctx context.Context) (NodeList, error) {
	var reply NodeList
	err := c.call(ctx, http.MethodGet, "/v1/nodes", nil, &reply)
	return reply, err
}

// RemoveNode removes a node from the fabric. The message says why, for the tombstone and the audit
// log.
func (c *Client) RemoveNode(ctx context.Context, node fabric.NodeID, message string) (Removal, error) {
	var reply Removal
	err := c.call(ctx, http.MethodDelete, nodePath(node, "", message), nil, &reply)
	return reply, err
}
