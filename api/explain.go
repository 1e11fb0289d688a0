// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"github.com/sif-project/sif/fabric"
)

// Question asks whether one party may open a flow to another. A party is a service or an external
// ("domain/name"), the ID or an ID prefix of an endpoint or allocation, or an address. A service
// stands for all its live endpoints. A flow may also go to a DNS name outside the fabric, or to
// "node": what listens on the node of the sender.
type Question struct {
	From, To string
	Protocol fabric.Protocol
	Port     uint16 // ICMP: the type
}

// Explanation compares what the graph declares about flows with what the nodes enforce.
type Explanation struct {
	Pointer  fabric.Pointer  `json:"pointer,omitzero"` // of the revision that declares it
	Signed   fabric.Signed   `json:"signed,omitzero"`  // the pointer, as the fabric signed it
	Protocol fabric.Protocol `json:"protocol"`
	Port     uint16          `json:"port"`
	Allowed  bool            `json:"allowed"` // the graph allows all flows
	Agree    bool            `json:"agree"`   // no flow has Differs
	Flows    []ExplainedFlow `json:"flows"`
}

// ExplainedFlow is the flow of one pair of parties.
type ExplainedFlow struct {
	From     Party            `json:"from"`
	To       Party            `json:"to"`
	Declared Declared         `json:"declared"`
	Layers   []ExplainedLayer `json:"layers,omitempty"` // on the path, in order; empty unless both parties are live
	Differs  []string         `json:"differs,omitempty"`
	Withheld string           `json:"withheld,omitempty"` // why DNS does not answer with To, in words that follow its name
}

// Party is one end of a flow: a live endpoint, a service without live endpoints, an external, a
// node by its health address, or an address that is not in the fabric.
type Party struct {
	Service  fabric.Ref    `json:"service,omitzero"`
	External fabric.Ref    `json:"external,omitzero"`
	Address  netip.Addr    `json:"address,omitzero"`  // of an external or a node, or outside the fabric
	DNSName  string        `json:"dnsName,omitempty"` // outside the fabric
	OwnNode  bool          `json:"ownNode,omitempty"` // what listens on the node of the sender
	Endpoint string        `json:"endpoint,omitempty"`
	Zone     string        `json:"zone,omitempty"`
	Node     fabric.NodeID `json:"node,omitzero"`
	Roles    fabric.Roles  `json:"roles,omitzero"` // of a service without endpoints: all roles that it may request
	IPv4     netip.Addr    `json:"ipv4,omitzero"`
	IPv6     netip.Addr    `json:"ipv6,omitzero"`
	Origin   fabric.Origin `json:"origin,omitzero"` // what a live endpoint is
	// Revoked says why the party has no rights, whatever the graph says; empty: it has them.
	Revoked string `json:"revoked,omitempty"`
}

// Live reports whether the party is a live endpoint.
func (p Party) Live() bool { return p.Endpoint != "" }

// Health reports whether the party is a node, by its health address.
func (p Party) Health() bool { return !p.Live() && !p.Node.IsZero() }

// Identity returns the identity of the party.
func (p Party) Identity() fabric.Identity {
	return fabric.Identity{Service: p.Service, Roles: p.Roles}
}

// Domain returns the domain of the party, or "" for an address outside the fabric.
func (p Party) Domain() string {
	if p.External != (fabric.Ref{}) {
		return p.External.Domain
	}
	return p.Service.Domain
}

// Outside reports whether the party is outside the fabric, or is what listens on the sender's node.
func (p Party) Outside() bool { return p.Service == (fabric.Ref{}) && !p.Health() }

// Name returns the name of the service or external, or the address.
func (p Party) Name() string {
	switch {
	case p.Service != fabric.Ref{}:
		return p.Service.String()
	case p.External != fabric.Ref{}:
		return p.External.String()
	}
	return p.What()
}

