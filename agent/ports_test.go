// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/node/listener"
	"github.com/sif-project/sif/internal/testhost"
)

func portsOf(id string, number int, asked ...cnicall.PortMapping) endpoint {
	return endpoint{ID: id, Attachment: at(id), Ports: asked,
		IPv4: netip.AddrFrom4([4]byte{100, 64, 0, byte(number)}), IPv6: netip.MustParseAddr(fmt.Sprintf("fd5f::%d", number))}
}

func asks(protocol string, port uint16, host string) cnicall.PortMapping {
	return cnicall.PortMapping{Protocol: protocol, HostPort: port, ContainerPort: 80, HostIP: host}
}

func noSockets() ([]listener.Socket, error) { return nil, nil }

// What one endpoint asks for in vain costs no other endpoint anything.
func TestPortsAreJudgedOneByOne(t *testing.T) {
	var written []firewall.PortMapping
	p := newPorts("lo", ownPorts{sockets: noSockets}, func(list []firewall.PortMapping) error { written = list; return nil })
	p.complete = true
	holder := portsOf("holder", 2, asks("tcp", 18090, "127.0.0.1"), asks("udp", 18090, "127.0.0.1"))
	must.NoError(t, p.claim(holder))
	must.Len(t, 2, written)
	for want, ep := range map[string]endpoint{
		"tcp port 127.0.0.1:18090 of the node leads to endpoint holder until that is stopped": portsOf("a", 3, asks("tcp", 18090, "127.0.0.1")),
		"tcp port 0.0.0.0:18090 of the node leads to endpoint holder":                         portsOf("b", 3, asks("tcp", 18090, "")),
		"tcp port 127.0.0.1:18091 of the node is asked for twice":                             portsOf("c", 3, asks("tcp", 18091, "127.0.0.1"), asks("tcp", 18091, "127.0.0.1")),
		"203.0.113.9 is not an address of lo, the underlay's interface":                       portsOf("d", 3, asks("tcp", 18092, "203.0.113.9")),
		"2001:db8::9 is not an address of lo":                                                 portsOf("e", 3, asks("tcp", 18092, "2001:db8::9")),
		"only TCP and UDP ports can be mapped":                                                portsOf("f", 3, asks("sctp", 18093, "127.0.0.1")),
		"a port is missing":                                                                   portsOf("g", 3, asks("tcp", 0, "127.0.0.1")),
		"the address \"nowhere\" of the node":                                                 portsOf("h", 3, asks("tcp", 18094, "nowhere")),
	} {
		ep.Ports = append(ep.Ports, asks("tcp", 18099, "127.0.0.1")) // none of its ports is mapped
		err := p.claim(ep)
		must.ErrorContains(t, err, want)
		must.ErrorContains(t, err, "ports of endpoint "+ep.ID+": ")
		must.Len(t, 2, written)
		must.NoError(t, p.claim(portsOf("other", 4, asks("tcp", 18095, "127.0.0.1"))))
		must.Len(t, 3, written)
		must.NoError(t, p.release(at("other")))
	}
	both := portsOf("both", 5, asks("tcp", 18096, ""), asks("udp", 18097, "::"))
	must.NoError(t, p.claim(both))
	must.Len(t, 3, p.of(both.Attachment))
	must.Eq(t, []string{
		"tcp port 0.0.0.0:18096 of the node to 100.64.0.5:80", "tcp port 127.0.0.1:18090 of the node to 100.64.0.2:80",
		"udp port 127.0.0.1:18090 of the node to 100.64.0.2:80", "tcp port [::]:18096 of the node to [fd5f::5]:80",
		"udp port [::]:18097 of the node to [fd5f::5]:80",
	}, words(written))

	// The one that waited gets the port when the holder is gone.
	waiting := portsOf("waiting", 6, asks("tcp", 18090, "127.0.0.1"))
	must.Error(t, p.claim(waiting))
	must.False(t, p.has(waiting))
	must.NoError(t, p.release(holder.Attachment))
	must.NoError(t, p.claim(waiting))
	must.True(t, p.has(waiting))
	must.Eq(t, "tcp port 127.0.0.1:18090 of the node to 100.64.0.6:80", written[1].String())
}

