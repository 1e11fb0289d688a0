// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/vishvananda/netlink"

	"github.com/sif-project/sif/agent/workloadapi"
	"github.com/sif-project/sif/internal/node/hostport"
	"github.com/sif-project/sif/internal/node/netspace"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/jwtkey"
	"github.com/sif-project/sif/internal/wellknown"
)

// openWorkloadAPI makes the server of the Workload API, and the source of the keys of JWT-SVIDs.
func (a *Agent) openWorkloadAPI() error {
	c := a.node.Config
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil {
		return fmt.Errorf("trust domain %q: %w", c.TrustDomain, err)
	}
	a.jwtKeys, err = jwtkey.Open(
		jwtkey.Key{Vault: a.node.Identity.Vault, Mount: c.Vault.TransitMount, Name: wellknown.JWTKey(c.Vault.TransitKey)},
		td, filepath.Join(c.DataDir, "jwks.json"), func(err error) { a.node.Degrade("keys of JWT-SVIDs", err) })
	if err != nil {
		return err
	}
	a.workloadAPI, err = workloadapi.New(workloadapi.Config{
		Dir: c.WorkloadAPI.Directory, KeyDir: filepath.Join(c.DataDir, "svids"), TrustDomain: td,
		Workloads: &workloads{Agent: a, seen: map[uint64]string{}}, Issuer: a.node.Controller,
		Revoked: func(leaf *x509.Certificate) bool {
			_, revoked := a.node.Removals.List().RevokedCertificate(identity.Serial(leaf))
			return revoked
		},
		Superseded: a.node.Identity.Superseded, Authorities: a.node.Identity.Bundle, JWTKeys: a.jwtKeys, Now: a.now,
		Report: a.node.Degrade, Log: a.log.Named("workloadapi"),
	})
	return err
}

// workloads tells which endpoint a process belongs to, by its network namespace and its cgroup. It
// implements workloadapi.Workloads.
type workloads struct {
	*Agent

	mu   sync.Mutex
	seen map[uint64]string // endpoints by the inode of their namespace, where they were last
}

// Of implements workloadapi.Workloads.
func (w *workloads) Of(c workloadapi.Caller) ([]workloadapi.Workload, error) {
	host, err := netspace.IsHost(c.Namespace)
	if err != nil {
		return nil, err
	}
	var found []endpoint
	if host {
		found, err = w.byCgroup(c.PID)
	} else {
		found, err = w.byNamespace(c.Namespace)
	}
	if err != nil {
		return nil, err
	}
	var list []workloadapi.Workload
	var why error
	for _, ep := range found {
		if err := w.entitled(ep); err != nil {
			why = err
			continue
		}
		list = append(list, workloadapi.Workload{Endpoint: ep.ID, Service: ep.Admission.Service})
	}
	if len(list) == 0 {
		return nil, why
	}
	return list, nil
}

// Current implements workloadapi.Workloads.
func (w *workloads) Current(id string) (workloadapi.Workload, error) {
	ep, known := w.endpoints.find(func(ep endpoint) bool { return ep.ID == id })
	if !known {
		return workloadapi.Workload{}, fmt.Errorf("endpoint %s is not on this node any more", id)
	}
	return workloadapi.Workload{Endpoint: ep.ID, Service: ep.Admission.Service}, w.entitled(ep)
}

// entitled returns why an endpoint has no identity, or nil if it has.
func (w *workloads) entitled(ep endpoint) error {
	if !ep.admitted() {
		return fmt.Errorf("endpoint %s is not admitted to the fabric yet", ep.ID)
	}
	if why := w.node.Removals.List().EndsAdmission(ep.Admission); why != "" {
		return fmt.Errorf("endpoint %s of service %s has lost its rights: %s", ep.ID, ep.Admission.Service, why)
	}
	return nil
}

// byNamespace returns the endpoints whose interface is in a network namespace. The kernel numbers
// the namespaces that interfaces of this one lead to.
func (w *workloads) byNamespace(namespace *os.File) ([]endpoint, error) {
	id, err := netlink.GetNetNsIdByFd(int(namespace.Fd()))
	if err != nil {
		return nil, fmt.Errorf("ask for the number of the network namespace: %w", err)
	}
	if id < 0 {
		return nil, nil // no interface leads there
	}
	inode, err := netspace.Inode(namespace)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	was := w.seen[inode]
	w.mu.Unlock()
	if ep, known := w.endpoints.find(func(ep endpoint) bool { return ep.ID == was }); known && leadsInto(ep, id) {
		return []endpoint{ep}, nil
	}
	var found []endpoint
	for _, ep := range w.endpoints.all() {
		if leadsInto(ep, id) {
			found = append(found, ep)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(found) == 1 {
		if len(w.seen) > 2*len(w.endpoints.all()) {
			clear(w.seen) // of namespaces that are gone
		}
		w.seen[inode] = found[0].ID
	}
	return found, nil
}

// leadsInto reports whether an endpoint's interface has its other end in the namespace with a
// number, for the processes there. Those of a process of the node have a namespace in which nothing
// runs.
func leadsInto(ep endpoint, id int) bool {
	if ep.HostIndex == 0 || ep.Process != nil {
		return false
	}
	link, err := netlink.LinkByIndex(ep.HostIndex)
	return err == nil && link.Attrs().Name == ep.HostIf && link.Attrs().NetNsID == id
}

// byCgroup returns the endpoints of processes of the node to whose cgroup a process belongs.
func (w *workloads) byCgroup(pid int) ([]endpoint, error) {
	var candidates, found []endpoint
	for _, ep := range w.endpoints.all() {
		if ep.HostIndex != 0 && ep.Process != nil && ep.Process.Group != "" {
			candidates = append(candidates, ep)
		}
	}
	if len(candidates) == 0 {
		return nil, fmt.Errorf("process %d runs in the node's own network namespace, and is in no workload of the fabric: none is attached by its cgroup", pid)
	}
	group, err := groupOf(pid)
	if err != nil {
		return nil, err
	}
	for _, ep := range candidates {
		of := string(ep.Process.Group)
		if string(group) == of || strings.HasPrefix(string(group), of+"/") {
			found = append(found, ep)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("process %d runs in the node's own network namespace, and its cgroup %s is not that of an attached process", pid, group)
	}
	return found, nil
}

// groupOf returns the cgroup of a process in the unified hierarchy.
func groupOf(pid int) (hostport.Group, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", fmt.Errorf("look at the cgroup of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		if path, unified := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); unified {
			return hostport.Group(path), nil
		}
	}
	return "", errors.New("the machine has no cgroup v2 hierarchy, by which processes of the node are known")
}
