// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Admission is the controller's signed statement (KindAdmission) about an endpoint: this workload,
// on this node, at these addresses, is an instance of that service with those roles, until it
// expires. Every engine and agent verifies it before it programs anything.
type Admission struct {
	Fabric   string     `json:"fabric"`
	Endpoint string     `json:"endpoint"` // unique in the fabric: the allocation's ID, or one that the node chose for what it attached
	Zone     string     `json:"zone"`
	Node     string     `json:"node"`
	IPv4     netip.Addr `json:"ipv4"`
	IPv6     netip.Addr `json:"ipv6"`
	Service  Ref        `json:"service"`
	Roles    Roles      `json:"roles"`
	Checks   []Check    `json:"checks,omitempty"`
	// HealthChecked says that the job declares health checks in Consul: the endpoint is not healthy
	// before they are there.
	HealthChecked bool `json:"healthChecked,omitempty"`
	// Ports are those that the workload names, for SRV records. They grant nothing.
	Ports  []NamedPort `json:"ports,omitempty"`
	Origin Origin      `json:"origin,omitzero"`
	// Registration is the hash of what the controller knew from Consul about a workload outside
	// Nomad. It keeps it from being altered where the controller stores it.
	Registration Hash      `json:"registration,omitzero"`
	Issued       time.Time `json:"issued"`
	Expires      time.Time `json:"expires"`
}

// NamedPort is a port inside the workload, under the label of the group's network or the name of
// its Consul service. Names may repeat.
type NamedPort struct {
	Name string `json:"name"`
	Port uint16 `json:"port"`
}

// Origin says what an endpoint is, for people. Policy does not depend on it.
type Origin struct {
	Namespace string `json:"namespace,omitempty"` // of Nomad
	Job       string `json:"job,omitempty"`
	Group     string `json:"group,omitempty"`
	VM        bool   `json:"vm,omitempty"`       // a virtual machine of its own
	Canary    bool   `json:"canary,omitempty"`   // of a deployment that was not promoted yet; its service may change then
	Consul    string `json:"consul,omitempty"`   // the Consul service of a workload outside Nomad
	Attached  string `json:"attached,omitempty"` // the name under which its node attached it
}

// String returns what the endpoint is, in words; empty if that is not known.
func (o Origin) String() string {
	var s string
	switch {
	case o.Attached != "":
		s = fmt.Sprintf("attached as %s, Consul service %s", o.Attached, o.Consul)
	case o.Job == "":
		return ""
	case o.Namespace != "" && o.Namespace != DefaultNamespace:
		s = fmt.Sprintf("job %s, group %s in namespace %s", o.Job, o.Group, o.Namespace)
	default:
		s = fmt.Sprintf("job %s, group %s", o.Job, o.Group)
	}
	if o.VM {
		s += ", a virtual machine"
	}
	return s
}

// Check is a port of a Nomad or Consul health check. The endpoint's own node may reach it.
type Check struct {
	Protocol Protocol `json:"protocol"`
	Port     uint16   `json:"port"`
}

// Host is the node that the endpoint was admitted on.
func (a Admission) Host() NodeID { return NodeID{Zone: a.Zone, Name: a.Node} }

// Identity returns the identity that policy applies to.
func (a Admission) Identity() Identity {
	return Identity{Service: a.Service, Roles: a.Roles}
}

// Current returns an error if the admission is not in force in the fabric at now.
func (a Admission) Current(fabric string, now time.Time) error {
	switch {
	case a.Fabric != fabric:
		return fmt.Errorf("admission of endpoint %s belongs to fabric %q, not %q", a.Endpoint, a.Fabric, fabric)
	case !now.Before(a.Expires):
		return fmt.Errorf("admission of endpoint %s expired at %s", a.Endpoint, a.Expires.Format(time.RFC3339))
	}
	return nil
}

// PlacedOn returns an error if the admission's addresses do not belong to n.
func (a Admission) PlacedOn(n Node) error {
	switch {
	case a.Host() != n.ID():
		return fmt.Errorf("endpoint %s was admitted on %s, not on %s", a.Endpoint, a.Host(), n.ID())
	case !n.Pool4.Contains(a.IPv4):
		return fmt.Errorf("address %s of endpoint %s is outside the pool %s of node %s", a.IPv4, a.Endpoint, n.Pool4, n.ID())
	case !n.Pool6.Contains(a.IPv6):
		return fmt.Errorf("address %s of endpoint %s is outside the pool %s of node %s", a.IPv6, a.Endpoint, n.Pool6, n.ID())
	}
	return nil
}

