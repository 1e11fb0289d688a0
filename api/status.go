// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/sif-project/sif/fabric"
)

// NodeStatus is what an agent or an engine reports about itself and its node. A node with both has
// two.
type NodeStatus struct {
	Zone               string            `json:"zone"`
	Node               string            `json:"node"`
	Kind               fabric.NodeKind   `json:"kind"`               // of the daemon: workload for an agent, processor for an engine
	NoSwitch           bool              `json:"noSwitch,omitempty"` // an engine that only carries requests, and has no data path; set by the controller
	Version            string            `json:"version"`
	Pool4              netip.Prefix      `json:"pool4,omitzero"` // in the signed record; set by the controller
	Pool6              netip.Prefix      `json:"pool6,omitzero"` // likewise
	Sequence           uint64            `json:"sequence"`       // of the revision enforced
	Root               fabric.Hash       `json:"root,omitzero"`  // of the revision enforced
	Revocations        uint64            `json:"revocations"`    // sequence of the list of removals and revocations that it heeds
	Endpoints          []EndpointStatus  `json:"endpoints,omitempty"`
	CertificateExpires time.Time         `json:"certificateExpires,omitzero"`
	Authorities        *AuthorityStatus  `json:"authorities,omitempty"`
	Degraded           []string          `json:"degraded,omitempty"` // one sentence each
	Links              []LinkStatus      `json:"links,omitempty"`
	LinkKey            *LinkKeyStatus    `json:"linkKey,omitempty"`  // nil: a node without links, or of an earlier version
	Ways               []WayStatus       `json:"ways,omitempty"`     // measured by probes, of links and paths to zones
	Enforced           *Enforced         `json:"enforced,omitempty"` // nil: not compared yet
	Drops              map[string]uint64 `json:"drops,omitempty"`    // packets by reason, since the rules were loaded

	// Told counts what workloads were told of packets that were dropped, by kind ("reset",
	// "prohibited"), and what they were not told because it was too much ("limited").
	Told map[string]uint64 `json:"told,omitempty"`
	// Refused counts connections and calls of other daemons that were refused because of a limit,
	// by reason, since the daemon started.
	Refused map[string]uint64 `json:"refused,omitempty"`
	// Repaired counts what others had changed on the node and was put back, by kind ("route"),
	// since the daemons started.
	Repaired map[string]uint64 `json:"repaired,omitempty"`

	// Exit has the addresses to which connections of workloads to the outside are translated: what
	// others may let in.
	Exit []ExitAddress `json:"exit,omitempty"`

	// Exposed are the ports that the node offers to its workloads, as far as contracts name them.
	Exposed []ExposedPort `json:"exposed,omitempty"`
	// Firewall is the node's own firewall towards the underlay; nil if another daemon of the
	// machine has it.
	Firewall *FirewallStatus `json:"firewall,omitempty"`

	Audited []FlowStatus `json:"audited,omitempty"` // flows allowed only by audit mode, since the agent started
	Flows   []FlowStatus `json:"flows,omitempty"`   // connections opened by endpoints of the node, or by externals to them

	// Recorded is what an agent records of flows; nil: its version records none.
	Recorded *RecordedStatus `json:"recorded,omitempty"`

	// OutsideNames are DNS names outside the fabric that are in force at the node, the first of
	// them if they are many, and RefusedNames some that no contract grants who asked, the latest
	// first.
	OutsideNames []fabric.Named `json:"outsideNames,omitempty"`
	RefusedNames []RefusedName  `json:"refusedNames,omitempty"`

	// State is what a processor with a switch has published of itself; nil of other nodes.
	State *ProcessorState `json:"state,omitempty"`

	// Waiting is what is attached to the node from outside Nomad and has no endpoint now.
	Waiting []WaitingAttachment `json:"waiting,omitempty"`

	// Outage is what the daemon has measured of an outage; nil: all whom it needs answer.
	Outage *Outage `json:"outage,omitempty"`

	Reported time.Time `json:"reported"` // set by the controller
}

