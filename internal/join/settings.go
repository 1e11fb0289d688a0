// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package join

import (
	"slices"
	"time"

	"github.com/sif-project/sif/fabric"
)

// Settings describe a fabric and the servers that it uses. They contain no secret.
type Settings struct {
	Fabric      string         `json:"fabric"`
	Prefix      string         `json:"prefix"`       // of the names of policies, roles and auth methods of the fabric
	TrustDomain string         `json:"trust_domain"` // of the SPIFFE IDs
	CertTTL     time.Duration  `json:"cert_ttl"`     // lifetime of the certificates of daemons and workloads
	Pools       Pools          `json:"pools"`
	Vault       VaultSettings  `json:"vault"`
	Consul      ConsulSettings `json:"consul"`
	Nomad       NomadSettings  `json:"nomad"`

	// ControllerJob is the task of the Nomad job that is a controller, as namespace/job/group/task;
	// empty if controllers are machines.
	ControllerJob string `json:"controller_job,omitempty"`
}

// Pools are the prefixes from which the controller assigns a pool to each node.
type Pools struct {
	IPv4 string `json:"ipv4"`
	IPv6 string `json:"ipv6"`
	// NodePrefix is how many bits the IPv4 pool of a workload node has; 0:
	// fabric.DefaultNodePrefix.
	NodePrefix int `json:"node_prefix,omitempty"`
}

// VaultSettings say where Vault is, and under which names it has what the fabric needs.
type VaultSettings struct {
	Address       string `json:"address"`
	CA            string `json:"ca,omitempty"` // PEM; the system's authorities if empty
	Namespace     string `json:"namespace,omitempty"`
	Issuer        string `json:"issuer"` // of Vault's identity tokens
	AppRoleMount  string `json:"approle_mount"`
	PKIMount      string `json:"pki_mount"`
	TransitMount  string `json:"transit_mount"`
	TransitKey    string `json:"transit_key"`
	SettingsMount string `json:"settings_mount"` // a KV engine, version 1: the Settings, and the controllers' addresses
}

// SettingsPath is where the Settings are.
func (v VaultSettings) SettingsPath() string { return v.SettingsMount + "/fabric" }

// ControllersPath is where ControllerPath of each controller is, to be listed.
func (v VaultSettings) ControllersPath() string { return v.SettingsMount + "/controllers" }

// ControllerPath is where the controller on a node writes its address, as {"address": "host:port"}.
// Its credential permits that, and its deletion.
func (v VaultSettings) ControllerPath(id fabric.NodeID) string {
	return v.ControllersPath() + "/" + id.Zone + "--" + id.Name
}

// ConsulSettings say how daemons log in to Consul. Nodes use their local Consul agent.
type ConsulSettings struct {
	Address    string `json:"address"`      // of the servers, or of the administrator's agent
	CA         string `json:"ca,omitempty"` // PEM; the system's authorities if empty
	Datacenter string `json:"datacenter,omitempty"`
	AuthMethod string `json:"auth_method,omitempty"` // type JWT; empty if Consul has no ACLs
	TokenRole  string `json:"token_role,omitempty"`  // the role of Vault's identity tokens for Consul
}

// NomadSettings say how the controller logs in to Nomad.
type NomadSettings struct {
	Address    string `json:"address"`
	CA         string `json:"ca,omitempty"` // PEM; the system's authorities if empty
	Region     string `json:"region,omitempty"`
	AuthMethod string `json:"auth_method,omitempty"` // type JWT; empty if Nomad has no ACLs
	TokenRole  string `json:"token_role,omitempty"`  // the role of Vault's identity tokens for Nomad
}

// Kind is what a machine is for. A machine may have several.
type Kind string

// The kinds of machines.
const (
	Controller = Kind("controller")
	Processor  = Kind("processor")
	Workload   = Kind("workload")
)

// Grant is what a join token gives: the node's place in the fabric, its credential in Vault, and
// all that its configuration files need.
type Grant struct {
	Settings    Settings      `json:"settings"`
	Node        fabric.NodeID `json:"node"`
	Kinds       []Kind        `json:"kinds"`
	NomadNode   string        `json:"nomad_node,omitempty"`  // ID of the Nomad node that it must be; empty: the one whose agent answers there
	Controllers []string      `json:"controllers,omitempty"` // host:port of each; empty for the first controller
	RoleID      string        `json:"role_id"`               // of the node's AppRole
	SecretID    string        `json:"secret_id"`
}

// Is reports whether the machine has a kind.
func (g Grant) Is(k Kind) bool { return slices.Contains(g.Kinds, k) }
