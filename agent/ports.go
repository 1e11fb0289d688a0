// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/firewall"
)

// ports gives ports of the node to endpoints. What an endpoint asks for is judged by itself: it
// gets all of its ports or none, and what it does not get affects no other endpoint. Who has a port
// keeps it until it is detached. It is safe for concurrent use.
type ports struct {
	underlay string // the interface whose addresses have the ports
	own      ownPorts
	write    func([]firewall.PortMapping) error

	mu   sync.Mutex
	held map[cnicall.Attachment]claim
	// complete says that the endpoints of an earlier agent have what they had. Before that nothing
	// is written: what is not written, ends.
	complete bool
}

// claim is the mappings of an endpoint.
type claim struct {
	endpoint string
	mappings []firewall.PortMapping
}

func newPorts(underlay string, own ownPorts, write func([]firewall.PortMapping) error) *ports {
	return &ports{underlay: underlay, own: own, write: write, held: map[cnicall.Attachment]claim{}}
}

// claim maps the ports of a new endpoint, instead of those that it had. If it cannot have all of
// them, it has none, and the error says why.
func (p *ports) claim(ep endpoint) error { return p.give(ep, p.own.idle) }

// restore maps the ports of an endpoint that an earlier agent attached. It keeps them even if a
// process of the node has come to listen on one since; see shadowed.
func (p *ports) restore(ep endpoint) error {
	return p.give(ep, func(firewall.PortMapping) error { return nil })
}

// restored says that the endpoints of an earlier agent have been restored, as far as they can be,
// and writes what is held, also if an earlier write failed.
func (p *ports) restored() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.complete = true
	return p.apply()
}

func (p *ports) give(ep endpoint, idle func(firewall.PortMapping) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	mappings, err := p.judge(ep)
	for _, m := range mappings {
		if err == nil {
			err = idle(m)
		}
	}
	if err != nil {
		delete(p.held, ep.Attachment)
		return errors.Join(fmt.Errorf("ports of endpoint %s: %w", ep.ID, err), p.apply())
	}
	if len(mappings) > 0 {
		p.held[ep.Attachment] = claim{endpoint: ep.ID, mappings: mappings}
	} else {
		delete(p.held, ep.Attachment)
	}
	if err := p.apply(); err != nil {
		delete(p.held, ep.Attachment)
		return err
	}
	return nil
}

// release ends the mappings of an endpoint.
func (p *ports) release(at cnicall.Attachment) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.held, at)
	return p.apply()
}

// has reports whether the endpoint has the ports that it asks for.
func (p *ports) has(ep endpoint) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, held := p.held[ep.Attachment]
	return held || len(ep.Ports) == 0
}

// of returns the mappings of an endpoint.
func (p *ports) of(at cnicall.Attachment) []firewall.PortMapping {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.held[at].mappings)
}

// apply writes what is held, once that is complete. The caller must hold mu.
func (p *ports) apply() error {
	if !p.complete {
		return nil
	}
	var list []firewall.PortMapping
	for _, c := range p.held {
		list = append(list, c.mappings...)
	}
	slices.SortFunc(list, func(a, b firewall.PortMapping) int {
		if c := a.From.Compare(b.From); c != 0 {
			return c
		}
		return int(a.Protocol) - int(b.Protocol)
	})
	return p.write(list)
}

// judge returns the mappings that an endpoint asks for, or why it cannot have them. The caller must
// hold mu.
func (p *ports) judge(ep endpoint) ([]firewall.PortMapping, error) {
	var mappings []firewall.PortMapping
	for _, asked := range ep.Ports {
		list, err := p.parse(asked, ep.IPv4, ep.IPv6)
		if err != nil {
			return nil, fmt.Errorf("%s port %d: %w", asked.Protocol, asked.HostPort, err)
		}
		for _, m := range list {
			if err := errors.Join(m.Check(), p.own.reserved(m)); err != nil {
				return nil, err
			}
			if slices.ContainsFunc(mappings, m.Overlaps) {
				return nil, fmt.Errorf("%s port %s of the node is asked for twice", m.Protocol, m.From)
			}
			for at, other := range p.held {
				if at != ep.Attachment && slices.ContainsFunc(other.mappings, m.Overlaps) {
					return nil, fmt.Errorf("%s port %s of the node leads to endpoint %s until that is stopped", m.Protocol, m.From, other.endpoint)
				}
			}
			mappings = append(mappings, m)
		}
	}
	return mappings, nil
}