// Outage says for how long a daemon has been without those whose word ends and renews what it
// holds, and until when it honours beyond its end what it held in force when that began.
type Outage struct {
	Since time.Time `json:"since"`
	Until time.Time `json:"until"` // then nothing is honoured beyond its end any more
	Why   string    `json:"why"`   // who does not answer
	// Back is since when all answer again: what was honoured is being renewed. Zero: they do not.
	Back time.Time `json:"back,omitzero"`
	// Honoured is the number of endpoints, of the node itself and of others, that would have ended.
	Honoured int `json:"honoured,omitempty"`
}

// ProcessorState is what the engine of a processor has published last of itself and its tunnels.
type ProcessorState struct {
	Number   uint64 `json:"number"`
	Ready    bool   `json:"ready"`              // its switch enforces what it should
	Draining bool   `json:"draining,omitempty"` // an operator wants no packets to pass there
	// Silent are the tunnels whose other end does not answer, "zone/node" or "zone/node#link", and
	// Unreached the workload nodes of the zone that do not, "zone/node".
	Silent    []string `json:"silent,omitempty"`
	Unreached []string `json:"unreached,omitempty"`
}

// WaitingAttachment is a workload outside Nomad that is attached to a node and waits to take part
// again, mostly for the registration of its Consul service.
type WaitingAttachment struct {
	Name          string    `json:"name"`
	ConsulService string    `json:"consulService"`
	Endpoint      string    `json:"endpoint"` // the ID that it had, and will have
	Since         time.Time `json:"since"`    // when it was attached
	Why           string    `json:"why"`
}

// RefusedName is a DNS name outside the fabric that no contract grants the service that asked.
type RefusedName struct {
	Service fabric.Ref `json:"service"`
	Name    string     `json:"name"` // as it was asked for
	Count   uint64     `json:"count"`
	Last    time.Time  `json:"last"`
}

// Daemon names the daemon: "agent" or "engine".
func (s NodeStatus) Daemon() string {
	if s.Kind == fabric.KindProcessor {
		return "engine"
	}
	return "agent"
}

// Lasts returns when the first of what the daemon holds expires, and what that is: for as long it
// needs nothing of Vault and the controller. What is revoked does not count. The time is zero if it
// holds nothing that expires.
func (s NodeStatus) Lasts() (until time.Time, what string) {
	first := func(t time.Time, of string) {
		if !t.IsZero() && (until.IsZero() || t.Before(until)) {
			until, what = t, of
		}
	}
	first(s.CertificateExpires, "its certificate")
	for _, e := range s.Endpoints {
		if e.Revoked == "" {
			first(e.Expires, "the admission of endpoint "+e.Endpoint)
			first(e.CertificateExpires, "the certificate of service "+e.Service.String())
		}
	}
	return until, what
}

// ID names the node.
func (s NodeStatus) ID() fabric.NodeID { return fabric.NodeID{Zone: s.Zone, Name: s.Node} }

// Enforced is what a node's data path contained when it was last read back and compared with what
// the node believes that it must contain.
type Enforced struct {
	Age    time.Duration `json:"age"`    // of the comparison, at the time of the report, in nanoseconds
	Digest string        `json:"digest"` // see Dump.Digest; after the differences were repaired
	// Repaired is the number of differences that the comparison found and that were repaired.
	Repaired int `json:"repaired,omitempty"`
	// Outside is what the node knew of the outside then.
	Outside fabric.Outside `json:"outside,omitzero"`
}

// ExitAddress is the address that the outside sees instead of those of workloads.
type ExitAddress struct {
	Address   netip.Addr `json:"address"`
	Interface string     `json:"interface"` // by which connections leave
}

// EndpointStatus is an endpoint as its node enforces it.
type EndpointStatus struct {
	Endpoint string        `json:"endpoint"`
	Origin   fabric.Origin `json:"origin,omitzero"` // what it is
	Service  fabric.Ref    `json:"service,omitzero"`
	Roles    fabric.Roles  `json:"roles"`
	IPv4     netip.Addr    `json:"ipv4"`
	IPv6     netip.Addr    `json:"ipv6"`
	Expires  time.Time     `json:"expires,omitzero"` // of the admission
	// Honoured says that the admission has ended, and is honoured because of an outage.
	Honoured           bool      `json:"honoured,omitempty"`
	InForce            bool      `json:"inForce"`
	Revoked            string    `json:"revoked,omitempty"`  // why it has no rights: it, its service, its certificate or its node is revoked; empty: it has them
	Pending            []string  `json:"pending,omitempty"`  // where its connectivity is not in force yet: "zone/node: reason"
	Withheld           string    `json:"withheld,omitempty"` // why DNS does not answer with it; empty: it does
	CertificateExpires time.Time `json:"certificateExpires,omitzero"`

	Checks []fabric.Check  `json:"checks,omitempty"` // through which the node itself may reach the endpoint
	Ports  []PublishedPort `json:"ports,omitempty"`  // of the node that lead to it

	Process *Process `json:"process,omitempty"` // of the node's own namespace, that has the endpoint
}

