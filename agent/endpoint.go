// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/atomicfile"
	"github.com/sif-project/sif/internal/coalesce"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/wellknown"
)

// endpoint is an attached workload. A value in the set is never modified; a modified copy replaces
// it.
type endpoint struct {
	ID         string                `json:"id"` // of the endpoint: the allocation's
	Attachment cnicall.Attachment    `json:"attachment"`
	HostIf     string                `json:"hostIf"` // host side of the veth pair
	IPv4       netip.Addr            `json:"ipv4"`
	IPv6       netip.Addr            `json:"ipv6"`
	Ports      []cnicall.PortMapping `json:"ports,omitempty"`
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
	saved *coalesce.Func

	mu  sync.Mutex
	set map[cnicall.Attachment]endpoint
}

func openEndpoints(path string) (*endpoints, error) {
	es := &endpoints{path: path, set: map[cnicall.Attachment]endpoint{}}
	es.saved = coalesce.New(es.save)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return es, nil
	case err != nil:
		return nil, fmt.Errorf("read the endpoints: %w", err)
	}
	var list []endpoint
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("read the endpoints %s: %w", path, err)
	}
	for _, ep := range list {
		es.set[ep.Attachment] = ep
	}
	return es, nil
}

func (es *endpoints) get(a cnicall.Attachment) (endpoint, bool) {
	es.mu.Lock()
	defer es.mu.Unlock()
	ep, ok := es.set[a]
	return ep, ok
}

// find returns the endpoint for which match is true.
func (es *endpoints) find(match func(endpoint) bool) (endpoint, bool) {
	es.mu.Lock()
	defer es.mu.Unlock()
	for _, ep := range es.set {
		if match(ep) {
			return ep, true
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
	return slices.SortedFunc(maps.Values(es.set), func(a, b endpoint) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
}

// put stores an endpoint. The returned function waits until the endpoint is on disk.
func (es *endpoints) put(ep endpoint) (kept func() error) {
	es.mu.Lock()
	es.set[ep.Attachment] = ep
	es.mu.Unlock()
	return start(es.saved.Call)
}

// change applies fn to the endpoint, if the endpoint exists.
func (es *endpoints) change(a cnicall.Attachment, fn func(*endpoint)) error {
	es.mu.Lock()
	ep, ok := es.set[a]
	if ok {
		fn(&ep)
		es.set[a] = ep
	}
	es.mu.Unlock()
	if !ok {
		return nil
	}
	return es.saved.Call()
}

func (es *endpoints) remove(a cnicall.Attachment) error {
	es.mu.Lock()
	delete(es.set, a)
	es.mu.Unlock()
	return es.saved.Call()
}

func (es *endpoints) save() error {
	data, err := json.Marshal(es.all())
	if err != nil {
		return fmt.Errorf("encode the endpoints: %w", err)
	}
	if err := atomicfile.Write(es.path, data, 0o600); err != nil {
		return fmt.Errorf("write the endpoints: %w", err)
	}
	return nil
}
