// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/connlimit"
	"github.com/sif-project/sif/internal/wellknown"
)

// Role is a daemon with a configuration file.
type Role string

// Roles.
const (
	RoleController Role = "controller"
	RoleEngine     Role = "engine"
	RoleAgent      Role = "agent"
	RoleLink       Role = "link"
)

// Load reads the file of a daemon at path, completes it with environment variables and defaults,
// and checks it. Errors contain file, line and column.
func Load(path string, r Role) (*Config, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return complete(src, path, r, os.Getenv)
}

// Parse is Load of a text, without environment variables. path is for messages.
func Parse(src []byte, path string, r Role) (*Config, error) {
	return complete(src, path, r, func(string) string { return "" })
}

// FromEnvironment returns what a file without any content means: the environment variables and the
// defaults.
func FromEnvironment() (*Config, error) { return parse(nil, "environment", "", os.Getenv) }

func complete(src []byte, path string, r Role, getenv func(string) string) (*Config, error) {
	c, err := parse(src, path, r, getenv)
	if err != nil {
		return nil, err
	}
	return c, c.require(r)
}

func parse(src []byte, path string, r Role, getenv func(string) string) (*Config, error) {
	file, diags := hclsyntax.ParseConfig(src, path, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, render(diags)
	}
	c := &Config{}
	if diags := gohcl.DecodeBody(file.Body, nil, c); diags.HasErrors() {
		return nil, render(diags)
	}
	if c.OVS != nil {
		for _, b := range file.Body.(*hclsyntax.Body).Blocks {
			if b.Type == "ovs" {
				c.switchAt = at(b.DefRange())
			}
		}
	}
	// All blocks are optional. Missing ones are replaced by empty ones.
	blocks := reflect.ValueOf(c).Elem()
	for i := range blocks.NumField() {
		if f := blocks.Field(i); f.Kind() == reflect.Pointer && f.IsNil() {
			f.Set(reflect.New(f.Type().Elem()))
		}
	}
	c.path = path
	if r == RoleController && c.Telemetry.Listen != "" {
		return nil, fmt.Errorf("%s: telemetry.listen is of agents and engines: remove it; the controller serves /metrics at its API", position(file.Body.(*hclsyntax.Body), path, "telemetry.listen"))
	}
	c.fillFromEnvironment(getenv)
	c.fillDefaults(r)
	if err := c.check(file.Body.(*hclsyntax.Body)); err != nil {
		return nil, err
	}
	return c, nil
}

// render returns the diagnostics as one error, with a line and a position each.
func render(diags hcl.Diagnostics) error {
	var errs []error
	for _, d := range diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		text := d.Summary
		if d.Detail != "" {
			text += ": " + d.Detail
		}
		if d.Subject != nil {
			text = at(*d.Subject) + ": " + text
		}
		errs = append(errs, errors.New(text))
	}
	return errors.Join(errs...)
}

func at(r hcl.Range) string {
	return fmt.Sprintf("%s:%d:%d", r.Filename, r.Start.Line, r.Start.Column)
}

func (c *Config) fillFromEnvironment(getenv func(string) string) {
	fill := func(to *string, name string) {
		if *to == "" {
			*to = getenv(name)
		}
	}
	fill(&c.Consul.Address, "CONSUL_HTTP_ADDR")
	fill(&c.Consul.CAFile, "CONSUL_CACERT")
	fill(&c.Consul.CertFile, "CONSUL_CLIENT_CERT")
	fill(&c.Consul.KeyFile, "CONSUL_CLIENT_KEY")
	fill(&c.Vault.Address, "VAULT_ADDR")
	fill(&c.Vault.CAFile, "VAULT_CACERT")
	fill(&c.Vault.Namespace, "VAULT_NAMESPACE")
	fill(&c.Nomad.Address, "NOMAD_ADDR")
	fill(&c.Nomad.CAFile, "NOMAD_CACERT")
	fill(&c.OutageBound, "SIF_OUTAGE_BOUND")
	fill(&c.AdmissionLife, "SIF_ADMISSION_LIFE")
}

// DefaultManagement are the ports that a node opens to the underlay unless its file lists some:
// SSH, Serf gossip of Consul, Nomad's HTTP API.
var DefaultManagement = []string{"tcp/22", "tcp/8301", "udp/8301", "tcp/4646"}

