// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package setup prepares Vault, Consul and Nomad for a fabric: what an operator does once, with powerful tokens,
// before the first daemon starts. It makes the mounts, keys, roles, policies and tokens, each with no more rights
// than its holder needs, and hands back the secrets.
//
// It knows the servers' APIs and the names that the daemons rely on. It knows nothing of how the daemons, the nodes
// or the servers themselves are started, and keeps nothing: every function can be called again, for instance with
// a further node, and leaves what is there in place. Called again it issues fresh tokens and secret IDs; those issued
// before stay valid until they are revoked.
package setup

import (
	"fmt"
	"time"

	"github.com/sif-project/sif/internal/wellknown"
)

// The names by which the controller knows what operators may do, of policies in Consul and in Vault alike. Those of
// single domains are for the operator to make; see docs/policy.md.
const (
	OperatorPolicy = "sif-operator" // everything
	ReadPolicy     = "sif-read"     // read everything
)

// Spec says what is set up.
type Spec struct {
	Fabric      string // its name, for descriptions
	TrustDomain string // of the SPIFFE IDs, such as sif.example.com
	Nodes       []Node // processors and workload nodes

	PKIMount     string        // Vault mount of the fabric's CA; wellknown.PKIMount if empty
	TransitMount string        // Vault mount of the signing key; wellknown.TransitMount if empty
	TransitKey   string        // name of the signing key; wellknown.TransitKey if empty
	CertTTL      time.Duration // life of the daemons' and workloads' certificates; DefaultCertTTL if 0
}

// Node is a processor or workload node.
type Node struct {
	Zone string
	Name string
	Kind string // KindProcessor or KindWorkload: its certificates say so in their organizational unit
}

// Kinds of node, as the organizational unit of node certificates names them.
const (
	KindProcessor = "processor"
	KindWorkload  = "workload"
)

// DefaultCertTTL is the CertTTL of a Spec without one.
const DefaultCertTTL = 8 * time.Hour

// ID is the name under which a node is listed in the maps of results: zone/name.
func (n Node) ID() string { return n.Zone + "/" + n.Name }

func (s Spec) withDefaults() (Spec, error) {
	if s.TrustDomain == "" {
		return s, fmt.Errorf("the trust domain is empty")
	}
	for _, n := range s.Nodes {
		if n.Kind != KindProcessor && n.Kind != KindWorkload {
			return s, fmt.Errorf("node %s: unknown kind %q", n.ID(), n.Kind)
		}
	}
	if s.PKIMount == "" {
		s.PKIMount = wellknown.PKIMount
	}
	if s.TransitMount == "" {
		s.TransitMount = wellknown.TransitMount
	}
	if s.TransitKey == "" {
		s.TransitKey = wellknown.TransitKey
	}
	if s.CertTTL == 0 {
		s.CertTTL = DefaultCertTTL
	}
	return s, nil
}
