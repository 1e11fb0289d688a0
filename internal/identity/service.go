// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"time"

	"github.com/sif-project/sif/fabric"
)

// ServiceKeys are the keys and certificates of the services that have
// endpoints on this node.
type ServiceKeys struct{}

// OpenServiceKeys reads the keys kept in dir, which is made if need be.
func OpenServiceKeys(dir, trustDomain string) (*ServiceKeys, error) { panic("todo") }

// Key returns a certificate signing request (DER) for the service. A key is
// made the first time, and anew for every renewal.
func (k *ServiceKeys) Key(service fabric.Ref) (csr []byte, err error) { panic("todo") }

// Put stores the certificate (DER, leaf first) that was issued for the last
// request that Key returned.
func (k *ServiceKeys) Put(service fabric.Ref, chain [][]byte) error { panic("todo") }

// NeedsRenewal reports whether the service has no certificate, or one past
// two thirds of its life.
func (k *ServiceKeys) NeedsRenewal(service fabric.Ref) bool { panic("todo") }

// Sign signs msg with the service's key.
func (k *ServiceKeys) Sign(service fabric.Ref, msg []byte) (sig []byte, chain [][]byte, err error) {
	panic("todo")
}

// Expiry returns when the service's certificate expires; zero without one.
func (k *ServiceKeys) Expiry(service fabric.Ref) time.Time { panic("todo") }

// Services returns the services that have a certificate, in order.
func (k *ServiceKeys) Services() []fabric.Ref { panic("todo") }

// Drop removes the service's key and certificate.
func (k *ServiceKeys) Drop(service fabric.Ref) error { panic("todo") }