func (c *Config) fillDefaults(r Role) {
	fill := func(to *string, value string) {
		if *to == "" {
			*to = value
		}
	}
	fill(&c.Fabric, "sif")
	fill(&c.LogLevel, "info")
	fill(&c.PolicyPrefix, wellknown.Prefix)
	fill(&c.OutageBound, "72h")
	fill(&c.AdmissionLife, "24h")
	// A machine may run all three.
	switch r {
	case RoleController:
		fill(&c.DataDir, wellknown.ControllerDataDir)
	case RoleEngine:
		fill(&c.DataDir, wellknown.EngineDataDir)
	default:
		fill(&c.DataDir, wellknown.DataDir)
	}
	fill(&c.RunDir, wellknown.RunDir)
	fill(&c.BPFDir, "/sys/fs/bpf/sif")
	fill(&c.BPFAttach, "auto")
	c.Flows.Keep = cmp.Or(c.Flows.Keep, DefaultFlows)
	c.Flows.RotateBytes = cmp.Or(c.Flows.RotateBytes, defaultFlowBytes)
	c.Flows.RotateMaxFiles = cmp.Or(c.Flows.RotateMaxFiles, defaultFlowFiles)
	fill(&c.Firewall.Mode, "enforce")
	fill(&c.Consul.Address, "127.0.0.1:8500")
	fill(&c.Vault.Address, "https://127.0.0.1:8200")
	fill(&c.Vault.JWTMount, wellknown.JWTMount)
	fill(&c.Vault.AppRoleMount, wellknown.AppRoleMount)
	fill(&c.Vault.PKIMount, wellknown.PKIMount)
	fill(&c.Vault.TransitMount, wellknown.TransitMount)
	fill(&c.Vault.TransitKey, wellknown.TransitKey)
	if c.IsNode() {
		fill(&c.Vault.PKIRole, wellknown.NodeRole(c.Zone, c.Node))
	} else {
		fill(&c.Vault.PKIRole, wellknown.ControllerRole)
		fill(&c.Listen, ":"+wellknown.ControllerPort)
		fill(&c.Nomad.Address, "http://127.0.0.1:4646")
		fill(&c.Pools.IPv4, "100.64.0.0/10")
		fill(&c.Pools.IPv6, "fd5f:7369:6600::/48")
		if c.Pools.NodePrefix == 0 { // a smaller pool than the default of a node was possible before
			v4, _ := c.Pools.Prefixes()
			c.Pools.NodePrefix = min(max(fabric.DefaultNodePrefix, v4.Bits()), fabric.SmallestNodePrefix)
		}
	}
	if c.Underlay.Management == nil {
		c.Underlay.Management = DefaultManagement
	}
	fill(&c.Link.Socket, filepath.Join(c.RunDir, wellknown.LinkDir, wellknown.LinkSocket))
	fill(&c.Link.Device, DeviceAuto)
	if c.Link.MTU == 0 {
		c.Link.MTU = 1420
	}
	fill(&c.Engine.Listen, ":"+wellknown.EnginePort)
	fill(&c.Engine.Namespaces, wellknown.ReservedPrefix+c.Node)
	fill(&c.OVS.RunDir, "/var/run/openvswitch")
	fill(&c.OVS.DB, "unix:"+filepath.Join(c.OVS.RunDir, "db.sock"))
	fill(&c.OVS.Bridge, "br-sif")
	fill(&c.CNI.PluginDir, "/opt/cni/bin")
	fill(&c.CNI.ConfigDir, "/opt/cni/config")
	fill(&c.CNI.Socket, filepath.Join(c.RunDir, "cni.sock"))
	fill(&c.WorkloadAPI.Directory, wellknown.WorkloadAPIDir)
	switch r {
	case RoleAgent:
		fill(&c.Telemetry.Listen, net.JoinHostPort("127.0.0.1", wellknown.AgentMetricsPort))
	case RoleEngine:
		fill(&c.Telemetry.Listen, net.JoinHostPort("127.0.0.1", wellknown.EngineMetricsPort))
	}
}

// ParsePorts parses ports of a node, such as "tcp/22" or "udp/5000-5100".
func ParsePorts(s string) (protocol fabric.Protocol, ports fabric.PortRange, err error) {
	name, numbers, ok := strings.Cut(s, "/")
	if !ok {
		return protocol, ports, fmt.Errorf("%q is not of the form protocol/port, such as \"tcp/22\"", s)
	}
	if protocol, err = fabric.ParseProtocol(name); err != nil {
		return protocol, ports, fmt.Errorf("%q: %w", s, err)
	}
	if ports, err = fabric.ParsePortRange(numbers); err != nil {
		return protocol, ports, fmt.Errorf("%q: %w", s, err)
	}
	return protocol, ports, nil
}

