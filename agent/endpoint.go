// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/statefile"
	"github.com/sif-project/sif/internal/wellknown"
)

// endpoint is an attached workload. A value in the set is never modified; a modified copy replaces
// it.
type endpoint struct {
	ID         string                `json:"id"` // of the endpoint: the allocation's, or one that the node chose
	Attachment cnicall.Attachment    `json:"attachment"`
	HostIf     string                `json:"hostIf"` // host side of the veth pair
	IPv4       netip.Addr            `json:"ipv4"`
	IPv6       netip.Addr            `json:"ipv6"`
	Ports      []cnicall.PortMapping `json:"ports,omitempty"`
	VM         bool                  `json:"vm,omitempty"`       // it has a tap interface, and its guest the addresses
	Attached   *fabric.Attached      `json:"attached,omitempty"` // nil: an allocation of Nomad
	Process    *process              `json:"process,omitempty"`  // nil: what is in the namespace has the endpoint
	Network    string                `json:"network,omitempty"`  // with Runtime: whose GC concerns it; empty: nobody's
	Runtime    string                `json:"runtime,omitempty"`
	Request    fabric.Request        `json:"request"`
	Admission  fabric.Admission      `json:"admission"`

	// HostIndex is the index of HostIf, or 0 if the interface no longer exists.
	HostIndex int `json:"hostIndex"`
}

// admitted reports whether the controller has admitted the endpoint. Other nodes may know only
// admitted endpoints.
func (ep endpoint) admitted() bool { return ep.Admission.Endpoint != "" }

// hostIfName returns the name of the host side of the veth pair. DEL has only the container ID and
// the interface name, so the name is derived from these two.
func hostIfName(a cnicall.Attachment) string {
	sum := sha256.Sum256([]byte(a.ContainerID + "/" + a.IfName))
	return wellknown.InterfacePrefix + hex.EncodeToString(sum[:])[:11]
}

// endpoints is the set of attached workloads, in memory and on disk. It is safe for concurrent use.
type endpoints struct {
	path  string
	found bool // there was a file
	saved *statefile.Saver

	mu      sync.Mutex
	set     map[cnicall.Attachment]*endpoint
	ordered []endpoint // the same, by ID; nil since a change. Every look at the node asks for it several times.
}

// lost returns an error if the file is missing although interfaces of endpoints exist, which would
// be removed as those of nobody. Otherwise it creates a file that is missing.
func (es *endpoints) lost(interfaces []string) error {
	switch {
	case es.found:
		return nil
	case len(interfaces) > 0:
		return fmt.Errorf("the endpoints of this node are lost: there is no %s, but %d interfaces of endpoints, %s first; put the file back, or drain the node in Nomad and start again",
			es.path, len(interfaces), interfaces[0])
	}
	return es.saved.Call()
}

func openEndpoints(path string) (*endpoints, error) {
	es := &endpoints{path: path, set: map[cnicall.Attachment]*endpoint{}}
	file := statefile.File[[]endpoint]{Path: path, What: "the endpoints"}
	elements := statefile.Elements[endpoint]{Encode: func(ep *endpoint) ([]byte, error) { return json.Marshal(ep) }}
	es.saved = file.EncodedSaver(func() ([]byte, error) { return elements.Document('[', ']', es.snapshot()) })
	list, found, err := file.Read()
	if err != nil {
		return nil, err
	}
	es.found = found
	for _, ep := range list {
		es.set[ep.Attachment] = &ep
	}
	return es, nil
}

func (es *endpoints) get(a cnicall.Attachment) (endpoint, bool) {
	es.mu.Lock()
	defer es.mu.Unlock()
	if ep, ok := es.set[a]; ok {
		return *ep, true
	}
	return endpoint{}, false
}

// find returns the endpoint for which match is true.
func (es *endpoints) find(match func(endpoint) bool) (endpoint, bool) {
	es.mu.Lock()
	defer es.mu.Unlock()
	for _, ep := range es.set {
		if match(*ep) {
			return *ep, true
		}
	}
	return endpoint{}, false
}

// services returns the services that have endpoints.
func (es *endpoints) services() map[fabric.Ref]bool {
	es.mu.Lock()
	defer es.mu.Unlock()
	set := map[fabric.Ref]bool{}
	for _, ep := range es.set {
		set[ep.Admission.Service] = true
	}
	return set
}

// all returns the endpoints, ordered by ID.
func (es *endpoints) all() []endpoint {
	es.mu.Lock()
	defer es.mu.Unlock()
	if es.ordered == nil {
		es.ordered = make([]endpoint, 0, len(es.set))
		for _, ep := range es.set {
			es.ordered = append(es.ordered, *ep)
		}
		slices.SortFunc(es.ordered, func(a, b endpoint) int { return strings.Compare(a.ID, b.ID) })
	}
	return slices.Clone(es.ordered)
}

// snapshot returns the endpoints as they are stored, ordered by ID.
func (es *endpoints) snapshot() []*endpoint {
	es.mu.Lock()
	list := slices.Collect(maps.Values(es.set))
	es.mu.Unlock()
	slices.SortFunc(list, func(a, b *endpoint) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// put stores an endpoint. The returned function waits until the endpoint is on disk.
func (es *endpoints) put(ep endpoint) (kept func() error) {
	es.mu.Lock()
	es.set[ep.Attachment], es.ordered = &ep, nil
	es.mu.Unlock()
	return start(es.saved.Call)
}

// change applies fn to the endpoint, if the endpoint exists. It holds also if it cannot be written
// to disk, which saved.Again does later.
func (es *endpoints) change(a cnicall.Attachment, fn func(*endpoint)) {
	es.mu.Lock()
	was, ok := es.set[a]
	if ok {
		ep := *was
		fn(&ep)
		es.set[a], es.ordered = &ep, nil
	}
	es.mu.Unlock()
	if ok {
		_ = es.saved.Call()
	}
}

// remove forgets an endpoint. If that cannot be written to disk, saved.Again does it later; an
// agent that starts before finds no interface of it, and detaches it.
func (es *endpoints) remove(a cnicall.Attachment) {
	es.mu.Lock()
	delete(es.set, a)
	es.ordered = nil
	es.mu.Unlock()
	_ = es.saved.Call()
}