// Process is a process of a node's own network namespace that has an endpoint.
type Process struct {
	Ports  []string `json:"ports,omitempty"`  // that are led to it, such as "tcp/5432"
	Silent []string `json:"silent,omitempty"` // those of them on which nobody listens
	Cgroup string   `json:"cgroup,omitempty"` // whose processes send by the endpoint; empty: none do
	// NoCgroup says that there is no such cgroup now: the processes do not run.
	NoCgroup bool `json:"noCgroup,omitempty"`
}

// PublishedPort is a port of a node that leads to an endpoint. Who may use it, contracts say.
type PublishedPort struct {
	Protocol fabric.Protocol `json:"protocol"`
	From     netip.AddrPort  `json:"from"` // of the node; an unspecified address is every address of its family
	To       netip.AddrPort  `json:"to"`   // of the endpoint
}

// ExposedPort is a port that a node offers to its workloads: at 169.254.1.1 if To has an IPv4
// address, at fe80::1 otherwise.
type ExposedPort struct {
	Protocol fabric.Protocol `json:"protocol"`
	Port     uint16          `json:"port"`
	To       netip.AddrPort  `json:"to"` // of the node, where the process listens
}

// FlowStatus counts the flows of one contract, protocol and port between two services.
type FlowStatus struct {
	From     fabric.Ref      `json:"from"` // if several externals share the address: the first of them
	To       fabric.Ref      `json:"to"`
	Contract fabric.Ref      `json:"contract"`
	Protocol fabric.Protocol `json:"protocol"`
	Port     uint16          `json:"port"`  // ICMP: the type
	Count    uint64          `json:"count"` // Audited: flows opened; Flows: connections in the table
	Last     time.Time       `json:"last"`  // when a packet of one of them was last seen
}

// LinkKeyStatus is the WireGuard key of a node's links.
type LinkKeyStatus struct {
	Made   time.Time       `json:"made"`
	Period time.Duration   `json:"period"`          // after which it is replaced, in nanoseconds; 0: never
	Phase  fabric.KeyPhase `json:"phase,omitempty"` // of its replacement; empty: it is not being replaced
	// Waiting says for whom the replacement waits, and why.
	Waiting []string `json:"waiting,omitempty"`
}

// LinkStatus is an encrypted link of a node.
type LinkStatus struct {
	Peer string `json:"peer"` // zone/node
	// Link is the name of the declared link; empty within a zone, and if the fabric declares none.
	Link          string    `json:"link,omitempty"`
	Device        string    `json:"device,omitempty"`   // "kernel" or "userspace": what encrypts
	Endpoint      string    `json:"endpoint,omitempty"` // address and port at which the peer is now; empty: not known
	LastHandshake time.Time `json:"lastHandshake,omitzero"`
	Rx            uint64    `json:"rx"` // bytes
	Tx            uint64    `json:"tx"`
}

// AuthorityStatus says what a daemon has of the fabric's authorities, which are named by their
// subject key identifiers in hexadecimal, and of the versions of the fabric's key.
type AuthorityStatus struct {
	Trusted []string       `json:"trusted"`          // with which it verifies certificates
	Issued  map[string]int `json:"issued"`           // certificates that it uses, by who issued them
	Keys    []int          `json:"keys"`             // versions of the fabric's signing key whose signatures count
	Lowest  int            `json:"lowest,omitempty"` // of them, which only grows; 0: not known
	// Statements counts what it relies on by the version of the fabric's key that signed it.
	Statements map[int]int `json:"statements"`
	// TokenKeys are the IDs of the keys with which it verifies tokens of applications. Only agents
	// have them.
	TokenKeys []string `json:"tokenKeys,omitempty"`
}

