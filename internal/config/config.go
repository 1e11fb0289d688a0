// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package config reads the HCL configuration files of the daemons. Controller, engine, agent and
// link have one format: each uses its part, and Require checks what it needs. The package knows the
// format, its defaults and environment variables, and creates clients of the servers in a file. It
// does not start anything.
package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/connlimit"
)

// Config is a configuration file, completed with environment variables and defaults. Blocks are
// never nil.
type Config struct {
	Zone        string `hcl:"zone,optional"` // empty for the controller
	Node        string `hcl:"node,optional"` // empty for the controller
	TrustDomain string `hcl:"trust_domain,optional"`
	Fabric      string `hcl:"fabric,optional"`
	LogLevel    string `hcl:"log_level,optional"` // trace, debug, info (default), warn, error
	LogJSON     bool   `hcl:"log_json,optional"`
	DataDir     string `hcl:"data_dir,optional"`   // survives reboots; each daemon has its own
	RunDir      string `hcl:"run_dir,optional"`    // sockets
	BPFDir      string `hcl:"bpf_dir,optional"`    // on a BPF filesystem: pins
	BPFAttach   string `hcl:"bpf_attach,optional"` // how programs are attached: auto (default), tcx, clsact
	Listen      string `hcl:"listen,optional"`     // controller: host:port of its API
	// PolicyPrefix begins the names of the policies that give rights at the controller.
	PolicyPrefix string `hcl:"policy_prefix,optional"`
	History      int    `hcl:"history,optional"` // controller: number of revisions that are kept; 0: its default
	// OutageBound is for how long what was in force stays so beyond its end while nobody can renew
	// it.
	OutageBound string `hcl:"outage_bound,optional"`
	// AdmissionLife is how long an admission lives that is not renewed: controller.
	AdmissionLife string `hcl:"admission_life,optional"`

	Underlay    *Underlay    `hcl:"underlay,block"`
	Consul      *Consul      `hcl:"consul,block"`
	Vault       *Vault       `hcl:"vault,block"`
	Nomad       *Nomad       `hcl:"nomad,block"`
	Controller  *Controller  `hcl:"controller,block"`
	Link        *Link        `hcl:"link,block"`
	Engine      *Engine      `hcl:"engine,block"`
	OVS         *OVS         `hcl:"ovs,block"`
	CNI         *CNI         `hcl:"cni,block"`
	WorkloadAPI *WorkloadAPI `hcl:"workload_api,block"`
	DNS         *DNS         `hcl:"dns,block"`
	Pools       *Pools       `hcl:"pools,block"`
	Audit       *Audit       `hcl:"audit,block"`
	Firewall    *Firewall    `hcl:"firewall,block"`
	Exit        *Exit        `hcl:"exit,block"`
	Telemetry   *Telemetry   `hcl:"telemetry,block"`

	Connections *Connections `hcl:"connections,block"`
	Flows       *Flows       `hcl:"flows,block"` // agent

	Expose []*Expose `hcl:"expose,block"` // agent

	path     string // of the file, for messages
	switchAt string // where block "ovs" is; empty if there is none
}

// Switch returns whether the engine has a switch, which block "ovs" says, and the place of that
// block. An engine without one only carries requests.
func (c *Config) Switch() (at string, has bool) { return c.switchAt, c.switchAt != "" }

// Underlay is the network that the links use.
type Underlay struct {
	Address   string `hcl:"address,optional"`
	Interface string `hcl:"interface,optional"`
	// Addresses are further addresses of a processor, by names that the fabric's links refer to.
	Addresses map[string]string `hcl:"addresses,optional"`
	// Management lists what is open to the underlay besides the links and the engine: ports such as
	// "tcp/22" and "udp/546", protocols such as "vrrp" or "proto/112". With an empty list there are
	// none.
	Management []string `hcl:"management,optional"`
	// ReservedPorts lists ports of the node that no workload may have, such as "tcp/9100" and
	// "udp/5000-5100", besides those that the node uses when a workload asks for one.
	ReservedPorts []string `hcl:"reserved_ports,optional"`
}

// Addr returns the address, or an invalid one if the file has none.
func (u *Underlay) Addr() netip.Addr { return parsedAddr(u.Address) }

// Named returns the further addresses by name, which Load has checked.
func (u *Underlay) Named() map[string]netip.Addr {
	var named map[string]netip.Addr
	for name, text := range u.Addresses {
		if a := parsedAddr(text); a.IsValid() {
			if named == nil {
				named = map[string]netip.Addr{}
			}
			named[name] = a
		}
	}
	return named
}

// Firewall configures the node's own firewall.
type Firewall struct {
	// Mode is enforce or report, unless another one was chosen by `sif node firewall`. The default
	// is enforce.
	Mode string `hcl:"mode,optional"`
}

