// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/nomadself"
)

// HasSwitch reports whether Open vSwitch is installed on the machine.
func HasSwitch() bool {
	_, err := exec.LookPath("ovs-vsctl")
	return err == nil
}

// askTimeout bounds a question to an agent on the same machine.
const askTimeout = 3 * time.Second

// FindUnderlay returns the network by which the machine reaches peers, URLs or host:port, of which
// the first that is not the machine itself counts. address and iface are the operator's word; both
// may be empty.
func FindUnderlay(ctx context.Context, peers []string, address, iface string) (Underlay, error) {
	u, err := findUnderlay(ctx, peers, address, iface)
	if err != nil {
		return u, fmt.Errorf("find the underlay address of this machine: %w; say it with -underlay-address and -underlay-interface", err)
	}
	return u, nil
}

func findUnderlay(ctx context.Context, peers []string, address, iface string) (Underlay, error) {
	links, err := netlinksafe.LinkList()
	if err != nil {
		return Underlay{}, fmt.Errorf("list the interfaces: %w", err)
	}
	byIndex := map[int]*netlink.LinkAttrs{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs()
	}
	own, err := netlinksafe.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return Underlay{}, fmt.Errorf("list the addresses: %w", err)
	}
	of := func(a netip.Addr) *netlink.LinkAttrs {
		for _, x := range own {
			if have, ok := netip.AddrFromSlice(x.IP); ok && have.Unmap() == a && byIndex[x.LinkIndex] != nil {
				return byIndex[x.LinkIndex]
			}
		}
		return nil
	}
	switch {
	case address != "":
		a, err := netip.ParseAddr(address)
		if err != nil {
			return Underlay{}, fmt.Errorf("%q is not an IP address", address)
		}
		l := of(a)
		if l == nil {
			return Underlay{}, fmt.Errorf("no interface of this machine has the address %s", a)
		}
		if iface != "" && iface != l.Name {
			return Underlay{}, fmt.Errorf("interface %s has the address %s, not %s", l.Name, a, iface)
		}
		return Underlay{a, l.Name, l.MTU}, nil
	case iface != "":
		for _, x := range own {
			l, ok := byIndex[x.LinkIndex], true
			if l == nil || l.Name != iface || x.Scope != unix.RT_SCOPE_UNIVERSE {
				continue
			}
			var a netip.Addr
			if a, ok = netip.AddrFromSlice(x.IP); ok {
				return Underlay{a.Unmap(), l.Name, l.MTU}, nil
			}
		}
		return Underlay{}, fmt.Errorf("interface %s does not exist, or has no address that other machines can reach", iface)
	}
	errs := []error{}
	for _, p := range peers {
		addrs, err := resolve(ctx, p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, a := range addrs {
			if l := of(a); l != nil && !a.IsLoopback() { // a server on this very machine
				return Underlay{a, l.Name, l.MTU}, nil
			}
			if a.IsLoopback() {
				continue
			}
			routes, err := netlink.RouteGet(a.AsSlice())
			if err != nil || len(routes) == 0 {
				errs = append(errs, fmt.Errorf("there is no route to %s: %w", a, err))
				continue
			}
			src, ok := netip.AddrFromSlice(routes[0].Src)
			if l := byIndex[routes[0].LinkIndex]; ok && l != nil {
				return Underlay{src.Unmap(), l.Name, l.MTU}, nil
			}
		}
	}
	// Everything is on this machine: by which way would it go out?
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlinksafe.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_DST)
		if err != nil {
			continue
		}
		for _, r := range routes {
			if l := byIndex[r.LinkIndex]; l != nil {
				if u, err := findUnderlay(ctx, nil, "", l.Name); err == nil {
					return u, nil
				}
			}
		}
	}
	return Underlay{}, errors.Join(append(errs, errors.New("there is no default route"))...)
}