func words(list []firewall.PortMapping) (words []string) {
	for _, m := range list {
		words = append(words, m.String())
	}
	return words
}

// A mapping that the kernel refuses is not held.
func TestPortsRefusedByTheKernel(t *testing.T) {
	refused := errors.New("no")
	p := newPorts("lo", ownPorts{sockets: noSockets}, func([]firewall.PortMapping) error { return refused })
	p.complete = true
	ep := portsOf("a", 2, asks("tcp", 18090, "127.0.0.1"))
	must.ErrorIs(t, p.claim(ep), refused)
	must.False(t, p.has(ep))
}

// Of two endpoints on disk that ask for one port, one has it; the other one is named until the
// first is detached. An ADD meanwhile gets what it asks for, or fails alone.
func TestConflictingPortsOfEndpoints(t *testing.T) {
	testhost.RequireRoot(t)
	node := newNamespace(t)
	a, _, _ := hookedAgent(t)
	must.NoError(t, node.Do(func(ns.NetNS) error {
		must.NoError(t, kernel.Set(kernel.State{Interfaces: []kernel.Interface{{Name: "lo"}}}))
		_, err := a.firewall.Apply()
		must.NoError(t, err)
		for i, id := range []string{"a", "b", "c"} {
			ep := portsOf(id, 2+i, asks("tcp", 18090, "127.0.0.1"))
			if id == "c" {
				ep.Ports[0].HostPort = 18091
			}
			ep.Admission = fabric.Admission{Endpoint: id}
			must.NoError(t, a.endpoints.put(ep)())
		}
		must.ErrorContains(t, a.keepPorts(), "ports of endpoint b: tcp port 127.0.0.1:18090 of the node leads to endpoint a until that is stopped")
		must.ErrorContains(t, a.keepPorts(), "ports of endpoint b")
		for id, has := range map[string]bool{"a": true, "b": false, "c": true} {
			ep, _ := a.endpoints.get(at(id))
			must.Eq(t, has, a.ports.has(ep), must.Sprint(id))
		}

		adding := &attachment{namespace: newNamespace(t), parts: stopwatch{last: time.Now()},
			endpoint: endpoint{ID: "d", Attachment: at("d"), HostIf: "sif0123456789d", Ports: []cnicall.PortMapping{asks("tcp", 18091, "127.0.0.1")}}}
		must.ErrorContains(t, a.attachAll(t.Context(), adding), "leads to endpoint c until that is stopped")
		must.MapEmpty(t, a.addresses.resting) // the controller was not asked

		must.NoError(t, a.remove(t.Context(), at("a")))
		must.NoError(t, a.keepPorts())
		ep, _ := a.endpoints.get(at("b"))
		must.True(t, a.ports.has(ep))
		return nil
	}))
}