// CatalogName is the service's name in the Consul catalog.
func CatalogName(service Ref) string { return "sif-" + service.Domain + "--" + service.Name }

// CatalogID is the endpoint's service ID in the Consul catalog.
func CatalogID(zone, endpoint string) string { return "sif-" + zone + "-" + endpoint }

// Node is the controller's signed statement (KindNode) about a node: its place in the fabric, and
// the addresses of its endpoints.
type Node struct {
	Fabric   string     `json:"fabric"`
	Zone     string     `json:"zone"`
	Name     string     `json:"name"`
	Kind     NodeKind   `json:"kind"`
	Underlay netip.Addr `json:"underlay"`           // where its links listen
	Engine   uint16     `json:"engine,omitempty"`   // processors: TCP port of the engine, 0 before it registers
	NoSwitch bool       `json:"noSwitch,omitempty"` // processors: the engine only carries requests
	// Draining means that an operator wants no packets of other zones, and no new flows to the
	// outside, to pass the processor.
	Draining bool         `json:"draining,omitempty"`
	Pool4    netip.Prefix `json:"pool4"`
	Pool6    netip.Prefix `json:"pool6"`
	// Ranges contain all pools of the fabric. An address in them belongs to an endpoint or is
	// unused; it never belongs to an external.
	Ranges []netip.Prefix `json:"ranges"`
	Issued time.Time      `json:"issued"`
}

// ID names the node.
func (n Node) ID() NodeID { return NodeID{Zone: n.Zone, Name: n.Name} }

// Boundary reports whether the node has a switch, through which packets of other zones pass.
func (n Node) Boundary() bool { return n.Kind == KindProcessor && !n.NoSwitch }

// Health4 returns the node's own IPv4 address inside the fabric, its health address: the first of
// its pool, and so part of the signed record. No endpoint has it. Nodes exchange probes among these
// addresses, and an engine listens on it for engines of other zones.
func (n Node) Health4() netip.Addr { return n.Pool4.Addr().Next() }

// Health6 returns the node's IPv6 health address; see Health4.
func (n Node) Health6() netip.Addr { return n.Pool6.Addr().Next() }

// How many bits the prefix of a node's IPv4 pool can have. The largest pool has 4,093 addresses for
// endpoints, about as many as the data path has room for; the default one 1,021, and the smallest
// one 253.
const (
	LargestNodePrefix  = 20
	DefaultNodePrefix  = 22
	SmallestNodePrefix = 24
)

// CheckNodePrefix returns an error if the IPv4 pool of no node can have so many bits.
func CheckNodePrefix(bits int) error {
	if bits < LargestNodePrefix || bits > SmallestNodePrefix {
		return fmt.Errorf("a prefix of %d bits is outside %d (the largest pool) to %d (the smallest)", bits, LargestNodePrefix, SmallestNodePrefix)
	}
	return nil
}

// Pool is the controller's signed statement (KindPool) that a pair of address pools belongs to a
// node. It is made before the node's first record, and keeps the pools from being given to another
// node.
type Pool struct {
	Fabric string       `json:"fabric"`
	Number int          `json:"number"` // of its first unit of addresses, a /24 and a /64, in the fabric's prefixes
	Node   NodeID       `json:"node"`
	Pool4  netip.Prefix `json:"pool4"`
	Pool6  netip.Prefix `json:"pool6"`
	Issued time.Time    `json:"issued"`
}

// NomadNode is the controller's signed statement (KindNomadNode) about which node of Nomad a node
// of the fabric is. The controller admits on the node only what Nomad placed there.
type NomadNode struct {
	Fabric string    `json:"fabric"`
	Node   NodeID    `json:"node"`
	ID     string    `json:"id"` // Nomad's own; names and datacenters need not agree
	Issued time.Time `json:"issued"`
}

// Link is the part of a node's record that the node itself signs, with the key of its certificate:
// the public key of its WireGuard devices, the UDP port on which it listens for each peer, and
// further addresses.
type Link struct {
	Node      NodeID            `json:"node"`
	PublicKey []byte            `json:"publicKey"` // Curve25519, 32 bytes
	Ports     map[NodeID]uint16 `json:"ports"`     // by peer; the zero NodeID stands for the node's own zone
	// Tunnels are the UDP ports for declared links, by "zone/node#link": see LinkRule.
	Tunnels map[string]uint16 `json:"tunnels,omitempty"`
	// Addresses are those by which it is reached besides the underlay address, by the names that
	// its configuration gives them: see LinkRule.Endpoints.
	Addresses map[string]netip.Addr `json:"addresses,omitempty"`
	// Detour is absent if the node runs a version that never replaces its key.
	Detour *Detour   `json:"detour,omitempty"`
	Issued time.Time `json:"issued"`
}