// What returns what the party is outside the fabric: an address, a DNS name or the sender's node;
// empty if that is not known.
func (p Party) What() string {
	switch {
	case p.OwnNode:
		return "the sender's node"
	case p.DNSName != "":
		return p.DNSName
	case p.Address.IsValid():
		return p.Address.String()
	}
	return ""
}

func (p Party) String() string {
	switch {
	case p.Live() && p.Origin.Attached != "":
		return fmt.Sprintf("%s (endpoint %s on %s, %s)", p.Service, p.Endpoint, p.Node, p.Origin)
	case p.Live():
		return fmt.Sprintf("%s (endpoint %s on %s)", p.Service, p.Endpoint, p.Node)
	case p.Service != fabric.Ref{}:
		return p.Service.String() + " (no live endpoint)"
	case p.External != fabric.Ref{} && p.What() != "":
		return fmt.Sprintf("external %s (%s)", p.External, p.What())
	case p.External != fabric.Ref{}:
		return "external " + p.External.String()
	case !p.Address.IsValid():
		return p.What()
	}
	if p.Health() {
		return fmt.Sprintf("%s (health address of %s)", p.Address, p.Node)
	}
	return p.Address.String() + " (not in the fabric)"
}

// Declared is what the graph declares about a flow.
type Declared struct {
	Allowed  bool       `json:"allowed"`
	Audit    bool       `json:"audit,omitempty"` // allowed only by audit mode, and reported
	Contract fabric.Ref `json:"contract,omitzero"`
	Reasons  []Reason   `json:"reasons"` // never empty
}

// Reason is one reason why a flow is allowed or not.
type Reason struct {
	Contract fabric.Ref      `json:"contract,omitzero"`
	Pos      fabric.Position `json:"pos,omitzero"` // where the contract, or what the reason is about, is declared
	Expires  time.Time       `json:"expires,omitzero"`
	Why      string          `json:"why"`
}

func (r Reason) String() string {
	if r.Contract == (fabric.Ref{}) {
		if r.Pos.File != "" {
			return r.Why + " (" + r.Pos.String() + ")"
		}
		return r.Why
	}
	s := "contract " + r.Contract.String()
	if r.Pos.File != "" {
		s += " (" + r.Pos.String() + ")"
	}
	return s + ": " + r.Why
}

// ExplainedLayer is what a data path on the path of a flow enforces for it.
type ExplainedLayer struct {
	Node     string `json:"node"`
	Layer    Layer  `json:"layer"`
	Place    string `json:"place"` // "sender", "boundary", "exit" or "receiver"
	Allowed  bool   `json:"allowed"`
	Unread   bool   `json:"unread,omitempty"` // the node did not read it back; Why says why
	Broken   bool   `json:"broken,omitempty"` // it has unexpected state, which may decide differently
	Contract string `json:"contract,omitempty"`
	Audit    bool   `json:"audit,omitempty"`
	// Follows is the revision that the node follows, if it is not the one in force.
	Follows *uint64 `json:"follows,omitempty"`
	Why     string  `json:"why"`
}

func (l ExplainedLayer) String() string {
	verdict := "drops"
	switch {
	case l.Unread:
		verdict = "unknown"
	case l.Allowed:
		verdict = "passes"
	}
	s := fmt.Sprintf("%s %s at the %s: %s: %s", l.Node, l.Layer, l.Place, verdict, l.Why)
	if l.Follows != nil {
		s += fmt.Sprintf(" (the node follows revision %d)", *l.Follows)
	}
	if l.Broken {
		s += " (but this data path has unexpected state)"
	}
	return s
}

// Explain answers a question. The nodes on the path read back what they enforce.
func (c *Client) Explain(ctx context.Context, q Question) (Explanation, error) {
	v := url.Values{"from": {q.From}, "to": {q.To}, "protocol": {q.Protocol.String()}, "port": {strconv.Itoa(int(q.Port))}}
	var reply Explanation
	err := c.call(ctx, http.MethodGet, withQuery("/v1/explain", v), nil, &reply)
	return reply, err
}
