// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/wellknown"
)

// Range is a range of addresses that something beside the fabric uses or may use.
type Range struct {
	Prefix netip.Prefix `json:"prefix"`
	Use    string       `json:"use"` // "route by eth0", "resolver"
	Sure   bool         `json:"sure"`
	Pool   string       `json:"pool,omitempty"` // the fabric's pool that overlaps it
}

// nomadBridge is the default of bridge_network_subnet of Nomad's clients.
const nomadBridge = "172.26.64.0/20"

// dockerPools are Docker's default address pools.
var dockerPools = []string{"172.17.0.0/16", "172.18.0.0/15", "172.20.0.0/14", "172.24.0.0/14", "172.28.0.0/14", "192.168.0.0/16"}

// dockerConfig is where Docker's daemon is told of other pools.
const dockerConfig = "/etc/docker/daemon.json"

// Ranges returns the ranges that this machine uses: its routes, but for the fabric's own, and its
// resolvers; and those that Docker and Nomad use unless they are told otherwise.
func Ranges(pools join.Pools) ([]Range, error) {
	var list []Range
	routes, err := machineRoutes()
	if err != nil {
		return nil, err
	}
	list = append(list, routes...)
	resolvers, err := resolverRanges("/etc/resolv.conf")
	if err != nil {
		return nil, err
	}
	list = append(list, resolvers...)
	docker, err := dockerRanges(dockerConfig)
	if err != nil {
		return nil, err
	}
	list = append(list, docker...)
	list = append(list, Range{Prefix: netip.MustParsePrefix(nomadBridge), Use: "Nomad's bridge networks, unless its clients have another bridge_network_subnet"})
	return overlapping(list, pools), nil
}

// overlapping says of each range which pool overlaps it.
func overlapping(list []Range, pools join.Pools) []Range {
	for i, r := range list {
		for _, text := range []string{pools.IPv4, pools.IPv6} {
			if p, err := netip.ParsePrefix(text); err == nil && p.Overlaps(r.Prefix) {
				list[i].Pool = text
			}
		}
	}
	return list
}

// PoolProblems returns an error that names each range in use that overlaps a pool, and warnings of
// those that may be in use.
func PoolProblems(list []Range) (warnings []string, err error) {
	var errs []error
	for _, r := range list {
		option := "-pool4"
		if r.Prefix.Addr().Is6() {
			option = "-pool6"
		}
		switch {
		case r.Pool == "":
		case r.Sure:
			errs = append(errs, fmt.Errorf("this machine uses %s (%s), which the fabric's pool %s overlaps: give it another one with %s", r.Prefix, r.Use, r.Pool, option))
		default:
			warnings = append(warnings, fmt.Sprintf("the fabric's pool %s overlaps %s (%s): if that is in use, give the fabric another one with %s", r.Pool, r.Prefix, r.Use, option))
		}
	}
	return warnings, errors.Join(errs...)
}

func machineRoutes() ([]Range, error) {
	routes, err := netlinksafe.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the routes of this machine: %w", err)
	}
	links, err := netlinksafe.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces of this machine: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var list []Range
	for _, r := range routes {
		name := names[r.LinkIndex]
		if r.Dst == nil || r.Type != unix.RTN_UNICAST || r.Protocol == kernel.RouteProtocol || name == "lo" || strings.HasPrefix(name, wellknown.InterfacePrefix) {
			continue
		}
		ones, _ := r.Dst.Mask.Size()
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		if !ok || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsLoopback() || ones == 0 {
			continue
		}
		list = append(list, Range{Prefix: netip.PrefixFrom(a.Unmap(), ones), Use: "route by " + name, Sure: true})
	}
	return list, nil
}

func resolverRanges(path string) ([]Range, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the resolvers of this machine: %w", err)
	}
	var list []Range
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil && !a.IsLoopback() {
				list = append(list, Range{Prefix: netip.PrefixFrom(a.WithZone(""), a.BitLen()), Use: "resolver", Sure: true})
			}
		}
	}
	return list, nil
}

// dockerRanges returns the pools from which Docker takes networks.
func dockerRanges(path string) ([]Range, error) {
	use := "Docker's networks, unless it has other default-address-pools"
	pools := dockerPools
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read Docker's configuration: %w", err)
	}
	var config struct {
		Pools []struct {
			Base string `json:"base"`
		} `json:"default-address-pools"`
	}
	if err == nil {
		if err := json.Unmarshal(text, &config); err != nil {
			return nil, fmt.Errorf("read Docker's configuration: decode %s: %w", path, err)
		}
	}
	if len(config.Pools) > 0 {
		use, pools = "Docker's default-address-pools in "+path, nil
		for _, p := range config.Pools {
			pools = append(pools, p.Base)
		}
	}
	var list []Range
	for _, p := range pools {
		if prefix, err := netip.ParsePrefix(p); err == nil {
			list = append(list, Range{Prefix: prefix.Masked(), Use: use})
		}
	}
	return list, nil
}