// Consul configures the connection to the local Consul agent.
type Consul struct {
	Address    string `hcl:"address,optional"` // host:port, http://..., https://..., unix://...
	CAFile     string `hcl:"ca_file,optional"`
	CertFile   string `hcl:"cert_file,optional"`
	KeyFile    string `hcl:"key_file,optional"`
	Datacenter string `hcl:"datacenter,optional"`

	AuthMethod string `hcl:"auth_method,optional"` // of type JWT; empty: Consul has no ACLs
	TokenRole  string `hcl:"token_role,optional"`  // of Vault's identity tokens, which are the JWTs
	JWTFile    string `hcl:"jwt_file,optional"`    // the JWT instead; read again for each log-in
}

// Vault configures the connection to Vault, and the login.
type Vault struct {
	Address      string `hcl:"address,optional"`
	CAFile       string `hcl:"ca_file,optional"`
	Namespace    string `hcl:"namespace,optional"`
	AppRoleMount string `hcl:"approle_mount,optional"`
	RoleID       string `hcl:"role_id,optional"` // AppRole
	SecretIDFile string `hcl:"secret_id_file,optional"`
	JWTMount     string `hcl:"jwt_mount,optional"` // JWT instead of AppRole, for a daemon that is a Nomad job
	JWTRole      string `hcl:"jwt_role,optional"`
	JWTFile      string `hcl:"jwt_file,optional"` // read again for each login
	PKIMount     string `hcl:"pki_mount,optional"`
	PKIRole      string `hcl:"pki_role,optional"`
	TransitMount string `hcl:"transit_mount,optional"`
	TransitKey   string `hcl:"transit_key,optional"`
}

// Nomad configures the connection of the controller to Nomad's servers, and that of an agent to the
// Nomad client of its node.
type Nomad struct {
	// Node is the ID of the Nomad client of an agent's node, for a Nomad client that does not tell
	// it without a token.
	Node string `hcl:"node,optional"`

	Address string `hcl:"address,optional"`
	CAFile  string `hcl:"ca_file,optional"`

	AuthMethod string `hcl:"auth_method,optional"` // of type JWT; empty: Nomad has no ACLs
	TokenRole  string `hcl:"token_role,optional"`  // of Vault's identity tokens, which are the JWTs
	JWTFile    string `hcl:"jwt_file,optional"`    // the JWT instead; read again for each log-in
}

// Audit configures the controller's audit log.
type Audit struct {
	RotateBytes    int64 `hcl:"rotate_bytes,optional"`     // maximum size of a file; 0: unlimited
	RotateMaxFiles int   `hcl:"rotate_max_files,optional"` // number of old files that are kept; 0: all
}

// Controller configures the connection to the controller.
type Controller struct {
	Address string `hcl:"address,optional"` // host:port
	// Addresses are those of all controllers. Daemons find the one that leads.
	Addresses []string `hcl:"addresses,optional"` // host:port
}

// All returns the addresses of the controllers, without those that are named twice.
func (c *Controller) All() []string {
	var list []string
	for _, a := range append([]string{c.Address}, c.Addresses...) {
		if a != "" && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

// Link configures the encrypted links of a node.
type Link struct {
	Socket string `hcl:"socket,optional"` // the control socket of `sif link`
	MTU    int    `hcl:"mtu,optional"`    // in bytes, of packets inside the links
	// Device says what runs the WireGuard devices: "kernel", "userspace" (`sif link`), or "auto":
	// the kernel if it has WireGuard.
	Device string `hcl:"device,optional"`
	// KeyPeriod is how long the links have the same key, such as "24h"; "0", the default, for ever.
	KeyPeriod string `hcl:"key_period,optional"`
}

// ShortestKeyPeriod is the least that links have the same key.
const ShortestKeyPeriod = time.Minute

// KeyLife returns how long the links have the same key, which Load has checked; 0 for ever.
func (l *Link) KeyLife() time.Duration {
	if d, err := time.ParseDuration(l.KeyPeriod); err == nil {
		return d
	}
	return 0
}

func (l *Link) checkKeyPeriod() error {
	if l.KeyPeriod == "" {
		return nil
	}
	d, err := time.ParseDuration(l.KeyPeriod)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not a time such as \"24h\"", l.KeyPeriod)
	case d != 0 && d < ShortestKeyPeriod:
		return fmt.Errorf("%s is shorter than %s; 0 leaves the key as it is", l.KeyPeriod, ShortestKeyPeriod)
	}
	return nil
}

// Values of Link.Device.
const (
	DeviceAuto      = "auto"
	DeviceKernel    = "kernel"
	DeviceUserspace = "userspace"
)

