// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/connlimit"
)

func none(string) string { return "" }

const agentFile = `
zone         = "aws1"
node         = "aws1-w1"
trust_domain = "sif.example"
fabric       = "lab"
log_level    = "debug"
log_json     = true
data_dir     = "/d"
run_dir      = "/r"
bpf_dir      = "/b"
underlay {
  address   = "10.1.0.11"
  interface = "eth0"
}
consul {
  address    = "https://127.0.0.1:8501"
  auth_method = "sif"
  token_role  = "sif-consul"
  ca_file    = "/d/ca.pem"
}
vault {
  address        = "https://10.0.0.1:8200"
  ca_file        = "/d/ca.pem"
  role_id        = "abc"
  secret_id_file = "/d/secret"
}
controller {
  address = "10.0.0.1:8440"
}
link {
  mtu = 8920
}
dns {
  upstream = ["10.0.0.53", "10.0.0.54:5353"]
}
`

func TestParseAgent(t *testing.T) {
	c, err := parse([]byte(agentFile), "agent.hcl", RoleAgent, none)
	must.NoError(t, err)
	must.NoError(t, c.require(RoleAgent))
	must.Eq(t, "aws1/aws1-w1", c.NodeID().String())
	must.Eq(t, "/node/aws1/aws1-w1", c.SPIFFEPath())
	must.Eq(t, "10.1.0.11", c.Underlay.Addr().String())
	must.Eq(t, "sif-pki", c.Vault.PKIMount)
	must.Eq(t, "node-aws1--aws1-w1", c.Vault.PKIRole)
	must.Eq(t, "sif-transit", c.Vault.TransitMount)
	must.Eq(t, "sif", c.Vault.TransitKey)
	must.Eq(t, 8920, c.Link.MTU)
	must.Eq(t, DeviceAuto, c.Link.Device)
	must.Eq(t, "/r/link/link.sock", c.Link.Socket)
	must.Eq(t, "/r/cni.sock", c.CNI.Socket)
	must.Eq(t, []string{"10.0.0.53:53", "10.0.0.54:5353"}, c.DNS.Upstream)
	id := c.Identity()
	must.Eq(t, "https://10.0.0.1:8200", id.VaultAddress)
	must.SliceEmpty(t, id.IPs)
	must.Error(t, c.require(RoleController))
}

func TestEnvironmentFillsWhatTheFileLeavesEmpty(t *testing.T) {
	env := map[string]string{
		"CONSUL_HTTP_ADDR": "10.9.9.9:8500", "CONSUL_CACERT": "/env/ca.pem",
		"VAULT_ADDR": "http://10.9.9.9:8200", "NOMAD_ADDR": "http://10.9.9.9:4646",
	}
	getenv := func(k string) string { return env[k] }
	c, err := parse([]byte(`trust_domain = "sif.example"`), "c.hcl", RoleController, getenv)
	must.NoError(t, err)
	must.Eq(t, "10.9.9.9:8500", c.Consul.Address)
	must.Eq(t, "/env/ca.pem", c.Consul.CAFile)
	must.Eq(t, "controller", c.Vault.PKIRole)
	must.Eq(t, "/controller", c.SPIFFEPath())
	must.Eq(t, "/var/lib/sif/controller", c.DataDir)
	for file, want := range map[string]int{
		"": 22, "pools {\n  ipv4 = \"10.0.0.0/23\"\n}\n": 23, "pools {\n  ipv4 = \"10.0.0.0/24\"\n}\n": 24, "pools {\n  node_prefix = 21\n}\n": 21,
	} {
		c, err := parse([]byte("trust_domain = \"sif.example\"\n"+file), "c.hcl", RoleController, getenv)
		must.NoError(t, err)
		must.Eq(t, want, c.Pools.NodePrefix, must.Sprint(file))
	}

	c, err = parse([]byte(agentFile), "agent.hcl", RoleAgent, getenv)
	must.NoError(t, err)
	must.Eq(t, "https://127.0.0.1:8501", c.Consul.Address)
	must.Eq(t, "/d/ca.pem", c.Consul.CAFile)
}

