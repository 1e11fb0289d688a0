// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/engine/exit"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/host"
	"github.com/sif-project/sif/internal/wellknown"
)

// machine looks at the kernel, the clock and the disks.
func (p *patient) machine(context.Context) []host.Finding {
	var findings []host.Finding
	if os.Geteuid() != 0 {
		findings = append(findings, host.Finding{Check: "user", Subject: "the user", Result: host.Warning,
			Detail: "is not root, so a part cannot be looked at", Remedy: "run the command as root"})
	}
	findings = append(findings, linux(p.node()))
	if p.is(join.Workload) {
		findings = append(findings, programs())
		if c := p.configs[join.Workload]; c != nil {
			findings = append(findings, bpfFS(c.BPFDir))
		}
	}
	if p.node() {
		findings = append(findings, host.WireGuard(p.device()), host.IPv6(), host.Routing())
		findings = append(findings, host.Sysctls("/")...)
	}
	findings = append(findings, host.ClockKept())
	var dirs []string
	for _, d := range daemons {
		if c := p.configs[d.kind]; c != nil && !slices.Contains(dirs, c.DataDir) {
			dirs = append(dirs, c.DataDir)
			findings = append(findings, host.Disk(c.DataDir))
		}
	}
	return findings
}

// device says what shall run the links.
func (p *patient) device() string {
	if c := p.any(); c != nil {
		return c.Link.Device
	}
	return config.DeviceAuto
}

// linux names the kernel. That of a node must be new enough, which the other checks try.
func linux(node bool) host.Finding {
	f := host.Finding{Check: "kernel", Subject: "Linux", Result: host.Well}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		f.Result, f.Detail = host.Skipped, err.Error()
		return f
	}
	release := unix.ByteSliceToString(u.Release[:])
	f.Detail = fmt.Sprintf("is %s on %s", release, runtime.GOARCH)
	if node && older(release, minimumKernel) {
		f.Result, f.Remedy = host.Wrong, "boot a kernel of the distribution that is new enough"
		f.Detail += ", and a node needs " + minimumKernel
	}
	return f
}

// older compares versions such as "6.1.0-50-cloud-amd64" and "6.1".
func older(release, minimum string) bool {
	number := func(s string, i int) int {
		parts := strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
		if i >= len(parts) {
			return 0
		}
		n, err := strconv.Atoi(parts[i])
		if err != nil {
			return 0
		}
		return n
	}
	for i := range 2 {
		if a, b := number(release, i), number(minimum, i); a != b {
			return a < b
		}
	}
	return false
}

// minimumKernel is the oldest kernel that has all that a node needs.
const minimumKernel = "6.1"

const newerKernel = "boot a kernel that has it: the distribution's own from Linux " + minimumKernel + " on do"

// programs tries the data path: what the kernel has of what it needs, how it would be attached, and
// whether it can be loaded.
func programs() host.Finding {
	f := host.Finding{Check: "bpf", Subject: "the data path", Result: host.Well}
	by, missing, err := bpf.Probe()
	if err == nil && len(missing) == 0 {
		err = bpf.TryPrograms()
	}
	switch {
	case len(missing) > 0:
		var names []string
		for _, m := range missing {
			names = append(names, m.String())
		}
		f.Result, f.Detail, f.Remedy = host.Wrong, "does not work: the kernel has no "+strings.Join(names, ", "), newerKernel
	case err == nil:
		f.Detail = fmt.Sprintf("can be loaded, and attached by %s", by)
	case errors.Is(err, unix.EPERM) && os.Geteuid() != 0:
		f.Result, f.Detail, f.Remedy = host.Skipped, "was not tried: "+err.Error(), "run the command as root"
	case errors.Is(err, unix.EPERM):
		f.Result, f.Detail, f.Remedy = host.Wrong, "may not be loaded: "+err.Error(), "see \"dmesg\": lockdown, a container or a security module forbids eBPF"
	default:
		f.Result, f.Detail, f.Remedy = host.Wrong, "does not work: "+err.Error(), newerKernel
	}
	return f
}

