// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package cnicall

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/sif-project/sif/fabric"
)

// commandList is a call beyond CNI: it lists what is attached on the node.
const commandList = "LIST"

// attachedPrefix is the prefix of the container IDs of what the command line attached.
const attachedPrefix = "attached-"

// AttachedInterface is the interface of what the command line attached.
const AttachedInterface = "eth0"

// AttachmentOf returns the attachment that the command line makes under a name.
func AttachmentOf(name string) Attachment {
	return Attachment{ContainerID: attachedPrefix + name, IfName: AttachedInterface}
}

// ByHand reports whether the command line made the attachment: no runtime knows of it.
func (a Attachment) ByHand() bool { return strings.HasPrefix(a.ContainerID, attachedPrefix) }

// Space says where the network namespace of a workload outside Nomad is, so that the agent finds it
// again without keeping it alive.
type Space struct {
	Path string `json:"path"`           // as the node's processes see it
	Made bool   `json:"made,omitempty"` // by the command line, which also removes it
	// Owner is the process with whose end the attachment ends, or 0.
	Owner int `json:"owner,omitempty"`
}

// Process is a process of the node's own network namespace that has the endpoint of a namespace.
type Process struct {
	// Ports are led to it: "5432" or "udp/53".
	Ports []string `json:"ports,omitempty"`
	// Cgroup, if it is not empty, is that of processes that send by the endpoint, by its path from
	// the root of the unified hierarchy.
	Cgroup string `json:"cgroup,omitempty"`
}

// Attached is a workload outside Nomad that is attached on the node.
type Attached struct {
	fabric.Attached
	Attachment Attachment `json:"attachment"`
	// Registration is the ID of the registration in Consul that counts; empty: all of the service.
	Registration string    `json:"registration,omitempty"`
	Space        Space     `json:"space"`
	Inode        uint64    `json:"inode"` // of its namespace
	Endpoint     string    `json:"endpoint"`
	Process      *Process  `json:"process,omitempty"` // nil: what is in the namespace has the endpoint
	Since        time.Time `json:"since"`             // when it was attached

	// What it has while it takes part. Waits says why it does not: it has no endpoint then.
	FabricService fabric.Ref `json:"fabricService,omitzero"`
	IPv4          netip.Addr `json:"ipv4,omitzero"`
	IPv6          netip.Addr `json:"ipv6,omitzero"`
	Waits         string     `json:"waits,omitempty"`
}

// List returns what is attached on the node of the agent that listens on socket, by name.
func List(ctx context.Context, socket string) ([]Attached, error) {
	reply, err := call(ctx, socket, Request{Command: commandList})
	return reply.Attached, err
}