// ControllerStatus is what the controller reports about itself.
type ControllerStatus struct {
	Address            string    `json:"address"`
	Version            string    `json:"version"`
	Leader             bool      `json:"leader"`
	CertificateExpires time.Time `json:"certificateExpires,omitzero"`
	Degraded           []string  `json:"degraded,omitempty"`

	Authorities *AuthorityStatus `json:"authorities,omitempty"`
	Signs       int              `json:"signs,omitempty"` // version of the fabric's key that it has sign
	// Tokens says for how long tokens of applications still live, in nanoseconds, that this
	// controller had signed with each key, by the key's ID; "" are any that an earlier process had.
	Tokens map[string]time.Duration `json:"tokens,omitempty"`

	Revision uint64 `json:"revision,omitempty"` // sequence of the revision that it knows
	// Away says why it does not answer the controller that was asked; empty: it does.
	Away  string    `json:"away,omitempty"`
	Since time.Time `json:"since,omitzero"` // when it began to be as it is: leading, standing by, or away
	// Outage is what it has measured of an outage; nil: all whom it needs answer.
	Outage *Outage `json:"outage,omitempty"`
}

// Status is the state of the fabric. Nodes lists all registered nodes; a node that has not reported
// since the controller started has a zero Reported.
type Status struct {
	Fabric     string           `json:"fabric"`
	Pointer    fabric.Pointer   `json:"pointer,omitzero"`
	Controller ControllerStatus `json:"controller"` // the one that answered
	// Controllers are the others.
	Controllers []ControllerStatus `json:"controllers,omitempty"`
	// Age is how old the reports can be because the controller that answered does not lead, in
	// nanoseconds.
	Age   time.Duration `json:"age,omitempty"`
	Nodes []NodeStatus  `json:"nodes"`
	// Revocations is about the signed list of removals and revocations.
	Revocations RevocationStatus `json:"revocations,omitzero"`
	// Warnings are about the graph in force, one sentence each. They degrade nothing.
	Warnings []string `json:"warnings,omitempty"`
}

// RevocationStatus counts what is removed and revoked, and says who does not heed it yet.
type RevocationStatus struct {
	Sequence     uint64       `json:"sequence"`               // of the signed list
	Removed      int          `json:"removed,omitempty"`      // incarnations of nodes
	Services     int          `json:"services,omitempty"`     // without those that were reinstated
	Endpoints    int          `json:"endpoints,omitempty"`    // likewise
	Certificates int          `json:"certificates,omitempty"` // by their serial numbers
	Behind       []ListBehind `json:"behind,omitempty"`
}

// Status returns the state of the fabric.
func (c *Client) Status(ctx context.Context) (Status, error) {
	reply, _, err := c.WatchStatus(ctx, Query{})
	return reply, err
}

// WatchStatus is Status as a blocking query, like WatchGraph.
func (c *Client) WatchStatus(ctx context.Context, q Query) (Status, uint64, error) {
	var reply Status
	index, err := c.read(ctx, withQuery("/v1/status", q.values()), &reply)
	return reply, index, err
}

// Controller returns the state of a controller, to another one.
func (c *Client) Controller(ctx context.Context) (ControllerStatus, error) {
	var reply ControllerStatus
	err := c.call(ctx, http.MethodGet, "/v1/controller", nil, &reply)
	return reply, err
}

// ControllerView returns the state of the fabric as the leader knows it, to another controller.
func (c *Client) ControllerView(ctx context.Context) (Status, error) {
	var reply Status
	err := c.call(ctx, http.MethodGet, "/v1/controller/view", nil, &reply)
	return reply, err
}

// Health returns an error unless the controller answers and is the leader. No other one is asked.
func (c *Client) Health(ctx context.Context) (ControllerStatus, error) {
	var reply ControllerStatus
	err := c.health(ctx, "/v1/health", &reply)
	return reply, err
}

// Standby returns an error unless the controller answers and leads, or could lead.
func (c *Client) Standby(ctx context.Context) (ControllerStatus, error) {
	var reply ControllerStatus
	err := c.health(ctx, "/v1/health?standbyok=true", &reply)
	return reply, err
}

// health asks the controller at the address that answered last, and no other one.
func (c *Client) health(ctx context.Context, path string, reply *ControllerStatus) error {
	only := *c
	only.alone = true
	return only.call(ctx, http.MethodGet, path, nil, reply)
}