// bpfFS looks for the file system of pins, which the agent mounts where there is none.
func bpfFS(dir string) host.Finding {
	f := host.Finding{Check: "bpf", Subject: dir, Result: host.Well, Detail: "is on a BPF file system"}
	known, err := os.ReadFile("/proc/filesystems")
	switch on, mounted := bpf.OnBPFFS(dir); {
	case mounted == nil && on:
	case err == nil && !slices.Contains(strings.Fields(string(known)), "bpf"):
		f.Result, f.Detail, f.Remedy = host.Wrong, "cannot be a BPF file system, which the kernel does not have (CONFIG_BPF_SYSCALL)", newerKernel
	default:
		f.Detail = "is not on a BPF file system yet; the agent mounts one there"
	}
	return f
}

// network looks at addresses, ports and firewalls.
func (p *patient) network(context.Context) []host.Finding {
	findings := host.Ports(p.ports())
	if !p.node() {
		return findings
	}
	findings = append(findings, host.LinkPorts(p.kept.Ports))
	c := p.any()
	if c == nil {
		return findings
	}
	if c.Underlay.Addr().IsValid() {
		findings = append(findings, host.Underlay(c.Underlay.Addr(), c.Underlay.Interface))
	}
	if pools := p.pools(); len(pools) > 0 {
		f := host.Finding{Check: "pools", Subject: "the fabric's pools", Result: host.Well, Detail: fmt.Sprintf("%s hold nothing that this machine uses", pools)}
		around, err := host.LookAround(c.DNS.Upstream)
		inside := around.Within(pools)
		if err != nil {
			f.Result, f.Detail = host.Skipped, "could not be compared: "+err.Error()
		}
		if err != nil || len(inside) == 0 {
			inside = []host.Finding{f}
		}
		findings = append(findings, inside...)
	}
	return append(findings, host.Firewalls(firewall.New(p.firewall(c)))...)
}

// firewall describes the node's firewall as its daemon would.
func (p *patient) firewall(c *config.Config) firewall.Config {
	links := p.kept.Ports
	if len(links) == 0 {
		links = []uint16{wellknown.FirstLinkPort}
	}
	conf := firewall.Config{
		Underlay: c.Underlay.Interface, Ranges: p.pools(), Links: func() []uint16 { return links },
		Published: c.Connections.Limits().PublishedPerSecond, DNSPackets: firewall.DNSPacketsPerSecond,
	}
	conf.Agents = p.is(join.Workload)
	if p.is(join.Processor) {
		port := listened(c.Engine.Listen, wellknown.EnginePort).Port()
		conf.Engine = func() uint16 { return port }
	}
	return conf
}

// listened returns where a daemon listens whose configuration says host:port; any address where it
// names none, or a host by its name. usual is the port of a daemon without such an attribute.
func listened(address, usual string) netip.AddrPort {
	hostname, text, err := net.SplitHostPort(address)
	if err != nil {
		text = usual
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return netip.AddrPort{}
	}
	at, err := netip.ParseAddr(hostname)
	if err != nil || at.IsUnspecified() {
		at = netip.IPv4Unspecified()
	}
	return netip.AddrPortFrom(at, uint16(port))
}

// ports returns what the daemons listen on.
func (p *patient) ports() []host.Port {
	var list []host.Port
	if c := p.configs[join.Controller]; c != nil {
		list = append(list, host.Port{Protocol: fabric.TCP, At: listened(c.Listen, wellknown.ControllerPort), For: "the controller's API"})
	}
	for kind, usual := range map[join.Kind]string{join.Workload: wellknown.AgentMetricsPort, join.Processor: wellknown.EngineMetricsPort} {
		if c := p.configs[kind]; c != nil && c.Telemetry.Listens() {
			list = append(list, host.Port{Protocol: fabric.TCP, At: listened(c.Telemetry.Listen, usual), For: "metrics"})
		}
	}
	if c := p.configs[join.Processor]; c != nil {
		list = append(list, host.Port{Protocol: fabric.TCP, At: listened(c.Engine.Listen, wellknown.EnginePort), For: "the engine"})
	}
	if p.node() {
		any := netip.AddrPortFrom(netip.IPv4Unspecified(), wellknown.ProbePort)
		list = append(list, host.Port{Protocol: fabric.UDP, At: any, For: "probes among nodes"})
	}
	if p.is(join.Workload) {
		any := netip.AddrPortFrom(netip.IPv4Unspecified(), wellknown.AgentPort)
		list = append(list, host.Port{Protocol: fabric.TCP, At: any, For: "the agents of the zone"})
		for _, protocol := range []fabric.Protocol{fabric.UDP, fabric.TCP} {
			list = append(list, host.Port{Protocol: protocol, At: host.Resolver, For: "the endpoints' DNS server"})
		}
	}
	return list
}