// check reports all invalid values.
func (c *Config) check(body *hclsyntax.Body) error {
	var errs []error
	report := func(attribute string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", position(body, c.path, attribute), attribute, err))
		}
	}
	set := func(value string, check func(string) error) error {
		if value == "" {
			return nil
		}
		return check(value)
	}
	report("zone", set(c.Zone, fabric.CheckName))
	report("node", set(c.Node, fabric.CheckName))
	if (c.Zone == "") != (c.Node == "") {
		report("zone", errors.New("zone and node must be set together; the controller has neither"))
	}
	report("fabric", fabric.CheckName(c.Fabric))
	report("policy_prefix", fabric.CheckName(c.PolicyPrefix))
	report("trust_domain", set(c.TrustDomain, checkTrustDomain))
	if hclog.LevelFromString(c.LogLevel) == hclog.NoLevel {
		report("log_level", fmt.Errorf("%q is not one of trace, debug, info, warn, error", c.LogLevel))
	}
	if !slices.Contains([]string{"enforce", "report"}, c.Firewall.Mode) {
		report("firewall.mode", fmt.Errorf("%q is not one of enforce, report", c.Firewall.Mode))
	}
	if !slices.Contains([]string{"auto", "tcx", "clsact"}, c.BPFAttach) {
		report("bpf_attach", fmt.Errorf("%q is not one of auto, tcx, clsact", c.BPFAttach))
	}
	report("underlay.address", set(c.Underlay.Address, checkAddr))
	report("underlay.addresses", checkAddresses(c.Underlay.Addresses))
	report("exit.address4", set(c.Exit.Address4, func(s string) error { return checkHost(s, 4) }))
	report("exit.address6", set(c.Exit.Address6, func(s string) error { return checkHost(s, 6) }))
	for _, name := range c.Exit.Interfaces {
		report("exit.interfaces", checkOutside(name))
	}
	report("controller.address", set(c.Controller.Address, checkHostPort))
	for _, a := range c.Controller.Addresses {
		report("controller.addresses", checkHostPort(a))
	}
	report("listen", set(c.Listen, checkHostPort))
	report("engine.listen", checkHostPort(c.Engine.Listen))
	report("telemetry.listen", set(c.Telemetry.Listen, checkTelemetry))
	nodePrefix := cmp.Or(c.Pools.NodePrefix, fabric.DefaultNodePrefix) // nodes have none
	report("pools.node_prefix", fabric.CheckNodePrefix(nodePrefix))
	report("pools.ipv4", set(c.Pools.IPv4, func(s string) error { return checkPool(s, 4, nodePrefix) }))
	report("pools.ipv6", set(c.Pools.IPv6, func(s string) error { return checkPool(s, 6, 64) }))
	report("outage_bound", checkDuration(c.OutageBound, 0, fabric.MaxDegraded))
	report("admission_life", checkDuration(c.AdmissionLife, fabric.MinAdmissionLife, fabric.MaxAdmissionLife))
	if body.Attributes["history"] != nil {
		report("history", CheckHistory(c.History))
	}
	if c.Audit.RotateBytes < 0 {
		report("audit.rotate_bytes", fmt.Errorf("%d must not be negative", c.Audit.RotateBytes))
	}
	if c.Audit.RotateMaxFiles < 0 {
		report("audit.rotate_max_files", fmt.Errorf("%d must not be negative", c.Audit.RotateMaxFiles))
	}
	if c.Audit.RotateMaxFiles > 0 && c.Audit.RotateBytes == 0 {
		report("audit.rotate_max_files", errors.New("it requires rotate_bytes, without which no file is rotated"))
	}
	if c.Flows.Keep < 0 || c.Flows.Keep > MaxFlows {
		report("flows.keep", fmt.Errorf("%d is outside 1-%d", c.Flows.Keep, MaxFlows))
	}
	if c.Flows.File != "" && !filepath.IsAbs(c.Flows.File) {
		report("flows.file", fmt.Errorf("%q must be an absolute path", c.Flows.File))
	}
	if c.Flows.RotateBytes < mebibyte || c.Flows.RotateBytes%mebibyte != 0 {
		report("flows.rotate_bytes", fmt.Errorf("%d must be a multiple of %d", c.Flows.RotateBytes, mebibyte))
	}
	if c.Flows.RotateMaxFiles < 0 {
		report("flows.rotate_max_files", fmt.Errorf("%d must not be negative", c.Flows.RotateMaxFiles))
	}
	for _, t := range c.Connections.times(new(connlimit.Limits)) {
		report("connections."+t.name, set(t.text, checkIdle))
	}
	for _, n := range c.Connections.numbers(new(connlimit.Limits)) {
		if n.value != nil {
			report("connections."+n.name, n.check(*n.value))
		}
	}
	// The MTU of workloads is smaller, and must not be below the minimum of IPv6.
	if c.Link.MTU < 1320 || c.Link.MTU > 65455 {
		report("link.mtu", fmt.Errorf("%d is outside 1320-65455", c.Link.MTU))
	}
	if !slices.Contains([]string{DeviceAuto, DeviceKernel, DeviceUserspace}, c.Link.Device) {
		report("link.device", fmt.Errorf("%q is not one of %s, %s, %s", c.Link.Device, DeviceAuto, DeviceKernel, DeviceUserspace))
	}
	report("link.key_period", c.Link.checkKeyPeriod())
	for _, text := range c.Underlay.Management {
		_, _, err := ParseManagement(text)
		report("underlay.management", err)
	}
	for _, text := range c.Underlay.ReservedPorts {
		_, _, err := ParsePorts(text)
		report("underlay.reserved_ports", err)
	}
	errs = append(errs, c.checkExpose(body))
	for i, u := range c.DNS.Upstream {
		if a, err := netip.ParseAddr(u); err == nil {
			c.DNS.Upstream[i] = netip.AddrPortFrom(a, wellknown.DNSPort).String()
		} else if _, err := netip.ParseAddrPort(u); err != nil {
			report("dns.upstream", fmt.Errorf("%q is neither an address nor address:port", u))
		}
	}
	for block, l := range map[string]struct{ method, role, file string }{
		"consul": {c.Consul.AuthMethod, c.Consul.TokenRole, c.Consul.JWTFile},
		"nomad":  {c.Nomad.AuthMethod, c.Nomad.TokenRole, c.Nomad.JWTFile},
	} {
		if (l.method != "") != (l.role != "" || l.file != "") || l.role != "" && l.file != "" {
			report(block+".auth_method", errors.New("it needs token_role or jwt_file, and either of these needs it"))
		}
	}
	if (c.Vault.JWTRole == "") != (c.Vault.JWTFile == "") {
		report("vault.jwt_role", errors.New("jwt_role and jwt_file must be set together"))
	}
	if c.Vault.JWTFile != "" && (c.Vault.RoleID != "" || c.Vault.SecretIDFile != "") {
		report("vault.jwt_file", errors.New("a daemon logs in to Vault with a JWT or with an AppRole: remove jwt_role and jwt_file, or role_id and secret_id_file"))
	}
	if (c.Consul.CertFile == "") != (c.Consul.KeyFile == "") {
		report("consul.cert_file", errors.New("cert_file and key_file must be set together"))
	}
	return errors.Join(errs...)
}

