// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package roster is the nodes of the fabric, from their doubly signed records
// in Consul KV. It does not know what a node is used for.
package roster

import (
	"context"
	"crypto/x509"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
)

// Member is a node whose record verified: the controller's word and its own.
// Link is zero while the node has published none.
type Member struct {
	fabric.Node
	Link fabric.Link `json:"link"`
}

// Watcher watches the records.
type Watcher struct{}

// New returns a Watcher that holds what dir keeps of an earlier run.
func New(consul *consulapi.Client, dir, fabricName, trustDomain string, keys func() fabric.KeySet, roots func() *x509.CertPool, log hclog.Logger) (*Watcher, error) {
	panic("todo")
}

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) error { panic("todo") }

// Members returns the nodes, ordered by zone and name.
func (w *Watcher) Members() []Member { panic("todo") }

// OnChange has fn called with all members after each change.
func (w *Watcher) OnChange(fn func([]Member)) { panic("todo") }

// Degraded returns what was refused and why, for people.
func (w *Watcher) Degraded() []string { panic("todo") }