func TestTelemetry(t *testing.T) {
	for _, c := range []struct {
		role Role
		text string
		want string
		port uint16 // 0: nobody outside the node reads
	}{
		{RoleAgent, "", "127.0.0.1:8445", 0},
		{RoleEngine, "", "127.0.0.1:8446", 0},
		{RoleLink, "", "", 0},
		{RoleAgent, "off", "off", 0},
		{RoleAgent, "unix:///run/sif/metrics.sock", "unix:///run/sif/metrics.sock", 0},
		{RoleAgent, "[::1]:9000", "[::1]:9000", 0},
		{RoleAgent, "localhost:9000", "localhost:9000", 0},
		{RoleAgent, ":9000", ":9000", 9000},
		{RoleEngine, "10.0.0.1:9000", "10.0.0.1:9000", 9000},
	} {
		text := agentFile
		if c.text != "" {
			text += fmt.Sprintf("telemetry {\n  listen = %q\n}\n", c.text)
		}
		conf, err := parse([]byte(text), "agent.hcl", c.role, func(string) string { return "" })
		must.NoError(t, err)
		must.Eq(t, c.want, conf.Telemetry.Listen)
		port, outside := conf.Telemetry.Outside()
		must.Eq(t, c.port, port)
		must.Eq(t, c.port != 0, outside)
	}
	_, err := parse([]byte("telemetry {\n  listen = \"off\"\n}\n"), "c.hcl", RoleController, func(string) string { return "" })
	must.ErrorContains(t, err, "c.hcl:2:12: telemetry.listen is of agents and engines")
}