// maxHistory bounds how many entries of the history the controller reads at once.
const maxHistory = 10_000

// CheckHistory returns an error if a controller cannot keep n revisions.
func CheckHistory(n int) error {
	if n < 1 || n > maxHistory {
		return fmt.Errorf("cannot keep %d revisions, expected 1 to %d", n, maxHistory)
	}
	return nil
}

// position returns the position of an attribute such as "listen" or "engine.listen", or the file
// alone if the value did not come from the file.
func position(body *hclsyntax.Body, path, attribute string) string {
	if block, name, nested := strings.Cut(attribute, "."); nested {
		for _, b := range body.Blocks {
			if b.Type == block {
				if a := b.Body.Attributes[name]; a != nil {
					return at(a.Expr.Range())
				}
				return at(b.DefRange())
			}
		}
	} else if a := body.Attributes[attribute]; a != nil {
		return at(a.Expr.Range())
	}
	return path
}

func checkAddr(s string) error {
	_, err := netip.ParseAddr(s)
	if err != nil {
		return fmt.Errorf("%q is not an IP address", s)
	}
	return nil
}

// checkHost returns an error if s is not an address of a family that hosts can have.
func checkHost(s string, family int) error {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not an IP address", s)
	case a.Is4() != (family == 4) || a.Is4In6():
		return fmt.Errorf("%q is not an IPv%d address", s, family)
	case !a.IsGlobalUnicast() || a.Zone() != "":
		return fmt.Errorf("%q is no address by which others can reach a machine", s)
	}
	return nil
}

