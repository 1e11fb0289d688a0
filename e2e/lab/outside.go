// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	consulapi "github.com/hashicorp/consul/api"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/e2e/internet"
)

// Outside is a machine of the internet that is not part of the fabric: a namespace with a link of
// its own to the internet. Each of its ports answers and says whom it saw (package e2e/internet).
type Outside struct {
	Name      string   `hcl:"name,label"`
	Addresses []string `hcl:"addresses"`
	MTU       int      `hcl:"mtu,optional"` // of its link; default: the underlay's
	// Names are the machine's names in DNS, with all its addresses, of which an answer has Answers
	// of each IP version (0: all).
	Names   []string `hcl:"names,optional"`
	Answers int      `hcl:"answers,optional"`
	// Resolver makes it the DNS resolver of the fabric's nodes.
	Resolver bool `hcl:"resolver,optional"`
	// Provider lets it serve, on port 80, what getaway's gateways ask for.
	Provider bool `hcl:"provider,optional"`
	// Service is the name under which Consul's catalog has it, at Port of its first address.
	Service string `hcl:"service,optional"`
	Port    int    `hcl:"port,optional"`
}

// Record is a name in DNS that is not simply a machine's.
type Record struct {
	Name      string   `hcl:"name,label"`
	Addresses []string `hcl:"addresses,optional"`
	CNAME     string   `hcl:"cname,optional"`
	TTL       int      `hcl:"ttl,optional"` // seconds; default: 60
}

// FreePorts are the ports of a machine outside that nothing answers, for servers of tests.
const FreePorts = "7000-7999"

// outsideTTL is how long names may be remembered, in seconds.
const outsideTTL = 60

// checkOutside checks the machines outside and the records. names and addresses are those of nodes.
func (i *Internet) checkOutside(names, addresses map[string]bool) error {
	resolvers := 0
	for _, o := range i.Outside {
		switch {
		case !label.MatchString(o.Name) || len(o.Name) > 15:
			return fmt.Errorf("outside %q: the name must be a lower-case label of at most 15 characters, because it names a network interface", o.Name)
		case names[o.Name] || o.Name == internetNS || o.Name == clientNS:
			return fmt.Errorf("outside %s: another machine has this name", o.Name)
		case len(o.Addresses) == 0:
			return fmt.Errorf("outside %s: it has no address", o.Name)
		case o.MTU != 0 && o.MTU < 1280:
			return fmt.Errorf("outside %s: mtu is %d, but must be at least 1280", o.Name, o.MTU)
		case (o.Service == "") != (o.Port == 0):
			return fmt.Errorf("outside %s: service and port belong together", o.Name)
		}
		names[o.Name] = true
		for _, a := range o.Addresses {
			if _, err := netip.ParseAddr(a); err != nil {
				return fmt.Errorf("outside %s: %w", o.Name, err)
			}
			if addresses[a] {
				return fmt.Errorf("outside %s: another machine has address %s", o.Name, a)
			}
			addresses[a] = true
		}
		if o.Resolver {
			resolvers++
		}
	}
	if resolvers > 1 {
		return errors.New("more than one machine outside is the resolver")
	}
	for _, r := range i.Records {
		for _, a := range r.Addresses {
			if _, err := netip.ParseAddr(a); err != nil {
				return fmt.Errorf("record %s: %w", r.Name, err)
			}
		}
	}
	return nil
}

// Outside returns the machine of that name outside the fabric, or nil.
func (t *Topology) Outside(name string) *Outside {
	for _, o := range t.Internet.Outside {
		if o.Name == name {
			return o
		}
	}
	return nil
}

// Resolver returns the machine that resolves names, or nil.
func (t *Topology) Resolver() *Outside {
	for _, o := range t.Internet.Outside {
		if o.Resolver {
			return o
		}
	}
	return nil
}

// Address returns the machine's first address of an IP version, 4 or 6.
func (o *Outside) Address(version int) netip.Addr {
	for _, text := range o.Addresses {
		if a := netip.MustParseAddr(text); a.Is6() == (version == 6) {
			return a
		}
	}
	return netip.Addr{}
}

// The internet's addresses on the links of machines outside.
var (
	outsideGateway  = netip.MustParseAddr("203.0.113.1")
	outsideGateway6 = netip.MustParseAddr("2001:db8:203::1")
)