// resolve returns the addresses of a URL or of host:port.
func resolve(ctx context.Context, peer string) ([]netip.Addr, error) {
	host := peer
	if u, err := url.Parse(peer); err == nil && u.Host != "" {
		host = u.Hostname()
	} else if h, _, err := net.SplitHostPort(peer); err == nil {
		host = h
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	for i := range list {
		list[i] = list[i].Unmap()
	}
	return list, nil
}

// ConsulAgent is the Consul agent of the machine.
type ConsulAgent struct {
	Address  string `json:"address"`
	CA       string `json:"-"` // PEM
	CertFile string `json:"cert_file,omitempty"`
	KeyFile  string `json:"key_file,omitempty"`
}

// Ports of agents on their own machine.
const (
	consulHTTPS = "https://127.0.0.1:8501"
	consulHTTP  = "http://127.0.0.1:8500"
	nomadHTTPS  = "https://127.0.0.1:4646"
	nomadHTTP   = "http://127.0.0.1:4646"
)

// ofThisMachine returns the address in an environment variable if it is one of this machine. Often
// it is that of the servers, which operators export for their clients.
func ofThisMachine(variable string) string {
	said := os.Getenv(variable)
	host := said
	if u, err := url.Parse(said); err == nil && u.Host != "" {
		host = u.Host
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if strings.HasPrefix(said, "unix://") || strings.HasPrefix(said, "/") || host == "localhost" {
		return said
	}
	at, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		found, err := net.LookupIP(host)
		if err != nil || len(found) == 0 {
			return ""
		}
		at, _ = netip.AddrFromSlice(found[0])
	}
	at = at.Unmap()
	if at.IsLoopback() {
		return said
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	for _, o := range own {
		if p, err := netip.ParsePrefix(o.String()); err == nil && p.Addr().Unmap() == at {
			return said
		}
	}
	return ""
}

// FindConsul finds the Consul agent of the machine: at address, else at CONSUL_HTTP_ADDR if that is
// this machine, else at its usual ports. ca is the authority of the fabric's settings.
func FindConsul(ctx context.Context, address, ca string) (ConsulAgent, error) {
	a := ConsulAgent{CA: ca, CertFile: os.Getenv(consulapi.HTTPClientCert), KeyFile: os.Getenv(consulapi.HTTPClientKey)}
	if file := os.Getenv(consulapi.HTTPCAFile); file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return a, fmt.Errorf("read %s: %w", consulapi.HTTPCAFile, err)
		}
		a.CA = string(text)
	}
	places := []string{consulHTTPS, consulHTTP}
	if said := cmp.Or(address, ofThisMachine(consulapi.HTTPAddrEnvName)); said != "" {
		places = []string{said}
	}
	var errs []error
	for _, place := range places {
		a.Address = place
		err := a.ask(ctx)
		if err == nil {
			if !strings.HasPrefix(place, "https://") {
				a.CA = ""
			}
			return a, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", place, err))
	}
	return a, fmt.Errorf("find the Consul agent of this machine: %w; start one, which every node needs, or say where it is with -consul-address", errors.Join(errs...))
}

func (a ConsulAgent) ask(ctx context.Context) error {
	conf := &consulapi.Config{Address: a.Address, TLSConfig: consulapi.TLSConfig{CAPem: []byte(a.CA), CertFile: a.CertFile, KeyFile: a.KeyFile}}
	if rest, ok := strings.CutPrefix(a.Address, "https://"); ok {
		conf.Address, conf.Scheme = rest, "https"
	}
	if a.CA == "" {
		conf.TLSConfig.CAPem = nil
	}
	client, err := consulapi.NewClient(conf)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	leader, err := client.Status().LeaderWithQueryOptions((&consulapi.QueryOptions{}).WithContext(ctx))
	if err == nil && leader == "" {
		err = errors.New("its servers have no leader")
	}
	return err
}

// NomadAgent is the Nomad client of the machine.
type NomadAgent struct {
	Address      string `json:"address,omitempty"` // empty: not found
	CA           string `json:"-"`                 // PEM
	Node         string `json:"node,omitempty"`    // to be written down: the agent cannot ask itself
	ID           string `json:"id,omitempty"`      // its node ID, empty if it does not tell
	CNIPath      string `json:"cni_path,omitempty"`
	CNIConfigDir string `json:"cni_config_dir,omitempty"`
}

// FindNomad finds the Nomad client of the machine: at said.Address, else at NOMAD_ADDR if that is
// this machine, else at its usual port. What said has already is the operator's word. wanted is the
// ID that it must have, or empty.
func FindNomad(ctx context.Context, said NomadAgent, ca, wanted string) (NomadAgent, error) {
	a, err := askNomad(ctx, said, ca)
	if err != nil {
		return a, err
	}
	if a.ID = cmp.Or(said.Node, a.ID); wanted != "" {
		switch {
		case a.ID == "":
			a.ID, a.Node = wanted, wanted // the controller checks it
		case a.ID != wanted:
			return a, fmt.Errorf("the Nomad client of this machine is Nomad node %s, but the join token is for Nomad node %s: this is another machine, or its Nomad client was set up again", a.ID, wanted)
		}
	}
	return a, nil
}

func askNomad(ctx context.Context, said NomadAgent, ca string) (NomadAgent, error) {
	said.CA = ca
	if file := os.Getenv("NOMAD_CACERT"); file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return said, fmt.Errorf("read NOMAD_CACERT: %w", err)
		}
		said.CA = string(text)
	}
	places := []string{nomadHTTPS, nomadHTTP}
	if at := cmp.Or(said.Address, ofThisMachine("NOMAD_ADDR")); at != "" {
		places = []string{at}
	}
	told := said.CNIPath != "" && said.CNIConfigDir != ""
	var errs []error
	for _, place := range places {
		self, err := said.ask(ctx, place)
		if err != nil && !errors.Is(err, nomadself.ErrHidden) {
			errs = append(errs, fmt.Errorf("%s: %w", place, err))
			continue
		}
		a := said
		a.Address = place
		if !strings.HasPrefix(place, "https://") {
			a.CA = ""
		}
		if err != nil && !told {
			return a, fmt.Errorf("%w to one that has it, or say -cni-plugin-dir and -cni-config-dir, which are cni_path and cni_config_dir of Nomad's configuration (/opt/cni/bin and /opt/cni/config if it does not say)", err)
		}
		if err != nil || os.Getenv("NOMAD_TOKEN") != "" {
			a.Node = cmp.Or(a.Node, self.NodeID) // the agent has no token for Nomad
		}
		a.ID = self.NodeID
		a.CNIPath, a.CNIConfigDir = cmp.Or(a.CNIPath, self.CNIPath), cmp.Or(a.CNIConfigDir, self.CNIConfigDir)
		return a, nil
	}
	if told {
		return said, nil // it will be started later
	}
	return said, fmt.Errorf("find the Nomad client of this machine: %w; start it, say where it is with -nomad-address, or say -cni-plugin-dir and -cni-config-dir", errors.Join(errs...))
}

// Client returns a client of the Nomad agent at a place, with NOMAD_TOKEN.
func (a NomadAgent) Client(place string) (*nomadapi.Client, error) {
	conf := nomadapi.DefaultConfig()
	conf.Address = place
	if a.CA != "" && strings.HasPrefix(place, "https://") {
		conf.TLSConfig.CACertPEM, conf.TLSConfig.CACert = []byte(a.CA), ""
	}
	client, err := nomadapi.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("make a client of Nomad at %s: %w", place, err)
	}
	return client, nil
}

func (a NomadAgent) ask(ctx context.Context, place string) (nomadself.Self, error) {
	client, err := a.Client(place)
	if err != nil {
		return nomadself.Self{}, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return nomadself.Ask(ctx, client)
}
