// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	miekg "github.com/miekg/dns"
)

// linkLocal are addresses whose names mean nothing beyond the node, such as that of this server.
var linkLocal = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10")}

// owns reports whether a name is that of an address in the ranges, or is above such names only.
func (a authority) owns(name string) bool {
	prefix, ok := parseReverse(name)
	return ok && slices.ContainsFunc(a.ranges, func(r netip.Prefix) bool {
		return r.Bits() <= prefix.Bits() && r.Contains(prefix.Addr())
	})
}

// reverse answers a query for a name that the authority owns. The name of an address is the one of
// its endpoint's service in its zone, so that the addresses of that name contain it.
func (a authority) reverse(asker netip.Addr, req *miekg.Msg) (*miekg.Msg, Outcome) {
	q := req.Question[0]
	resp := reply(req, miekg.RcodeSuccess)
	resp.Authoritative = true
	prefix, _ := parseReverse(q.Name)
	if !prefix.IsSingleIP() {
		return resp, Empty // there are names below
	}
	service, zone, ok := a.view.Owner(asker, prefix.Addr())
	switch {
	case !ok:
		resp.Rcode = miekg.RcodeNameError
		return resp, NoName
	case q.Qtype != miekg.TypePTR && q.Qtype != miekg.TypeANY:
		return resp, Empty
	}
	name := strings.Join([]string{zone, service.Name, service.Domain, apex}, ".")
	resp.Answer = []miekg.RR{&miekg.PTR{Hdr: header(q.Name, miekg.TypePTR), Ptr: name}}
	return resp, Answered
}

// parseReverse parses a name below in-addr.arpa or ip6.arpa: that of an address, or of a prefix
// with whole labels. It returns false for any other name.
func parseReverse(name string) (netip.Prefix, bool) {
	labels := miekg.SplitDomainName(strings.ToLower(name))
	if len(labels) < 3 || labels[len(labels)-1] != "arpa" {
		return netip.Prefix{}, false
	}
	suffix := labels[len(labels)-2]
	labels = labels[:len(labels)-2]
	slices.Reverse(labels)
	switch {
	case suffix == "in-addr" && len(labels) <= 4:
		var b [4]byte
		for i, l := range labels {
			n, err := strconv.ParseUint(l, 10, 8)
			if err != nil || strconv.FormatUint(n, 10) != l {
				return netip.Prefix{}, false
			}
			b[i] = byte(n)
		}
		return netip.PrefixFrom(netip.AddrFrom4(b), 8*len(labels)), true
	case suffix == "ip6" && len(labels) <= 32:
		var b [16]byte
		for i, l := range labels {
			n, err := strconv.ParseUint(l, 16, 4)
			if err != nil || len(l) != 1 {
				return netip.Prefix{}, false
			}
			b[i/2] |= byte(n) << (4 * (1 - i%2))
		}
		return netip.PrefixFrom(netip.AddrFrom16(b), 4*len(labels)), true
	}
	return netip.Prefix{}, false
}