// joinOutside connects a machine outside to the internet, and lets all its ports be answered.
func (l *Lab) joinOutside(ctx context.Context, o *Outside) error {
	namespace, err := ns.GetNS(l.NetNS(o.Name))
	if err != nil {
		return fmt.Errorf("open namespace of %s: %w", o.Name, err)
	}
	defer namespace.Close()
	host := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	gateways := []netip.Addr{outsideGateway, outsideGateway6}
	err = l.withLinks(internetNS, func(h netlinksafe.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = o.Name, l.Topology.Underlay.MTU
		if o.MTU != 0 {
			attrs.MTU = o.MTU
		}
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: underlay, PeerNamespace: netlink.NsFd(int(namespace.Fd())), PeerMTU: uint32(attrs.MTU)}
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth %s: %w", o.Name, err)
		}
		for _, g := range gateways {
			if err := address(h, o.Name, host(g)); err != nil {
				return err
			}
		}
		for _, a := range o.Addresses {
			if err := route(h, o.Name, host(netip.MustParseAddr(a)), netip.Addr{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = l.withLinks(o.Name, func(h netlinksafe.Handle) error {
		for _, a := range o.Addresses {
			if err := address(h, underlay, host(netip.MustParseAddr(a))); err != nil {
				return err
			}
		}
		for _, g := range gateways {
			if err := route(h, underlay, host(g), netip.Addr{}); err != nil {
				return err
			}
			everywhere, err := g.Prefix(0)
			if err != nil {
				return err
			}
			if err := route(h, underlay, everywhere, g); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.NFT(ctx, o.Name, o.redirect()); err != nil {
		return fmt.Errorf("redirect the ports of %s: %w", o.Name, err)
	}
	return nil
}

// redirect returns the rules, in the language of nft(8), that lead all ports of a machine to its
// one server, except those with a server of their own.
func (o *Outside) redirect() string {
	own := []string{fmt.Sprint(internet.HostPort), FreePorts}
	if o.Resolver {
		own = append(own, fmt.Sprint(internet.DNSPort))
	}
	if o.Provider {
		own = append(own, fmt.Sprint(providerPort))
	}
	except := strings.Join(own, ", ")
	return fmt.Sprintf(`table inet outside {
  chain ports {
    type nat hook prerouting priority dstnat
    fib daddr type local tcp dport != { %s } redirect to :%d
    fib daddr type local udp dport != { %s } redirect to :%d
  }
}
`, except, internet.HostPort, except, internet.HostPort)
}

// providerPort is the port of what getaway's gateways ask for.
const providerPort = 80

// startOutside starts the servers of the machines outside.
func (l *Lab) startOutside(ctx context.Context) error {
	if len(l.Topology.Internet.Outside) == 0 {
		return nil
	}
	if err := l.SetRecords(nil); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	program := filepath.Join(l.Bin, "sif-internet")
	for _, o := range l.Topology.Internet.Outside {
		addresses := "-addresses=" + strings.Join(o.Addresses, ",")
		answers := func(port uint16) func(context.Context) error {
			at := netip.MustParseAddr(o.Addresses[0])
			return l.listens(o.Name, netip.AddrPortFrom(at, port).String())
		}
		start := func(name string, port uint16, args ...string) {
			p := &Process{Node: o.Name, Name: name, Args: args}
			g.Go(func() error { return l.launch(ctx, p, 20*time.Second, answers(port)) })
		}
		start("host", internet.HostPort, program, "host", addresses)
		if o.Resolver {
			start("resolver", internet.DNSPort, program, "resolver", addresses, "-records="+l.recordsFile())
		}
		if demo := filepath.Join(l.Bin, "sif-demo"); o.Provider && exists(demo) {
			start("provider", providerPort, demo, "provider", fmt.Sprintf("-listen=:%d", providerPort))
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	l.progress.line("outside the fabric: %d machines", len(l.Topology.Internet.Outside))
	return nil
}

func (l *Lab) recordsFile() string { return l.varDir("records.json") }

// SetRecords adds records of names to the topology's, or replaces some of these, until the next
// call.
func (l *Lab) SetRecords(more internet.Records) error {
	records := internet.Records{}
	parse := func(list []string) (addresses []netip.Addr) {
		for _, a := range list {
			addresses = append(addresses, netip.MustParseAddr(a)) // they were checked
		}
		return addresses
	}
	for _, o := range l.Topology.Internet.Outside {
		for _, name := range o.Names {
			records[name] = internet.Record{Addresses: parse(o.Addresses), Answers: o.Answers, TTL: outsideTTL, HTTPS: true}
		}
	}
	for _, r := range l.Topology.Internet.Records {
		record := internet.Record{Addresses: parse(r.Addresses), CNAME: r.CNAME, TTL: outsideTTL}
		if r.TTL != 0 {
			record.TTL = uint32(r.TTL)
		}
		records[r.Name] = record
	}
	maps.Copy(records, more)
	if err := writeJSON(l.recordsFile(), records); err != nil {
		return fmt.Errorf("write the resolver's records: %w", err)
	}
	return nil
}

// registerOutside registers the machines outside that are services of Consul's catalog, on nodes
// that have no Consul agent.
func (l *Lab) registerOutside(ctx context.Context) error {
	client, err := l.Consul(l.Secrets.ConsulManagement)
	if err != nil {
		return err
	}
	for _, o := range l.Topology.Internet.Outside {
		if o.Service == "" {
			continue
		}
		if _, err := client.Catalog().Register(&consulapi.CatalogRegistration{
			Node: o.Name, Address: o.Addresses[0], NodeMeta: map[string]string{"external-node": "true"},
			Service: &consulapi.AgentService{ID: o.Service, Service: o.Service, Address: o.Addresses[0], Port: o.Port},
		}, (&consulapi.WriteOptions{}).WithContext(ctx)); err != nil {
			return fmt.Errorf("register %s as %s in Consul's catalog: %w", o.Name, o.Service, err)
		}
	}
	return nil
}
