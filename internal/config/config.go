// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package config reads the HCL configuration files of the daemons. One format
// serves controller, engine, agent and link; each uses the part that concerns
// it and states with Require what it cannot do without. The package knows the
// format, its defaults and the environment, and how to reach the servers that
// a file names; it starts nothing.
package config

import (
	"net/netip"

	"github.com/sif-project/sif/fabric"
)

// Config is a configuration file with the environment and the defaults filled
// in. Blocks are never nil.
type Config struct {
	Zone        string `hcl:"zone,optional"` // empty for the controller
	Node        string `hcl:"node,optional"` // empty for the controller
	TrustDomain string `hcl:"trust_domain,optional"`
	Fabric      string `hcl:"fabric,optional"`
	LogLevel    string `hcl:"log_level,optional"` // trace, debug, info (default), warn, error
	LogJSON     bool   `hcl:"log_json,optional"`
	DataDir     string `hcl:"data_dir,optional"` // survives reboots
	RunDir      string `hcl:"run_dir,optional"`  // sockets
	BPFDir      string `hcl:"bpf_dir,optional"`  // on a BPF filesystem: pins
	Listen      string `hcl:"listen,optional"`   // controller: host:port of its API
	History     int    `hcl:"history,optional"`  // controller: how many revisions are kept; 0: its default

	Underlay   *Underlay   `hcl:"underlay,block"`
	Consul     *Consul     `hcl:"consul,block"`
	Vault      *Vault      `hcl:"vault,block"`
	Nomad      *Nomad      `hcl:"nomad,block"`
	Controller *Controller `hcl:"controller,block"`
	Link       *Link       `hcl:"link,block"`
	Engine     *Engine     `hcl:"engine,block"`
	OVS        *OVS        `hcl:"ovs,block"`
	CNI        *CNI        `hcl:"cni,block"`
	DNS        *DNS        `hcl:"dns,block"`
	Pools      *Pools      `hcl:"pools,block"`
	Audit      *Audit      `hcl:"audit,block"`

	path string // of the file, for messages
}

// Underlay is the network that the links of a node run over.
type Underlay struct {
	Address   string `hcl:"address,optional"`
	Interface string `hcl:"interface,optional"`
	// Management lists what is open to the underlay besides the links and the
	// engine: "tcp/22", "udp/8301". An empty list opens nothing more.
	Management []string `hcl:"management,optional"`
}

// Addr returns the address; invalid if the file names none.
func (u *Underlay) Addr() netip.Addr { return parsedAddr(u.Address) }

// Consul says how to reach the local Consul agent.
type Consul struct {
	Address    string `hcl:"address,optional"` // host:port, http://..., https://..., unix://...
	Token      string `hcl:"token,optional"`
	TokenFile  string `hcl:"token_file,optional"`
	CAFile     string `hcl:"ca_file,optional"`
	CertFile   string `hcl:"cert_file,optional"`
	KeyFile    string `hcl:"key_file,optional"`
	Datacenter string `hcl:"datacenter,optional"`
}

// Vault says how to reach Vault and as whom.
type Vault struct {
	Address      string `hcl:"address,optional"`
	CAFile       string `hcl:"ca_file,optional"`
	RoleID       string `hcl:"role_id,optional"` // AppRole
	SecretIDFile string `hcl:"secret_id_file,optional"`
	PKIMount     string `hcl:"pki_mount,optional"`
	PKIRole      string `hcl:"pki_role,optional"`
	TransitMount string `hcl:"transit_mount,optional"`
	TransitKey   string `hcl:"transit_key,optional"`
}

// Nomad says how the controller reaches Nomad.
type Nomad struct {
	Address   string `hcl:"address,optional"`
	Token     string `hcl:"token,optional"`
	TokenFile string `hcl:"token_file,optional"`
	CAFile    string `hcl:"ca_file,optional"`
}

// Audit is about the controller's audit log.
type Audit struct {
	RotateBytes    int64 `hcl:"rotate_bytes,optional"`     // how large a file may grow; 0: any size
	RotateMaxFiles int   `hcl:"rotate_max_files,optional"` // how many old files are kept; 0: all
}

// Controller says where a node finds the controller.
type Controller struct {
	Address string `hcl:"address,optional"` // host:port
}

// Link is about the encrypted links of a node.
type Link struct {
	Socket string `hcl:"socket,optional"` // where `sif link` is controlled
	MTU    int    `hcl:"mtu,optional"`    // bytes of a packet inside the links
}

// Engine is about the engine of a processor.
type Engine struct {
	Listen string `hcl:"listen,optional"` // host:port for agents of the zone
	// Namespaces begins the names of the network namespaces of the links, a
	// namespace each: "<namespaces>-l0" and so on. It must be unique on the
	// machine; "sif-<node>" if empty.
	Namespaces string `hcl:"namespaces,optional"`
}

// OVS says where a processor's Open vSwitch is.
type OVS struct {
	DB     string `hcl:"db,optional"` // for instance unix:/run/.../db.sock
	RunDir string `hcl:"rundir,optional"`
	// Control is ovs-vswitchd's control socket; found by its pid file if empty.
	Control string `hcl:"control,optional"`
	Bridge  string `hcl:"bridge,optional"`
}

// CNI says where the agent installs the CNI plugin and where that finds it.
type CNI struct {
	PluginDir string `hcl:"plugin_dir,optional"`
	ConfigDir string `hcl:"config_dir,optional"`
	Socket    string `hcl:"socket,optional"`
}

// DNS is about the agent's DNS listener.
type DNS struct {
	Upstream []string `hcl:"upstream,optional"` // host:port of resolvers for other names; none: those of /etc/resolv.conf
}

// Pools are the prefixes out of which the controller gives each node a pool.
type Pools struct {
	IPv4 string `hcl:"ipv4,optional"`
	IPv6 string `hcl:"ipv6,optional"`
}

// Prefixes returns both prefixes.
func (p *Pools) Prefixes() (v4, v6 netip.Prefix) { return parsedPrefix(p.IPv4), parsedPrefix(p.IPv6) }

// NodeID names the node that the configuration is for.
func (c *Config) NodeID() fabric.NodeID { return fabric.NodeID{Zone: c.Zone, Name: c.Node} }

// IsNode reports whether the file is a node's; otherwise it is the
// controller's.
func (c *Config) IsNode() bool { return c.Zone != "" && c.Node != "" }

// SPIFFEPath is the path of the SPIFFE ID of the process that uses the file.
func (c *Config) SPIFFEPath() string {
	if c.IsNode() {
		return c.NodeID().SPIFFE()
	}
	return fabric.ControllerSPIFFE
}

// parsedAddr returns an address that Load has checked.
func parsedAddr(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// parsedPrefix returns a prefix that Load has checked.
func parsedPrefix(s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
