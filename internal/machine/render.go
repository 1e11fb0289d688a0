// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machine

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"

	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/wellknown"
)

// Underlay is the network by which a machine reaches the others.
type Underlay struct {
	Address   netip.Addr `json:"address"`
	Interface string     `json:"interface"`
	MTU       int        `json:"mtu"` // of the interface, in bytes
}

// wireguardOverhead is the most that WireGuard adds to a packet, in bytes.
const wireguardOverhead = 80

// The bounds of config.Link.MTU.
const (
	leastLinkMTU = 1320
	mostLinkMTU  = 65455
)

// LinkMTU returns the MTU inside the links, in bytes.
func (u Underlay) LinkMTU() int { return min(max(u.MTU-wireguardOverhead, leastLinkMTU), mostLinkMTU) }

// Found is what was found on a machine, or what its operator said.
type Found struct {
	Underlay Underlay
	Consul   ConsulAgent
	Nomad    NomadAgent // of a workload node
	FabricCA string     // PEM
	Switch   bool       // Open vSwitch is installed, so that the engine of a processor without workloads uses it
}

// Daemons returns the daemons of a machine, in the order in which they start.
func Daemons(g join.Grant) []string {
	var list []string
	if g.Is(join.Controller) {
		list = append(list, string(config.RoleController))
	}
	if g.Is(join.Processor) {
		list = append(list, string(config.RoleEngine))
	}
	if g.Is(join.Workload) {
		list = append(list, string(config.RoleAgent))
	}
	return list
}

// ControllerAddress returns host:port of the controller that this machine runs.
func (f Found) ControllerAddress() string {
	return net.JoinHostPort(f.Underlay.Address.String(), wellknown.ControllerPort)
}

// Write writes the configuration of all daemons of the machine. Nothing is written if a file would
// not be valid.
func Write(j Joined, f Found) error {
	l, g := j.Layout, j.Grant
	files := map[string][]byte{}
	cas := map[string]string{fabricCAName: f.FabricCA, vaultCAName: g.Settings.Vault.CA, consulCAName: f.Consul.CA}
	if g.Is(join.Controller) {
		cas[nomadCAName] = g.Settings.Nomad.CA
	} else {
		cas[nomadCAName] = f.Nomad.CA
	}
	for name, text := range cas {
		if text != "" {
			files[name] = []byte(text)
		}
	}
	for _, daemon := range Daemons(g) {
		text := render(j, f, daemon, func(name string) string {
			if files[name] == nil {
				return ""
			}
			return filepath.Join(l.ConfigDir, name)
		})
		if _, err := config.Parse(text, l.ConfigFile(daemon), config.Role(daemon)); err != nil {
			return fmt.Errorf("make the configuration of this machine: %w", err)
		}
		files[daemon+".hcl"] = text
	}
	o := ownerOf(g)
	for _, path := range l.Files() { // of an earlier join as another kind
		name := filepath.Base(path)
		if _, wanted := files[name]; wanted || name == secretIDName || name == joinedName {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove a file of an earlier join: %w", err)
		}
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { // authorities before what names them
		if x, y := filepath.Ext(a) == ".hcl", filepath.Ext(b) == ".hcl"; x != y {
			if x {
				return 1
			}
			return -1
		}
		if a < b {
			return -1
		}
		return 1
	})
	for _, name := range names {
		perm := os.FileMode(0o640)
		if filepath.Ext(name) == ".pem" {
			perm = 0o644
		}
		// The controller's user reads them. It must not write what daemons read that run as root.
		if err := l.write(name, files[name], perm, owner{-1, o.gid}); err != nil {
			return err
		}
	}
	return nil
}

// body writes attributes that are not empty.
type body struct{ *hclwrite.Body }

func (b body) text(name, value string) {
	if value != "" {
		b.SetAttributeValue(name, cty.StringVal(value))
	}
}

// block adds a block, unless nothing is in it.
func (b body) block(name string, fill func(body)) {
	block := hclwrite.NewBlock(name, nil)
	fill(body{block.Body()})
	if len(block.Body().Attributes()) == 0 {
		return
	}
	b.AppendNewline()
	b.AppendBlock(block)
}

