// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/retry"
)

const (
	// putBackFirst and putBackMost are the shortest and the longest pause before a node puts its
	// record back. All records can be lost at once, so the pauses are spread.
	putBackFirst = time.Second
	putBackMost  = 30 * time.Second
	// putBackCalm is how long a record must have stayed for the pauses to begin anew. Two machines
	// with the identity of one node would otherwise replace each other's record without end.
	putBackCalm = time.Minute
)

// displaced reports whether Consul has another record of this node than the controller returned
// last, or none. Only the controller writes records, for this node, so that record was deleted,
// altered, or replaced by an old one from a snapshot.
func (n *Node) displaced() bool {
	n.mu.Lock()
	registered := n.registered
	n.mu.Unlock()
	stored, read := n.Roster.Published(n.Config.NodeID())
	if !read || len(registered.Node.Payload) == 0 {
		return false
	}
	var record fabric.NodeRecord
	if json.Unmarshal(stored, &record) != nil {
		return true
	}
	return !reflect.DeepEqual(record, registered) && !n.byOther(record, registered)
}

// byOther reports whether a record is later than the one that this daemon registered, and has
// what this daemon registered: of a node with two daemons, the other one may have registered since.
func (n *Node) byOther(record, registered fabric.NodeRecord) bool {
	var now, before fabric.Node
	keys := n.Identity.Keys()
	if n.Self.Kind != fabric.KindBoth || keys.Verify(record.Node, fabric.KindNode, &now) != nil || keys.Verify(registered.Node, fabric.KindNode, &before) != nil {
		return false
	}
	own := now.Engine == before.Engine
	if n.Links != nil {
		own = slices.EqualFunc(record.Certificate, registered.Certificate, bytes.Equal) &&
			bytes.Equal(record.Link, registered.Link) && bytes.Equal(record.Signature, registered.Signature)
	}
	return own && now.ID() == before.ID() && now.Underlay == before.Underlay && now.Issued.After(before.Issued)
}

// putBack decides when a displaced record is put back.
type putBack struct {
	pauses *backoff.ExponentialBackOff
	next   time.Time // when to put it back; zero while the record is in place
	last   time.Time // when it was put back
}

func newPutBack() *putBack {
	return &putBack{pauses: retry.Backoff(putBackFirst, putBackMost)}
}

// due reports whether the record must be put back now, and in what time to ask again. A record that
// is found again by then, for instance because Consul was read before a write of ours, is not put
// back.
func (p *putBack) due(displaced bool, now time.Time) (due bool, wait time.Duration) {
	switch {
	case !displaced:
		p.next = time.Time{}
		if now.Sub(p.last) > putBackCalm {
			p.pauses.Reset()
		}
		return false, linkInterval
	case p.next.IsZero():
		p.next = now.Add(p.pauses.NextBackOff())
	case !now.Before(p.next):
		p.last, p.next = now, now.Add(p.pauses.NextBackOff())
		return true, p.next.Sub(now)
	}
	return false, p.next.Sub(now)
}