// MaxAddresses is how many further addresses a node may publish.
const MaxAddresses = 16

// Port returns the UDP port on which the node listens for a peer.
func (l Link) Port(peer NodeID) uint16 {
	if p, ok := l.Ports[peer]; ok {
		return p
	}
	return l.Ports[NodeID{}]
}

// Tunnel returns the UDP port on which the node listens for a peer at the other end of a declared
// link; 0 if it has not published one.
func (l Link) Tunnel(peer NodeID, link string) uint16 {
	if link == "" {
		return l.Port(peer)
	}
	return l.Tunnels[peer.String()+"#"+link]
}

// Key returns the public key; a zero one if the node has published none.
func (l Link) Key() [publicKeySize]byte { return publicKey(l.PublicKey) }

// CheckAddress returns an error if a node cannot publish an address under a name.
func CheckAddress(name string, a netip.Addr) error {
	switch err := CheckName(name); {
	case err != nil:
		return err
	case name == DefaultEndpoints:
		return fmt.Errorf("%q is the underlay address", name)
	case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.Is4In6() || a.Zone() != "":
		return fmt.Errorf("address %q of name %q is not one that other nodes reach", a, name)
	}
	return nil
}

// Check returns an error if the statement cannot be used for a link of node.
func (l Link) Check(node NodeID) error {
	if l.Node != node {
		return fmt.Errorf("it is about node %s", l.Node)
	}
	if err := checkPublicKey(l.PublicKey); err != nil {
		return err
	}
	if l.Port(NodeID{}) == 0 {
		return errors.New("it has no UDP port for the nodes of its zone")
	}
	for peer, port := range l.Ports {
		if port == 0 {
			return fmt.Errorf("its UDP port for %s is 0", peer)
		}
	}
	for tunnel, port := range l.Tunnels {
		if port == 0 {
			return fmt.Errorf("its UDP port for %s is 0", tunnel)
		}
	}
	if len(l.Addresses) > MaxAddresses {
		return fmt.Errorf("it names %d addresses; the most is %d", len(l.Addresses), MaxAddresses)
	}
	for name, a := range l.Addresses {
		if err := CheckAddress(name, a); err != nil {
			return fmt.Errorf("its addresses: %w", err)
		}
	}
	if l.Detour == nil {
		return nil
	}
	if err := l.Detour.check(l.PublicKey); err != nil {
		return fmt.Errorf("its detour: %w", err)
	}
	return nil
}

// NodeRecord is a node as stored in Consul.
type NodeRecord struct {
	Node        Signed   `json:"node"`                  // KindNode
	Link        []byte   `json:"link,omitempty"`        // JSON of a Link
	Certificate [][]byte `json:"certificate,omitempty"` // DER, leaf first
	Signature   []byte   `json:"signature,omitempty"`   // by the leaf's key over LinkSigningInput(Link)
}

// LinkSigningInput returns the bytes that a node signs for its Link.
func LinkSigningInput(link []byte) []byte { return append([]byte("sif/v1/link\n"), link...) }

// Request is a connectivity request: an admission, and proof that the sender has the service's key
// on that node.
type Request struct {
	Admission   Signed   `json:"admission"`   // KindAdmission
	Certificate [][]byte `json:"certificate"` // DER, leaf first; its SPIFFE ID is the service's
	Signature   []byte   `json:"signature"`   // ECDSA (ASN.1) or Ed25519 over RequestSigningInput(Admission.Payload)
}

// RequestSigningInput returns the bytes that the service signs for a request.
func RequestSigningInput(admission []byte) []byte {
	return append([]byte("sif/v1/request\n"), admission...)
}

// SPIFFE returns the path of a service's SPIFFE ID.
func (r Ref) SPIFFE() string { return "/" + r.Domain + "/" + r.Name }

// ControllerSPIFFE is the path of the controller's SPIFFE ID.
const ControllerSPIFFE = "/controller"

// SortAdmissions orders admissions by endpoint.
func SortAdmissions(list []Admission) {
	slices.SortFunc(list, func(a, b Admission) int {
		switch {
		case a.Endpoint < b.Endpoint:
			return -1
		case a.Endpoint > b.Endpoint:
			return 1
		}
		return 0
	})
}