// parse returns the mappings of one port: one, or one for each family if no address of the node is
// named.
func (p *ports) parse(asked cnicall.PortMapping, v4, v6 netip.Addr) ([]firewall.PortMapping, error) {
	protocol, err := fabric.ParseProtocol(asked.Protocol)
	if err != nil {
		return nil, err
	}
	m := func(host netip.Addr) firewall.PortMapping {
		to := v4
		if host.Is6() {
			to = v6
		}
		return firewall.PortMapping{Protocol: protocol, From: netip.AddrPortFrom(host, asked.HostPort), To: netip.AddrPortFrom(to, asked.ContainerPort)}
	}
	if asked.HostIP == "" {
		return []firewall.PortMapping{m(netip.IPv4Unspecified()), m(netip.IPv6Unspecified())}, nil
	}
	host, err := netip.ParseAddr(asked.HostIP)
	if err != nil {
		return nil, fmt.Errorf("the address %q of the node: %w", asked.HostIP, err)
	}
	host = host.Unmap().WithZone("")
	if host.IsUnspecified() {
		return []firewall.PortMapping{m(host)}, nil
	}
	return []firewall.PortMapping{m(host)}, p.onUnderlay(host)
}

// onUnderlay returns an error if an address is not one of the underlay's interface. Externals are
// known by that interface, so a port anywhere else would be dead.
func (p *ports) onUnderlay(host netip.Addr) error {
	addresses, err := p.addresses()
	if err == nil && !slices.Contains(addresses, host) {
		err = fmt.Errorf("%s is not an address of %s, the underlay's interface: ports are published there alone; leave out host_network, or name one of that interface", host, p.underlay)
	}
	return err
}

// addresses returns the addresses of the underlay's interface.
func (p *ports) addresses() ([]netip.Addr, error) {
	underlay, err := net.InterfaceByName(p.underlay)
	if err != nil {
		return nil, fmt.Errorf("find the underlay's interface %s: %w", p.underlay, err)
	}
	list, err := underlay.Addrs()
	if err != nil {
		return nil, fmt.Errorf("list the addresses of the underlay's interface %s: %w", p.underlay, err)
	}
	var addresses []netip.Addr
	for _, a := range list {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			addresses = append(addresses, prefix.Addr())
		}
	}
	return addresses, nil
}

// published returns what is mapped for the data path, which knows no unspecified address.
func (p *ports) published() ([]bpf.Published, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.held) == 0 {
		return nil, nil
	}
	addresses, err := p.addresses()
	if err != nil {
		return nil, err
	}
	var list []bpf.Published
	for _, c := range p.held {
		for _, m := range c.mappings {
			for _, at := range addresses {
				if at == m.From.Addr() || m.From.Addr().IsUnspecified() && m.From.Addr().Is4() == at.Is4() {
					list = append(list, bpf.Published{Protocol: uint8(m.Protocol), From: netip.AddrPortFrom(at, m.From.Port()), To: m.To})
				}
			}
		}
	}
	return list, nil
}

// shadowed returns an error that names the sockets of the node that get nothing from the underlay,
// because they came to listen on a port after an endpoint had it.
func (p *ports) shadowed() error {
	p.mu.Lock()
	held := maps.Clone(p.held)
	p.mu.Unlock()
	if len(held) == 0 {
		return nil
	}
	sockets, err := p.own.sockets()
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range held {
		for _, m := range c.mappings {
			for _, s := range sockets {
				if s.Receives(m.Protocol, m.From) {
					errs = append(errs, fmt.Errorf("%s, but gets nothing from %s, because the port leads to endpoint %s", s, p.underlay, c.endpoint))
				}
			}
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// keepPorts gives endpoints that an earlier agent attached their ports. One that cannot have them
// is named in the error, and gets them when who has them is detached.
func (a *Agent) keepPorts() error {
	var errs []error
	for _, ep := range a.endpoints.all() {
		if !a.ports.has(ep) {
			errs = append(errs, a.keepPortsOf(ep.Attachment))
		}
	}
	return errors.Join(append(errs, a.ports.restored(), a.ports.shadowed())...)
}

func (a *Agent) keepPortsOf(at cnicall.Attachment) error {
	unlock := a.locks.Lock(at) // ADD and DEL of the endpoint decide themselves
	defer unlock()
	if ep, still := a.endpoints.get(at); still && !a.ports.has(ep) {
		return a.ports.restore(ep)
	}
	return nil
}
