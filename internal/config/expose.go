// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

// Expose is a port of an agent's node that its workloads may reach at 169.254.1.1, or at fe80::1 if
// To is an IPv6 address, as far as their contracts say so.
type Expose struct {
	Protocol string `hcl:"protocol,optional"` // tcp (default) or udp
	Port     int    `hcl:"port"`
	// To is address:port of the node, where the process listens. The default is the port of
	// 127.0.0.1.
	To string `hcl:"to,optional"`
}

// Exposure is a block expose that Load has checked.
type Exposure struct {
	Protocol fabric.Protocol
	Port     uint16
	To       netip.AddrPort
}

// Exposures returns what the blocks expose mean.
func (c *Config) Exposures() []Exposure {
	var list []Exposure
	for _, e := range c.Expose {
		if x, _, err := c.exposure(e); err == nil {
			list = append(list, x)
		}
	}
	return list
}

// exposure returns what a block means, or the attribute that is wrong, and why.
func (c *Config) exposure(e *Expose) (x Exposure, attribute string, err error) {
	x.Protocol = fabric.TCP
	if e.Protocol != "" {
		if x.Protocol, err = fabric.ParseProtocol(e.Protocol); err != nil || x.Protocol != fabric.TCP && x.Protocol != fabric.UDP {
			return x, "protocol", fmt.Errorf("%q is neither \"tcp\" nor \"udp\"", e.Protocol)
		}
	}
	if e.Port < 1 || e.Port > 65535 {
		return x, "port", fmt.Errorf("%d is not a port from 1 to 65535", e.Port)
	}
	x.Port = uint16(e.Port)
	if err := c.ownPort(x.Protocol, x.Port); err != nil {
		return x, "port", err
	}
	if e.To == "" {
		x.To = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), x.Port)
		return x, "", nil
	}
	if x.To, err = netip.ParseAddrPort(e.To); err != nil || x.To.Port() == 0 {
		return x, "to", fmt.Errorf("%q is not of the form address:port, such as \"127.0.0.1:8500\"", e.To)
	}
	switch at := x.To.Addr(); {
	case at.IsUnspecified() || at.IsMulticast() || at.Is4In6() || at.Zone() != "":
		err = fmt.Errorf("%q: %s is not an address of this node", e.To, at)
	case at.Is6() && at.IsLoopback():
		err = fmt.Errorf("%q: the kernel leads nothing to ::1: name the IPv4 loopback address, or another IPv6 address of this node; [%s]:%d reaches a process that listens on all",
			e.To, wellknown.LinkLocal6, x.To.Port())
	case at.IsLinkLocalUnicast() && at != wellknown.LinkLocal4 && at != wellknown.LinkLocal6:
		err = fmt.Errorf("%q: of link-local addresses only %s and %s are this node's for workloads", e.To, wellknown.LinkLocal4, wellknown.LinkLocal6)
	default:
		err = c.ownPort(x.Protocol, x.To.Port())
	}
	return x, "to", err
}

// ownPort returns an error if a port is the fabric's own. What listens there trusts the node.
func (c *Config) ownPort(p fabric.Protocol, port uint16) error {
	why := ""
	switch {
	case port == wellknown.DNSPort:
		why = "of the node's DNS server, which workloads have anyway"
	case p == fabric.UDP && wellknown.FirstLinkPort <= port && port <= wellknown.LastLinkPort:
		why = "to which an encrypted link may move"
	case p == fabric.UDP && port == wellknown.ProbePort:
		why = "of probes"
	case p == fabric.TCP && port == wellknown.AgentPort:
		why = "of agents"
	case p == fabric.TCP && isPort(c.Engine.Listen, port), p == fabric.TCP && isPort(":"+wellknown.EnginePort, port):
		why = "of engines"
	case p == fabric.TCP && isPort(c.Listen, port), p == fabric.TCP && slices.ContainsFunc(c.Controller.All(), func(a string) bool { return isPort(a, port) }), p == fabric.TCP && isPort(":"+wellknown.ControllerPort, port):
		why = "of controllers"
	default:
		return nil
	}
	return fmt.Errorf("%s port %d is one of SIF's own, %s: it is never exposed", p, port, why)
}

// isPort reports whether host:port names the port.
func isPort(address string, port uint16) bool {
	_, text, err := net.SplitHostPort(address)
	return err == nil && text == strconv.Itoa(int(port))
}

// checkExpose reports what is wrong with blocks expose. There may be several, so each error has the
// place of its own block.
func (c *Config) checkExpose(body *hclsyntax.Body) error {
	var places []*hclsyntax.Block
	for _, b := range body.Blocks {
		if b.Type == "expose" {
			places = append(places, b)
		}
	}
	var errs []error
	var known []Exposure
	for i, e := range c.Expose {
		where := func(attribute string) string {
			if i >= len(places) {
				return c.path
			}
			if a := places[i].Body.Attributes[attribute]; a != nil {
				return at(a.Expr.Range())
			}
			return at(places[i].DefRange())
		}
		x, attribute, err := c.exposure(e)
		for _, k := range known {
			if err == nil && k.Protocol == x.Protocol && k.Port == x.Port && k.To.Addr().Is4() == x.To.Addr().Is4() {
				attribute, err = "port", fmt.Errorf("%s port %d is exposed twice", x.Protocol, x.Port)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: expose.%s: %w", where(attribute), attribute, err))
			continue
		}
		known = append(known, x)
	}
	return errors.Join(errs...)
}