func TestErrorsCarryPositions(t *testing.T) {
	for name, tc := range map[string]struct{ src, want string }{
		"syntax":            {"zone = \n", "x.hcl:1:8: "},
		"unknown attribute": {"zone = \"a\"\nnode = \"b\"\nzune = \"c\"\n", "x.hcl:3:1: Unsupported argument"},
		"unknown block":     {"foo {\n}\n", "x.hcl:1:1: Unsupported block type"},
		"unknown nested":    {"vault {\n  rol_id = \"x\"\n}\n", "x.hcl:2:3: Unsupported argument"},
		"twice":             {"vault {\n}\nvault {\n}\n", "x.hcl:3:1: Duplicate vault block"},
		"wrong type":        {"link {\n  mtu = \"many\"\n}\n", "x.hcl:2:10: "},
		"bad zone":          {"zone = \"AWS\"\nnode = \"n\"\n", "x.hcl:1:8: zone: name \"AWS\" contains"},
		"only a zone":       {"zone = \"aws\"\n", "x.hcl:1:8: zone: zone and node must be set together"},
		"half a log-in":     {"consul {\n  auth_method = \"sif\"\n}\n", "x.hcl:2:17: consul.auth_method: it needs token_role or jwt_file"},
		"two JWTs":          {"nomad {\n  auth_method = \"sif\"\n  token_role = \"r\"\n  jwt_file = \"f\"\n}\n", "x.hcl:2:17: nomad.auth_method: it needs token_role or jwt_file"},
		"half a JWT":        {"vault {\n  jwt_role = \"r\"\n}\n", "x.hcl:2:14: vault.jwt_role: jwt_role and jwt_file must be set together"},
		"two logins":        {"vault {\n  jwt_role = \"r\"\n  jwt_file = \"/f\"\n  role_id = \"i\"\n}\n", "x.hcl:3:14: vault.jwt_file: a daemon logs in to Vault with a JWT or with an AppRole"},
		"bad underlay":      {"underlay {\n  address = \"10.0.0\"\n}\n", "x.hcl:2:13: underlay.address: \"10.0.0\" is not an IP address"},
		"bad attachment":    {"bpf_attach = \"xdp\"\n", "x.hcl:1:14: bpf_attach: \"xdp\" is not one of auto, tcx, clsact"},
		"bad mode":          {"firewall {\n  mode = \"off\"\n}\n", "x.hcl:2:10: firewall.mode: \"off\" is not one of enforce, report"},
		"bad port":          {"controller {\n  address = \"c:70000\"\n}\n", "x.hcl:2:13: controller.address: "},
		"pool family":       {"pools {\n  ipv4 = \"fd00::/32\"\n}\n", "x.hcl:2:10: pools.ipv4: "},
		"pool bits":         {"pools {\n  ipv4 = \"100.64.0.1/10\"\n}\n", "did you mean 100.64.0.0/10?"},
		"node's pool":       {"pools {\n  node_prefix = 19\n}\n", "x.hcl:2:17: pools.node_prefix: a prefix of 19 bits is outside 20"},
		"small pool":        {"pools {\n  ipv4 = \"10.0.0.0/21\"\n  node_prefix = 20\n}\n", "x.hcl:2:10: pools.ipv4: \"10.0.0.0/21\" is too small: each node uses a /20"},
		"pool size":         {"pools {\n  ipv6 = \"fd00::/80\"\n}\n", "too small"},
		"log level":         {"log_level = \"loud\"\n", "x.hcl:1:13: log_level: \"loud\""},
		"trust domain":      {"trust_domain = \"Sif Example\"\n", "x.hcl:1:16: trust_domain: "},
		"mtu":               {"link {\n  mtu = 100\n}\n", "x.hcl:2:9: link.mtu: 100 is outside"},
		"link device":       {"link {\n  device = \"tun\"\n}\n", "x.hcl:2:12: link.device: \"tun\" is not one of auto, kernel, userspace"},
		"key period":        {"link {\n  key_period = \"30s\"\n}\n", "x.hcl:2:16: link.key_period: 30s is shorter than 1m0s; 0 leaves the key as it is"},
		"no key period":     {"link {\n  key_period = \"daily\"\n}\n", "link.key_period: \"daily\" is not a time such as \"24h\""},
		"history":           {"history = 0\n", "x.hcl:1:11: history: cannot keep 0 revisions, expected 1 to 10000"},
		"audit size":        {"audit {\n  rotate_bytes = -1\n}\n", "x.hcl:2:18: audit.rotate_bytes: -1 must not be negative"},
		"audit files":       {"audit {\n  rotate_bytes = 1\n  rotate_max_files = -1\n}\n", "x.hcl:3:22: audit.rotate_max_files: -1 must not be negative"},
		"audit files alone": {"audit {\n  rotate_max_files = 1\n}\n", "x.hcl:2:22: audit.rotate_max_files: it requires rotate_bytes"},
		"named address":     {"underlay {\n  addresses = { private = \"10.0.0\" }\n}\n", "x.hcl:2:15: underlay.addresses: \"10.0.0\" of name \"private\" is not an IP address"},
		"default address":   {"underlay {\n  addresses = { default = \"10.0.0.1\" }\n}\n", "underlay.addresses: \"default\" is the underlay address"},
		"link-local":        {"underlay {\n  addresses = { private = \"fe80::1\" }\n}\n", "underlay.addresses: address \"fe80::1\" of name \"private\" is not one that other nodes reach"},
		"metrics":           {"telemetry {\n  listen = \"8445\"\n}\n", "x.hcl:2:12: telemetry.listen: \"8445\" is not of the form host:port, nor unix:// and a path, nor \"off\""},
		"metrics' socket":   {"telemetry {\n  listen = \"unix://metrics.sock\"\n}\n", "x.hcl:2:12: telemetry.listen: \"unix://metrics.sock\" is not an absolute path after unix://"},
		"reserved port":     {"underlay {\n  reserved_ports = [\"tcp/22\", \"9100\"]\n}\n", "x.hcl:2:20: underlay.reserved_ports: \"9100\" is not of the form protocol/port"},
		"reserved ports":    {"underlay {\n  reserved_ports = [\"udp/5100-5000\"]\n}\n", "underlay.reserved_ports: \"udp/5100-5000\": "},
		"idle time":         {"connections {\n  udp = \"long\"\n}\n", "x.hcl:2:9: connections.udp: \"long\" is not a time such as"},
		"idle too short":    {"connections {\n  icmp = \"1ms\"\n}\n", "x.hcl:2:10: connections.icmp: 1ms is outside 1s to 720h"},
		"no connections":    {"connections {\n  per_endpoint = 0\n}\n", "x.hcl:2:18: connections.per_endpoint: 0 is outside 16 to 524288"},
		"flows in no place": {"flows {\n  file = \"flows.json\"\n}\n", "flows.file: \"flows.json\" must be an absolute path"},
		"flows in kB":       {"flows {\n  rotate_bytes = 1000\n}\n", "flows.rotate_bytes: 1000 must be a multiple of 1048576"},
		"too many flows":    {"flows {\n  keep = 1000001\n}\n", "flows.keep: 1000001 is outside 1-1000000"},
		"negative rate":     {"connections {\n  zone_new_per_second = -1\n}\n", "x.hcl:2:25: connections.zone_new_per_second: -1 is outside 0 to 1000000"},
		"management":        {"underlay {\n  management = [\"tcp\"]\n}\n", "x.hcl:2:16: underlay.management: \"tcp\" would open all ports: name each, such as \"tcp/22\""},
		"no protocol":       {"underlay {\n  management = [\"vrpp\"]\n}\n", "\"vrpp\" is not of the form protocol/port, such as \"tcp/22\", nor proto/number, nor one of ah, esp, "},
		"protocol number":   {"underlay {\n  management = [\"proto/256\"]\n}\n", "\"256\" is not the number of a protocol, from 1 to 255"},
		"all of TCP":        {"underlay {\n  management = [\"proto/6\"]\n}\n", "\"proto/6\" would open all ports: name each, such as \"tcp/22\""},
		"port of VRRP":      {"underlay {\n  management = [\"vrrp/22\"]\n}\n", "vrrp has no ports here: write \"vrrp\""},
		"range":             {"underlay {\n  management = [\"tcp/22-23\"]\n}\n", "expected a single port, not a range"},
		"no exposed port":   {"expose {\n}\n", "x.hcl:1:8: Missing required argument"},
		"exposed protocol":  {"expose {\n  port = 80\n}\nexpose {\n  port = 81\n  protocol = \"sctp\"\n}\n", "x.hcl:6:14: expose.protocol: \"sctp\" is neither \"tcp\" nor \"udp\""},
		"exposed DNS":       {"expose {\n  port = 53\n}\n", "x.hcl:2:10: expose.port: tcp port 53 is one of SIF's own, of the node's DNS server"},
		"exposed resolver":  {"expose {\n  port = 5353\n  to = \"127.0.0.53:53\"\n}\n", "x.hcl:3:8: expose.to: tcp port 53 is one of SIF's own"},
		"exposed link":      {"expose {\n  protocol = \"udp\"\n  port = 51825\n}\n", "x.hcl:3:10: expose.port: udp port 51825 is one of SIF's own, to which"},
		"exposed engine":    {"engine {\n  listen = \":9441\"\n}\nexpose {\n  port = 80\n  to = \"10.0.0.1:9441\"\n}\n", "x.hcl:6:8: expose.to: tcp port 9441 is one of SIF's own, of engines"},
		"exposed port":      {"expose {\n  port = 70000\n}\n", "x.hcl:2:10: expose.port: 70000 is not a port"},
		"exposed to ::1":    {"expose {\n  port = 80\n  to = \"[::1]:80\"\n}\n", "x.hcl:3:8: expose.to: \"[::1]:80\": the kernel leads nothing to ::1: name the IPv4 loopback address, or"},
		"exposed to all":    {"expose {\n  port = 80\n  to = \"0.0.0.0:80\"\n}\n", "0.0.0.0 is not an address of this node"},
		"exposed to a link": {"expose {\n  port = 80\n  to = \"169.254.169.254:80\"\n}\n", "of link-local addresses only 169.254.1.1 and fe80::1"},
		"exposed to a name": {"expose {\n  port = 80\n  to = \"localhost:80\"\n}\n", "x.hcl:3:8: expose.to: \"localhost:80\" is not of the form address:port"},
		"exposed twice":     {"expose {\n  port = 80\n}\nexpose {\n  port = 80\n  to = \"10.0.0.1:90\"\n}\n", "x.hcl:5:10: expose.port: tcp port 80 is exposed twice"},
		"dns":               {"dns {\n  upstream = [\"resolver\"]\n}\n", "x.hcl:2:14: dns.upstream: "},
		"dns outside":       {"dns {\n  outside = \"allow\"\n}\n", "x.hcl:2:3: Unsupported argument"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse([]byte(tc.src), "x.hcl", RoleAgent, none)
			must.ErrorContains(t, err, tc.want)
		})
	}
}