// Engine configures the engine of a processor.
type Engine struct {
	Listen string `hcl:"listen,optional"` // host:port for agents of the zone
	// Namespaces is the prefix of the names of the network namespaces of the links:
	// "<namespaces>-l0" and so on. It must be unique on the machine. The default is "sif-<node>".
	Namespaces string `hcl:"namespaces,optional"`
}

// OVS configures the connection to a processor's Open vSwitch. See Config.Switch.
type OVS struct {
	DB     string `hcl:"db,optional"` // for instance unix:/run/.../db.sock
	RunDir string `hcl:"rundir,optional"`
	// Control is the control socket of ovs-vswitchd. If it is empty, it is found with the PID file.
	Control string `hcl:"control,optional"`
	Bridge  string `hcl:"bridge,optional"`
}

// Exit configures how a processor's switch reaches the outside.
type Exit struct {
	// Address4 and Address6 are addresses of the machine, to which connections of workloads to the
	// outside are translated. If they are empty, it is the underlay address by the underlay's
	// interface, and otherwise that of the interface by which a connection leaves.
	Address4 string `hcl:"address4,optional"`
	Address6 string `hcl:"address6,optional"`
	// Interfaces lists interfaces to the outside besides the underlay's and those of default
	// routes. By no other one does anything leave.
	Interfaces []string `hcl:"interfaces,optional"`
}

// Addrs returns the addresses, invalid ones where the file has none.
func (e *Exit) Addrs() (v4, v6 netip.Addr) { return parsedAddr(e.Address4), parsedAddr(e.Address6) }

// Telemetry configures where an agent or an engine serves its metrics.
type Telemetry struct {
	// Listen is host:port, the path of a unix socket as unix:///run/..., or TelemetryOff.
	Listen string `hcl:"listen,optional"`
}

// Outside returns the TCP port at which others than processes of the node read the metrics, and
// whether there is one.
func (t *Telemetry) Outside() (port uint16, outside bool) {
	host, text, err := net.SplitHostPort(t.Listen)
	if err != nil { // a path, or none
		return 0, false
	}
	if a, err := netip.ParseAddr(host); host == "localhost" || err == nil && a.IsLoopback() {
		return 0, false
	}
	number, err := strconv.ParseUint(text, 10, 16)
	return uint16(number), err == nil
}

// Listens reports whether the metrics are at a TCP port.
func (t *Telemetry) Listens() bool {
	_, _, err := net.SplitHostPort(t.Listen)
	return err == nil
}

// TelemetryOff is the value of Telemetry.Listen with which there are no metrics.
const TelemetryOff = "off"

// WorkloadAPI configures where the agent serves the SPIFFE Workload API.
type WorkloadAPI struct {
	Directory string `hcl:"directory,optional"` // of the socket; workloads mount it
}

// CNI configures where the agent installs the CNI plugin, and the socket between them.
type CNI struct {
	PluginDir string `hcl:"plugin_dir,optional"`
	ConfigDir string `hcl:"config_dir,optional"`
	Socket    string `hcl:"socket,optional"`
}

// DNS configures who resolves the outside names that contracts name: for an engine, and for an
// agent whose node is the exit.
type DNS struct {
	Upstream []string `hcl:"upstream,optional"` // host:port of resolvers; those in /etc/resolv.conf if empty
}

// Resolvers returns the resolvers, which Load has checked.
func (d *DNS) Resolvers() []netip.AddrPort {
	var list []netip.AddrPort
	for _, u := range d.Upstream {
		if a, err := netip.ParseAddrPort(u); err == nil {
			list = append(list, a)
		}
	}
	return list
}

// Pools are the prefixes from which the controller assigns a pool to each node.
type Pools struct {
	IPv4 string `hcl:"ipv4,optional"`
	IPv6 string `hcl:"ipv6,optional"`
	// NodePrefix is how many bits the IPv4 pool of a workload node has.
	NodePrefix int `hcl:"node_prefix,optional"`
}

// Flows is what a node keeps of the flows that it records.
type Flows struct {
	// Keep is how many records are kept in memory.
	Keep int `hcl:"keep,optional"`
	// File is to which records are written as lines of JSON; empty: to none. A file that would
	// become larger than RotateBytes is renamed, and RotateMaxFiles renamed ones are kept.
	File           string `hcl:"file,optional"`
	RotateBytes    int    `hcl:"rotate_bytes,optional"`
	RotateMaxFiles int    `hcl:"rotate_max_files,optional"`
}

// The bounds of Flows.Keep. A record takes some 600 bytes.
const (
	DefaultFlows = 10_000
	MaxFlows     = 1_000_000
)

// The defaults and bounds of the file of flows. Its size is in whole MiB.
const (
	defaultFlowBytes = 100 << 20
	defaultFlowFiles = 5
	mebibyte         = 1 << 20
)