// render returns the configuration file of a daemon. file returns the path of a file of
// authorities, empty if there is none.
func render(j Joined, f Found, daemon string, file func(name string) string) []byte {
	l, g, s := j.Layout, j.Grant, j.Grant.Settings
	out := hclwrite.NewEmptyFile()
	b := body{out.Body()}
	isController := daemon == string(config.RoleController)
	if !isController {
		b.text("zone", g.Node.Zone)
		b.text("node", g.Node.Name)
	}
	b.text("fabric", s.Fabric)
	b.text("trust_domain", s.TrustDomain)
	run := l.RunDir
	if isController {
		run = filepath.Join(run, daemon)
	}
	b.text("data_dir", l.dataDir(daemon))
	b.text("run_dir", run)
	if isController {
		b.text("listen", f.ControllerAddress())
		b.text("policy_prefix", s.Prefix)
		b.block("pools", func(b body) {
			b.text("ipv4", s.Pools.IPv4)
			b.text("ipv6", s.Pools.IPv6)
			if s.Pools.NodePrefix != 0 {
				b.SetAttributeValue("node_prefix", cty.NumberIntVal(int64(s.Pools.NodePrefix)))
			}
		})
	} else {
		b.text("bpf_dir", l.BPFDir)
		b.block("underlay", func(b body) {
			b.text("address", f.Underlay.Address.String())
			b.text("interface", f.Underlay.Interface)
			if g.Is(join.Controller) { // the node's firewall must let the others call it
				var open []cty.Value
				for _, port := range append(slices.Clone(config.DefaultManagement), "tcp/"+wellknown.ControllerPort) {
					open = append(open, cty.StringVal(port))
				}
				b.SetAttributeValue("management", cty.ListVal(open))
			}
		})
		// A join closes no port: `sif node firewall enforce` does, when somebody wants it.
		b.block("firewall", func(b body) { b.text("mode", "report") })
		b.block("controller", func(b body) {
			all := ControllersOf(g, f)
			if len(all) == 1 {
				b.text("address", all[0])
				return
			}
			var list []cty.Value
			for _, a := range all {
				list = append(list, cty.StringVal(a))
			}
			b.SetAttributeValue("addresses", cty.ListVal(list))
		})
		b.block("link", func(b body) {
			b.SetAttributeValue("mtu", cty.NumberIntVal(int64(f.Underlay.LinkMTU())))
			b.text("socket", filepath.Join(l.RunDir, wellknown.LinkDir, wellknown.LinkSocket))
		})
	}
	b.block("vault", func(b body) {
		b.text("address", s.Vault.Address)
		b.text("ca_file", file(vaultCAName))
		b.text("namespace", s.Vault.Namespace)
		b.text("approle_mount", s.Vault.AppRoleMount)
		b.text("role_id", g.RoleID)
		b.text("secret_id_file", l.SecretIDFile())
		b.text("pki_mount", s.Vault.PKIMount)
		b.text("transit_mount", s.Vault.TransitMount)
		b.text("transit_key", s.Vault.TransitKey)
	})
	b.block("consul", func(b body) {
		b.text("address", f.Consul.Address)
		b.text("ca_file", file(consulCAName))
		b.text("cert_file", f.Consul.CertFile)
		b.text("key_file", f.Consul.KeyFile)
		b.text("auth_method", s.Consul.AuthMethod)
		b.text("token_role", s.Consul.TokenRole)
	})
	switch daemon {
	case string(config.RoleEngine):
		if f.Switch && !g.Is(join.Workload) {
			b.AppendNewline()
			b.AppendNewBlock("ovs", nil)
		}
	case string(config.RoleController):
		b.block("nomad", func(b body) {
			b.text("address", s.Nomad.Address)
			b.text("ca_file", file(nomadCAName))
			b.text("auth_method", s.Nomad.AuthMethod)
			b.text("token_role", s.Nomad.TokenRole)
		})
	case string(config.RoleAgent):
		b.block("nomad", func(b body) {
			b.text("address", f.Nomad.Address)
			b.text("ca_file", file(nomadCAName))
			b.text("node", f.Nomad.Node)
		})
		b.block("cni", func(b body) {
			b.text("plugin_dir", f.Nomad.CNIPath)
			b.text("config_dir", f.Nomad.CNIConfigDir)
		})
	}
	comment := fmt.Sprintf("# Written by sif node join: this machine is node %s of fabric %s.\n\n", g.Node, s.Fabric)
	return append([]byte(comment), hclwrite.Format(out.Bytes())...)
}

// ControllersOf returns the controllers that the daemons of the machine call, its own first if it
// has one. They find the one that leads, and learn of those that join later.
func ControllersOf(g join.Grant, f Found) []string {
	var list []string
	if g.Is(join.Controller) {
		list = append(list, f.ControllerAddress())
	}
	for _, a := range g.Controllers {
		if !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}