func TestManagement(t *testing.T) {
	for text, want := range map[string]struct {
		protocol fabric.Protocol
		port     uint16
	}{
		"tcp/22": {fabric.TCP, 22}, "udp/546": {fabric.UDP, 546}, "sctp/3868": {fabric.SCTP, 3868}, "vrrp": {112, 0}, "proto/112": {112, 0},
		"icmp": {fabric.ICMP, 0}, "igmp": {2, 0},
	} {
		protocol, port, err := ParseManagement(text)
		must.NoError(t, err, must.Sprint(text))
		must.Eq(t, want.protocol, protocol)
		must.Eq(t, want.port, port)
	}
}

func TestExposures(t *testing.T) {
	c, err := parse([]byte(`
expose {
  port = 8500
}
expose {
  protocol = "udp"
  port     = 8125
  to       = "127.0.0.1:18125"
}
expose {
  port = 8500
  to   = "[fe80::1]:8500"
}
`), "x.hcl", RoleAgent, none)
	must.NoError(t, err)
	must.Eq(t, []Exposure{
		{fabric.TCP, 8500, netip.MustParseAddrPort("127.0.0.1:8500")},
		{fabric.UDP, 8125, netip.MustParseAddrPort("127.0.0.1:18125")},
		{fabric.TCP, 8500, netip.MustParseAddrPort("[fe80::1]:8500")},
	}, c.Exposures())
}