// checkOutside returns an error if an interface cannot lead out of the fabric.
func checkOutside(name string) error {
	switch {
	case name == "" || len(name) > 15 || strings.ContainsAny(name, "/ \t\n"):
		return fmt.Errorf("%q is not the name of an interface", name)
	case strings.HasPrefix(name, wellknown.InterfacePrefix):
		return fmt.Errorf("%q is an interface of the fabric, which does not lead to the outside", name)
	}
	return nil
}

func checkHostPort(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not of the form host:port", s)
	}
	r, err := fabric.ParsePortRange(port)
	if err != nil || r.From != r.To {
		return fmt.Errorf("%q: %q is not a port from 1 to 65535", s, port)
	}
	return nil
}

// checkTelemetry accepts what Telemetry.Listen may be.
func checkTelemetry(s string) error {
	path, isUnix := strings.CutPrefix(s, "unix://")
	switch {
	case s == TelemetryOff || isUnix && filepath.IsAbs(path):
		return nil
	case isUnix:
		return fmt.Errorf("%q is not an absolute path after unix://, such as unix:///run/sif/agent-metrics.sock", s)
	}
	if err := checkHostPort(s); err != nil {
		return fmt.Errorf("%w, nor unix:// and a path, nor %q", err, TelemetryOff)
	}
	return nil
}

func checkPool(s string, family, nodeBits int) error {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not a prefix", s)
	case p != p.Masked():
		return fmt.Errorf("%q has host bits set, did you mean %s?", s, p.Masked())
	case p.Addr().Is4() != (family == 4):
		return fmt.Errorf("%q is not an IPv%d prefix", s, family)
	case p.Bits() > nodeBits:
		return fmt.Errorf("%q is too small: each node uses a /%d", s, nodeBits)
	}
	return nil
}

// checkDuration returns an error if a time is not one from least to most.
func checkDuration(s string, least, most time.Duration) error {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not a time such as \"90m\" or \"72h\"", s)
	case d < least || d > most:
		return fmt.Errorf("%s is outside %s to %s", d, least, most)
	}
	return nil
}

func checkIdle(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is not a time such as \"90s\" or \"6h\"", s)
	}
	return connlimit.CheckIdle(d)
}

func checkTrustDomain(s string) error {
	td, err := spiffeid.TrustDomainFromString(s)
	if err != nil {
		return fmt.Errorf("%q is not a SPIFFE trust domain: %w", s, err)
	}
	if td.Name() != s {
		return fmt.Errorf("%q is not a SPIFFE trust domain, did you mean %q?", s, td.Name())
	}
	return nil
}

// require returns an error if the file lacks what the daemon needs.
func (c *Config) require(r Role) error {
	var missing []string
	need := func(value, name string) {
		if value == "" {
			missing = append(missing, name)
		}
	}
	if r == RoleController {
		if c.IsNode() {
			return fmt.Errorf("%s: the controller is not a node: remove zone and node", c.path)
		}
	} else {
		need(c.Zone, "zone")
		need(c.Node, "node")
	}
	if r != RoleLink {
		need(c.TrustDomain, "trust_domain")
		if c.Vault.JWTFile == "" {
			need(c.Vault.RoleID, "vault.role_id")
			need(c.Vault.SecretIDFile, "vault.secret_id_file")
		}
	}
	if r == RoleEngine || r == RoleAgent {
		need(c.Underlay.Address, "underlay.address")
		need(strings.Join(c.Controller.All(), ","), "controller.addresses")
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s: sif %s requires %s", c.path, r, strings.Join(missing, ", "))
	}
	return nil
}

// checkAddresses returns an error if a node cannot have these further addresses, by name.
func checkAddresses(named map[string]string) error {
	if len(named) > fabric.MaxAddresses {
		return fmt.Errorf("%d addresses are more than %d", len(named), fabric.MaxAddresses)
	}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		a, err := netip.ParseAddr(named[name])
		if err != nil {
			return fmt.Errorf("%q of name %q is not an IP address", named[name], name)
		}
		if err := fabric.CheckAddress(name, a); err != nil {
			return err
		}
	}
	return nil
}
