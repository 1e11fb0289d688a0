// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package revision keeps the signed revision of the graph in Consul KV: the
// controller writes it, nodes follow it and believe nothing that does not
// verify. It knows objects, hashes and the pointer; not what a document means
// to whoever enforces it.
package revision

import (
	"context"
	"errors"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
)

// Errors that callers tell apart.
var (
	ErrConflict       = errors.New("the pointer was moved by somebody else meanwhile")
	ErrNoRevision     = errors.New("no graph has been applied yet")
	ErrUnknownService = errors.New("the graph has no such service")
)

// KeyCurrent is where the signed pointer lives.
const KeyCurrent = "sif/v1/current"

// ObjectKey is where an object lives.
func ObjectKey(h fabric.Hash) string { return "sif/v1/obj/" + h.String() }

// NodeKey is where a node's record lives.
func NodeKey(zone, node string) string { return "sif/v1/node/" + zone + "/" + node }

// Writer publishes revisions.
type Writer struct{}

// NewWriter returns a Writer.
func NewWriter(consul *consulapi.Client) *Writer { panic("todo") }

// Publish writes the objects that are missing, then moves the pointer, if its
// modify index is still casIndex (0: there is none yet). ErrConflict otherwise.
func (w *Writer) Publish(ctx context.Context, rev fabric.Revision, signed fabric.Signed, casIndex uint64) error {
	panic("todo")
}

// ReadCurrent returns the pointer as the store has it, unverified, and its
// modify index; ErrNoRevision if there is none.
func ReadCurrent(ctx context.Context, consul *consulapi.Client) (fabric.Signed, uint64, error) {
	panic("todo")
}

// ReadObject reads the object of that hash into v.
func ReadObject(ctx context.Context, consul *consulapi.Client, h fabric.Hash, v any) error {
	panic("todo")
}

// Follower follows the revision on a node.
type Follower struct{}

// NewFollower returns a Follower that holds what dir keeps of an earlier run.
func NewFollower(consul *consulapi.Client, dir, fabricName string, keys func() fabric.KeySet, log hclog.Logger) (*Follower, error) {
	panic("todo")
}

// Run follows the pointer until ctx ends.
func (f *Follower) Run(ctx context.Context) error { panic("todo") }

// Pointer returns the enforced pointer; zero before the first.
func (f *Follower) Pointer() fabric.Pointer { panic("todo") }

// Document returns a service's document at the enforced root; the service
// becomes an interest. ErrUnknownService, ErrNoRevision.
func (f *Follower) Document(ctx context.Context, service fabric.Ref) (fabric.Document, error) {
	panic("todo")
}

// Drop ends the interest in a service.
func (f *Follower) Drop(service fabric.Ref) { panic("todo") }

// Documents returns the documents of all interests.
func (f *Follower) Documents() map[fabric.Ref]fabric.Document { panic("todo") }

// OnChange has fn called after each switch to another revision. An interest
// that the graph no longer has comes with a document without edges.
func (f *Follower) OnChange(fn func(fabric.Pointer, map[fabric.Ref]fabric.Document)) { panic("todo") }

// Degraded returns what was refused and why, for people.
func (f *Follower) Degraded() []string { panic("todo") }