// Connections are the limits of connections of a node. Times are of the form "90s" or "6h".
type Connections struct {
	TCPOpening         string `hcl:"tcp_opening,optional"`
	TCPEstablished     string `hcl:"tcp_established,optional"`
	TCPClosing         string `hcl:"tcp_closing,optional"`
	TCPClosed          string `hcl:"tcp_closed,optional"`
	UDP                string `hcl:"udp,optional"`
	SCTP               string `hcl:"sctp,optional"`
	ICMP               string `hcl:"icmp,optional"`
	PerEndpoint        *int   `hcl:"per_endpoint,optional"`
	NewPerSecond       *int   `hcl:"new_per_second,optional"`
	PublishedPerSecond *int   `hcl:"published_per_second,optional"`
	Switch             *int   `hcl:"switch,optional"`
	SwitchNewPerSecond *int   `hcl:"switch_new_per_second,optional"`
	ZoneNewPerSecond   *int   `hcl:"zone_new_per_second,optional"`
	ExitPerEndpoint    *int   `hcl:"exit_per_endpoint,optional"`
	ExitNewPerSecond   *int   `hcl:"exit_new_per_second,optional"`
}

// Limits returns the limits, which Load has checked, completed with the defaults.
func (c *Connections) Limits() connlimit.Limits {
	l := connlimit.Default()
	for _, t := range c.times(&l) {
		if d, err := time.ParseDuration(t.text); err == nil {
			*t.limit = d
		}
	}
	for _, n := range c.numbers(&l) {
		if n.value != nil {
			*n.limit = *n.value
		}
	}
	return l
}

type timeLimit struct {
	name, text string
	limit      *time.Duration
}

type numberLimit struct {
	name         string
	value, limit *int
	check        func(int) error
}

func (c *Connections) numbers(l *connlimit.Limits) []numberLimit {
	return []numberLimit{
		{"per_endpoint", c.PerEndpoint, &l.PerEndpoint, connlimit.CheckPerEndpoint},
		{"new_per_second", c.NewPerSecond, &l.NewPerSecond, connlimit.CheckNewPerSecond},
		{"published_per_second", c.PublishedPerSecond, &l.PublishedPerSecond, connlimit.CheckNewPerSecond},
		{"switch", c.Switch, &l.Switch, connlimit.CheckSwitch},
		{"switch_new_per_second", c.SwitchNewPerSecond, &l.SwitchNewPerSecond, connlimit.CheckMetered},
		{"zone_new_per_second", c.ZoneNewPerSecond, &l.ZoneNewPerSecond, connlimit.CheckMetered},
		{"exit_per_endpoint", c.ExitPerEndpoint, &l.ExitPerEndpoint, connlimit.CheckPerEndpoint},
		{"exit_new_per_second", c.ExitNewPerSecond, &l.ExitNewPerSecond, connlimit.CheckNewPerSecond},
	}
}

func (c *Connections) times(l *connlimit.Limits) []timeLimit {
	return []timeLimit{
		{"tcp_opening", c.TCPOpening, &l.Idle.TCPOpening}, {"tcp_established", c.TCPEstablished, &l.Idle.TCPEstablished},
		{"tcp_closing", c.TCPClosing, &l.Idle.TCPClosing}, {"tcp_closed", c.TCPClosed, &l.Idle.TCPClosed},
		{"udp", c.UDP, &l.Idle.UDP}, {"sctp", c.SCTP, &l.Idle.SCTP}, {"icmp", c.ICMP, &l.Idle.ICMP},
	}
}

// Outage returns the bound of an outage, which Load has checked.
func (c *Config) Outage() time.Duration { return parsedDuration(c.OutageBound) }

// Admissions returns how long admissions live, which Load has checked.
func (c *Config) Admissions() time.Duration { return parsedDuration(c.AdmissionLife) }

// parsedDuration parses a duration that Load has checked.
func parsedDuration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0
	}
	return d
}

// Prefixes returns both prefixes.
func (p *Pools) Prefixes() (v4, v6 netip.Prefix) { return parsedPrefix(p.IPv4), parsedPrefix(p.IPv6) }

// NodeID names the node that the configuration is for.
func (c *Config) NodeID() fabric.NodeID { return fabric.NodeID{Zone: c.Zone, Name: c.Node} }

// IsNode reports whether the file is that of a node. Otherwise it is that of the controller.
func (c *Config) IsNode() bool { return c.Zone != "" && c.Node != "" }

// SPIFFEPath returns the path of the SPIFFE ID of the process with this file.
func (c *Config) SPIFFEPath() string {
	if c.IsNode() {
		return c.NodeID().SPIFFE()
	}
	return fabric.ControllerSPIFFE
}

// parsedAddr parses an address that Load has checked.
func parsedAddr(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// parsedPrefix parses a prefix that Load has checked.
func parsedPrefix(s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