func TestConnectionLimits(t *testing.T) {
	c, err := parse([]byte("connections {\n  udp = \"90s\"\n  switch = 2000\n}\n"), "x.hcl", RoleAgent, none)
	must.NoError(t, err)
	want := connlimit.Default()
	want.Idle.UDP, want.Switch = 90*time.Second, 2000
	must.Eq(t, want, c.Connections.Limits())
	must.Eq(t, connlimit.Default(), new(Connections).Limits())
}

func TestRequireNamesWhatIsMissing(t *testing.T) {
	c, err := parse([]byte("zone = \"a\"\nnode = \"b\"\n"), "x.hcl", RoleAgent, none)
	must.NoError(t, err)
	must.EqError(t, c.require(RoleAgent), "x.hcl: sif agent requires trust_domain, vault.role_id, vault.secret_id_file, underlay.address, controller.addresses")
	must.NoError(t, c.require(RoleLink))
}

func TestLoginWithJWT(t *testing.T) {
	c, err := parse([]byte("trust_domain = \"sif.example\"\nvault {\n  jwt_role = \"sif-controller\"\n  jwt_file = \"/secrets/nomad_vault.jwt\"\n}\n"), "x.hcl", RoleAgent, none)
	must.NoError(t, err)
	must.NoError(t, c.require(RoleController))
	id := c.Identity()
	must.Eq(t, "sif-nomad", id.JWTMount)
	must.Eq(t, "sif-controller", id.JWTRole)
	must.Eq(t, "/secrets/nomad_vault.jwt", id.JWTFile)
}

func TestLoadAndClients(t *testing.T) {
	dir := t.TempDir()
	_, err := Load(filepath.Join(dir, "absent.hcl"), RoleAgent)
	must.ErrorIs(t, err, os.ErrNotExist)

	path := filepath.Join(dir, "c.hcl")
	must.NoError(t, os.WriteFile(path, []byte("trust_domain = \"sif.example\"\nconsul {\n  ca_file = \"/nowhere/ca.pem\"\n}\nvault {\n  role_id        = \"i\"\n  secret_id_file = \"/s\"\n}\n"), 0o600))
	c, err := Load(path, RoleController)
	must.NoError(t, err)
	_, err = c.ConsulClient(nil)
	must.ErrorContains(t, err, "/nowhere/ca.pem")
	nomad, err := c.NomadClient(nil)
	must.NoError(t, err)
	must.True(t, strings.HasPrefix(nomad.Address(), "http://"))
}

// An engine has a switch if its file has the block; what the block leaves out has defaults.
func TestSwitch(t *testing.T) {
	const node = "zone = \"a\"\nnode = \"b\"\n"
	c, err := parse([]byte(node), "x.hcl", RoleEngine, none)
	must.NoError(t, err)
	_, has := c.Switch()
	must.False(t, has)
	must.Eq(t, "/var/lib/sif/engine", c.DataDir)
	c, err = parse([]byte(node+"ovs {\n}\n"), "x.hcl", RoleEngine, none)
	must.NoError(t, err)
	at, has := c.Switch()
	must.True(t, has)
	must.Eq(t, "x.hcl:3:1", at)
	must.Eq(t, "br-sif", c.OVS.Bridge)
	c, err = parse([]byte(node), "x.hcl", RoleAgent, none)
	must.NoError(t, err)
	must.Eq(t, "/var/lib/sif", c.DataDir)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(agentFile))
	f.Add([]byte("zone = 1"))
	f.Fuzz(func(t *testing.T, src []byte) {
		c, err := parse(src, "x.hcl", RoleAgent, none)
		if (c == nil) == (err == nil) {
			t.Fatalf("config %v with error %v", c, err)
		}
		if err == nil {
			c.Underlay.Addr()
			c.Pools.Prefixes()
			c.Identity()
		}
	})
}