// No endpoint gets a port that the node itself uses. One that the node comes to use later stays the
// endpoint's, and is reported.
func TestOwnPortsOfTheNode(t *testing.T) {
	testhost.RequireRoot(t)
	node := newNamespace(t)
	underlay := &config.Underlay{Management: []string{"tcp/22"}, ReservedPorts: []string{"tcp/9100", "udp/5000-5100"}}
	own, err := newOwnPorts(underlay)
	must.NoError(t, err)
	p := newPorts("lo", own, func([]firewall.PortMapping) error { return nil })
	p.complete = true
	must.NoError(t, node.Do(func(ns.NetNS) error {
		must.NoError(t, kernel.Set(kernel.State{Interfaces: []kernel.Interface{{Name: "lo"}}}))
		listen := func(address string) {
			l, err := net.Listen("tcp", address)
			must.NoError(t, err)
			t.Cleanup(func() { l.Close() })
		}
		listen(":8301")
		listen("[::1]:8500")
		for _, tc := range []struct {
			asked cnicall.PortMapping
			want  string
		}{
			{asks("tcp", 22, "127.0.0.1"), "tcp port 22 is the node's own: it is in underlay.management; ask for another one"},
			{asks("tcp", 9100, ""), "it is in underlay.reserved_ports"},
			{asks("udp", 5050, "127.0.0.1"), "it is in underlay.reserved_ports"},
			{asks("udp", 51823, "127.0.0.1"), "one of those to which an encrypted link of the node may move"},
			{asks("tcp", 8301, "127.0.0.1"), fmt.Sprintf("(process %d) listens on tcp port [::]:8301", os.Getpid())},
			{asks("tcp", 8301, ""), "listens on tcp port [::]:8301"},
			{asks("udp", 22, "127.0.0.1"), ""},
			{asks("udp", 8301, "127.0.0.1"), ""},
			{asks("tcp", 51823, "127.0.0.1"), ""},
			{asks("tcp", 8500, "127.0.0.1"), ""}, // the node listens there for itself, on another address
		} {
			err := p.claim(portsOf("a", 2, tc.asked))
			if tc.want == "" {
				must.NoError(t, err)
			} else {
				must.ErrorContains(t, err, tc.want)
			}
		}
		must.NoError(t, p.claim(portsOf("a", 2, asks("tcp", 18090, "127.0.0.1"))))
		must.NoError(t, p.shadowed())
		listen(":18090")
		must.ErrorContains(t, p.shadowed(), "listens on tcp port [::]:18090, but gets nothing from lo, because the port leads to endpoint a")

		// After a restart of the agent it is the same.
		p = newPorts("lo", own, p.write)
		must.NoError(t, p.restore(portsOf("a", 2, asks("tcp", 18090, "127.0.0.1"))))
		must.Error(t, p.shadowed())
		return nil
	}))
}

// Until the endpoints of an earlier agent have their ports again, nothing is written: what is not
// written, ends. eBPF gets each address of the underlay.
func TestPortsAreWrittenWhenTheyAreComplete(t *testing.T) {
	testhost.RequireRoot(t)
	var written [][]firewall.PortMapping
	p := newPorts("lo", ownPorts{sockets: noSockets}, func(list []firewall.PortMapping) error { written = append(written, list); return nil })
	must.NoError(t, newNamespace(t).Do(func(ns.NetNS) error {
		must.NoError(t, kernel.Set(kernel.State{Interfaces: []kernel.Interface{{Name: "lo", Addresses: []kernel.Address{
			{Prefix: netip.MustParsePrefix("192.0.2.1/32")}, {Prefix: netip.MustParsePrefix("2001:db8::1/128")}}}}}))
		must.NoError(t, p.restore(portsOf("a", 2, asks("tcp", 18090, ""))))
		must.NoError(t, p.restore(portsOf("b", 3, asks("udp", 18090, "192.0.2.1"))))
		must.SliceEmpty(t, written)
		must.NoError(t, p.restored())
		must.Len(t, 1, written)
		must.Len(t, 3, written[0])
		list, err := p.published()
		must.NoError(t, err)
		for _, want := range []bpf.Published{
			{Protocol: 6, From: netip.MustParseAddrPort("192.0.2.1:18090"), To: netip.MustParseAddrPort("100.64.0.2:80")},
			{Protocol: 6, From: netip.MustParseAddrPort("[2001:db8::1]:18090"), To: netip.MustParseAddrPort("[fd5f::2]:80")},
			{Protocol: 17, From: netip.MustParseAddrPort("192.0.2.1:18090"), To: netip.MustParseAddrPort("100.64.0.3:80")},
		} {
			must.True(t, slices.Contains(list, want), must.Sprint(want))
		}
		return nil
	}))
}
