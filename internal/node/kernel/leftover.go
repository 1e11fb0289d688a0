// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/leftover"
)

// switches are the parameters that make a router of a machine. The kernel passes a change of them
// on to the parameters of all interfaces, and to some others.
var switches = []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}

// Parameters returns the values of the machine's parameters that a State for a machine's own
// namespace changes, and of those that change with them, so that they can be restored.
func Parameters() (map[string]string, error) {
	names := slices.Clone(switches)
	for _, pattern := range []string{
		"net/ipv4/conf/*/forwarding", "net/ipv6/conf/*/forwarding", "net/ipv4/conf/all/accept_redirects", "net/ipv4/conf/default/accept_redirects",
		"net/ipv6/conf/lo/disable_ipv6", "net/netfilter/nf_conntrack_tcp_be_liberal",
	} {
		paths, err := filepath.Glob(filepath.Join(procSys, pattern))
		if err != nil {
			return nil, fmt.Errorf("list the kernel's parameters: %w", err)
		}
		for _, p := range paths {
			names = append(names, strings.TrimPrefix(p, procSys+"/"))
		}
	}
	values := map[string]string{}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(procSys, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the kernel has no IPv6, or the interface has gone
		}
		if err != nil {
			return nil, fmt.Errorf("read the kernel parameter %s: %w", name, err)
		}
		values[name] = strings.TrimSpace(string(text))
	}
	return values, nil
}

// Changed returns the parameters that have other values than before, to be restored.
func Changed(before map[string]string) ([]leftover.Leftover, error) {
	now, err := Parameters()
	if err != nil {
		return nil, err
	}
	var names []string
	for name, value := range before {
		if have, there := now[name]; there && have != value {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	slices.Sort(names)
	main := ""
	for _, name := range names {
		if slices.Contains(switches, name) {
			main += " " + strings.ReplaceAll(name, "/", ".") + "=" + before[name]
		}
	}
	if main == "" {
		main = fmt.Sprintf(" %s and %d more", strings.ReplaceAll(names[0], "/", "."), len(names)-1)
	}
	return []leftover.Leftover{{Kind: KindSysctl, Name: strings.TrimSpace(main), Remove: func(context.Context) error { return restore(before) }}}, nil
}

// restore writes the switches first, because all others change with them.
func restore(before map[string]string) error {
	var errs []error
	write := func(name string) {
		path := filepath.Join(procSys, name)
		value, wanted := before[name]
		text, err := os.ReadFile(path)
		if !wanted || err != nil || strings.TrimSpace(string(text)) == value {
			return
		}
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			errs = append(errs, fmt.Errorf("restore the kernel parameter %s: %w", name, err))
		}
	}
	for _, name := range switches {
		write(name)
	}
	for name := range before {
		write(name)
	}
	return errors.Join(errs...)
}

// Rules returns the routing rules of this network namespace with our mark.
func Rules() ([]leftover.Leftover, error) { return RulesOf(RouteProtocol) }

// RulesOf returns the routing rules with a mark of State.Protocol.
func RulesOf(protocol int) ([]leftover.Leftover, error) {
	var list []leftover.Leftover
	families := []int{netlink.FAMILY_V4}
	if HasIPv6() {
		families = append(families, netlink.FAMILY_V6)
	}
	for _, family := range families {
		rules, err := netlink.RuleList(family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list the routing rules: %w", err)
		}
		for _, r := range rules {
			if int(r.Protocol) != protocol {
				continue
			}
			list = append(list, leftover.Leftover{Kind: KindRule, Name: written(r), Remove: func(context.Context) error {
				if err := netlink.RuleDel(&r); err != nil && !isGone(err) {
					return fmt.Errorf("delete %s: %w", written(r), err)
				}
				return nil
			}})
		}
	}
	return list, nil
}

// Routes returns the routes of this network namespace with our mark.
func Routes() ([]leftover.Leftover, error) {
	var list []leftover.Leftover
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_UNSPEC} // of all tables
		routes, err := netlinksafe.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list the routes: %w", err)
		}
		for _, r := range routes {
			list = append(list, leftover.Leftover{Kind: KindRoute, Name: nameOf(r), Remove: func(context.Context) error {
				if err := netlink.RouteDel(&r); err != nil && !isGone(err) {
					return fmt.Errorf("delete the route %s: %w", r.Dst, err)
				}
				return nil
			}})
		}
	}
	return list, nil
}

func nameOf(r netlink.Route) string {
	if r.Table == unix.RT_TABLE_MAIN {
		return fmt.Sprint(r.Dst)
	}
	return fmt.Sprintf("%s of table %d", r.Dst, r.Table)
}

// Addresses returns those of the addresses that an interface has.
func Addresses(name string, addresses ...netip.Prefix) ([]leftover.Leftover, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	have, err := netlinksafe.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	var list []leftover.Leftover
	for _, a := range have {
		ip, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if !ok || !slices.Contains(addresses, netip.PrefixFrom(ip.Unmap(), bits)) {
			continue
		}
		list = append(list, leftover.Leftover{Kind: KindAddress, Name: a.IPNet.String() + " on " + name, Remove: func(context.Context) error {
			if err := netlink.AddrDel(link, &a); err != nil && !isGone(err) {
				return fmt.Errorf("remove the address %s from %s: %w", a.IPNet, name, err)
			}
			return nil
		}})
	}
	return list, nil
}

// isGone reports whether what was to be deleted does not exist any more.
func isGone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL)
}
