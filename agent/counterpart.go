// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"slices"
	"sync"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/lease"
	"github.com/sif-project/sif/internal/node/rpc"
)

// announced verifies the counterparts that an engine announces, and returns after they are
// programmed and on disk.
func (a *Agent) announced(p rpc.AnnounceParams) (rpc.AnnounceReply, error) {
	verifier := a.node.Verifier()
	reply := rpc.AnnounceReply{Refused: map[string]string{}}
	var accepted []fabric.Admission
	for _, r := range p.Requests {
		if adm, held := a.counterparts.InForce(r, a.now()); held {
			accepted = append(accepted, adm)
			continue // verified before, and valid until it expires, even if its certificate has expired
		}
		adm, err := verifier.Verify(r, a.now())
		if err != nil {
			a.log.Warn("counterpart refused", logkey.Endpoint, adm.Endpoint, logkey.Error, err)
			reply.Refused[adm.Endpoint] = err.Error()
			continue
		}
		a.counterparts.Accept(lease.Lease{Request: r, Admission: adm, Since: a.now()})
		accepted = append(accepted, adm)
	}
	defer a.counterparts.Save()()
	var held []fabric.Admission // what the engine announced may be older
	for _, adm := range accepted {
		if le, ok := a.counterparts.Get(adm.Endpoint); ok && !adm.Issued.Before(le.Admission.Issued) {
			held = append(held, adm)
		}
	}
	a.engines.zone.announced(held)
	if err := a.reprogram.Call(); err != nil {
		a.node.Degrade("data path", err)
		for _, adm := range accepted {
			if !a.inKernel(adm) {
				reply.Refused[adm.Endpoint] = err.Error()
			}
		}
	}
	return reply, nil
}

// compare compares the counterparts with those that an engine has announced. It forgets none: the
// engine withdraws what has ended.
func (a *Agent) compare(p rpc.SyncParams) rpc.SyncReply {
	reply := rpc.SyncReply{Missing: a.counterparts.Lacking(p.Endpoints)}
	for _, le := range a.counterparts.All(a.now()) {
		if _, listed := p.Endpoints[le.Admission.Endpoint]; !listed {
			reply.Unlisted = append(reply.Unlisted, rpc.Held{Endpoint: le.Admission.Endpoint, Node: le.Admission.Host()})
		}
	}
	return reply
}

// withdrawn removes counterparts that have ended by their owners' word. An engine that was away may
// not know yet what the agent of another node said meanwhile: if that has not ended, the engine
// learns of it; if it has, the engine withdraws it again at its next comparison.
func (a *Agent) withdrawn(endpoints []string) error {
	return a.forget(func(le lease.Lease) bool {
		adm := le.Admission
		gone := slices.Contains(endpoints, adm.Endpoint) && !a.engines.zone.vouched(adm.Endpoint)
		if gone {
			a.ended.note(adm, a.now())
		}
		return gone
	})
}

// forget removes counterparts.
func (a *Agent) forget(gone func(lease.Lease) bool) error {
	if len(a.counterparts.Remove(gone)) == 0 {
		return nil
	}
	return a.reprogram.Call()
}

// departed returns what reports whether a counterpart has expired or is revoked, or its node has
// left the roster, or was removed and came back. With an empty roster, no node has left.
func (a *Agent) departed() func(lease.Lease) bool {
	now, verifier := a.now(), a.node.Verifier()
	// Read when it is first asked: no counterpart comes then, so the roster has the node of each.
	roster := sync.OnceValue(func() map[fabric.NodeID]bool {
		known := map[fabric.NodeID]bool{}
		for _, n := range a.node.Nodes() {
			known[n.ID()] = true
		}
		return known
	})
	return func(le lease.Lease) bool {
		adm, known := le.Admission, roster()
		return !a.counterparts.Holds(le, now) || len(known) > 0 && !known[adm.Host()] || verifier.Void(le.Request, adm) != nil
	}
}