// openVSwitch looks at a processor's switch. An engine that only carries requests has none, and
// that of a machine with workloads cannot have one.
func (p *patient) openVSwitch(ctx context.Context) []host.Finding {
	c := p.configs[join.Processor]
	if c == nil {
		return nil
	}
	if _, has := c.Switch(); !has && (p.joined || p.is(join.Workload)) {
		return nil
	}
	f := host.Finding{Check: "openvswitch", Subject: "Open vSwitch", Result: host.Well}
	sw := ovs.NewSwitch(ovs.Config{RunDir: c.OVS.RunDir, Database: strings.TrimPrefix(c.OVS.DB, "unix:"), Control: c.OVS.Control, Bridge: c.OVS.Bridge})
	got, err := sw.Survey(ctx)
	const start = "systemctl start openvswitch-switch (or ovs.db, ovs.rundir and ovs.control of engine.hcl name another instance)"
	switch {
	case errors.Is(err, ovs.ErrNotInstalled) && !p.joined:
		f.Result, f.Detail = host.Warning, "is not installed, so the engine would only carry requests, which is all that one zone needs"
		f.Remedy = "apt-get install openvswitch-switch, for a second zone"
	case errors.Is(err, ovs.ErrNotInstalled):
		f.Result, f.Detail, f.Remedy = host.Wrong, "is not installed", "apt-get install openvswitch-switch"
	case err != nil:
		f.Result, f.Detail, f.Remedy = host.Wrong, "does not work: "+err.Error(), start
	case got.Datapath == "netdev" && !got.Offload:
		f.Result, f.Detail = host.Wrong, fmt.Sprintf("%s has a datapath in user space without offload of TCP segments, so no TCP passes between zones", got.Version)
		f.Remedy = "modprobe openvswitch, or: ovs-vsctl set Open_vSwitch . other_config:userspace-tso-enable=true && systemctl restart openvswitch-switch"
	case got.Datapath == "netdev":
		f.Result, f.Detail, f.Remedy = host.Warning, got.Version+" has a datapath in user space only, which is slower", "modprobe openvswitch"
	default:
		f.Detail = got.Version + " runs, with the kernel's datapath"
	}
	return []host.Finding{f, judgeExit(exit.Try())}
}

// judgeExit judges whether the switch can lead to the outside.
func judgeExit(err error) host.Finding {
	f := host.Finding{Check: "exit", Subject: "the exit to the outside", Result: host.Well, Detail: "can be made, with its rules and address translation"}
	switch {
	case errors.Is(err, os.ErrPermission):
		f.Result, f.Detail, f.Remedy = host.Skipped, "could not be tried: "+err.Error(), "run the command as root"
	case err != nil:
		f.Result, f.Detail = host.Wrong, "cannot be made: "+err.Error()
		f.Remedy = "modprobe -a veth nf_tables nf_conntrack nft_ct nft_chain_nat nft_nat nft_connlimit nft_limit"
	}
	return f
}

// addressOf resolves the host of an address such as https://vault:8200.
func addressOf(ctx context.Context, hostname string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(hostname); err == nil {
		return a.Unmap(), nil
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", hostname)
	if err != nil {
		return netip.Addr{}, err
	}
	return found[0].Unmap(), nil
}
