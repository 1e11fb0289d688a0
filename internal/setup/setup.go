// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package setup prepares Vault, Consul and Nomad for a fabric, as an operator does once, with
// powerful tokens, before the first daemon starts. It creates mounts, keys, roles, policies and
// tokens, each with only the rights that its holder needs, and returns the secrets.
//
// It knows the APIs of the servers, and the names that the daemons use. It does not know how
// daemons, nodes or servers are started, and it stores nothing. Each function can be called again,
// for instance with another node: what exists stays, and new tokens and secret IDs are issued.
// Those issued before stay valid until they are revoked.
package setup

import (
	"fmt"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

// Spec describes the fabric that is set up.
type Spec struct {
	Fabric      string // its name, for descriptions
	TrustDomain string // of the SPIFFE IDs, such as sif.example.com
	Nodes       []Node // processors and workload nodes

	PKIMount     string        // Vault mount of the fabric's CA; wellknown.PKIMount if empty
	TransitMount string        // Vault mount of the signing key; wellknown.TransitMount if empty
	TransitKey   string        // name of the signing key; wellknown.TransitKey if empty
	CertTTL      time.Duration // lifetime of the certificates of daemons and workloads; DefaultCertTTL if 0
}

// Node is a processor or workload node.
type Node struct {
	fabric.NodeID
	Kind fabric.NodeKind // the organizational unit of its certificates
}

// DefaultCertTTL is the CertTTL of a Spec without one.
const DefaultCertTTL = 8 * time.Hour

func (s Spec) withDefaults() (Spec, error) {
	if s.TrustDomain == "" {
		return s, fmt.Errorf("the trust domain must not be empty")
	}
	for _, n := range s.Nodes {
		if n.Kind != fabric.KindProcessor && n.Kind != fabric.KindWorkload {
			return s, fmt.Errorf("node %s: its kind is %q, expected %q or %q", n.NodeID, n.Kind, fabric.KindProcessor, fabric.KindWorkload)
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
	if s.CertTTL > fabric.MaxCertificateLife {
		return s, fmt.Errorf("certificates must not live longer than %s, because removals of nodes are kept for the time after that; %s was asked for", fabric.MaxCertificateLife, s.CertTTL)
	}
	return s, nil
}
