// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
	"github.com/shoenig/test/must"
)

// TestNamesStayInside asks a workload's resolver for what is not its business: outside names do
// not exist for it, names of the fabric's addresses are told to those who may call them alone.
func TestNamesStayInside(t *testing.T) {
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	gateway, proxy := world.workload(t, "getaway-app/news-gw", "gcp1"), world.workload(t, "getaway-app/http-proxy", "aws1")
	ask := func(name string, qtype uint16) *dns.Msg {
		answer, err := within(svc.netns, func() (*dns.Msg, error) {
			answer, _, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion(name, qtype), "169.254.1.1:53")
			return answer, err
		})
		must.NoError(t, err)
		return answer
	}
	reverse := func(addr netip.Addr) string {
		name, err := dns.ReverseAddr(addr.String())
		must.NoError(t, err)
		return name
	}
	must.Eq(t, dns.RcodeNameError, ask("www.example.com.", dns.TypeA).Rcode)
	must.Eq(t, dns.RcodeNameError, ask("news-gw.getaway-app.sif.example.com.", dns.TypeA).Rcode)
	// Where the gateways have their port, which their job names by its service.
	srv := ask("_news-gw._tcp.news-gw.getaway-app.sif.", dns.TypeSRV)
	must.SliceNotEmpty(t, srv.Answer)
	for _, rr := range srv.Answer {
		must.Eq(t, 9001, rr.(*dns.SRV).Port)
		must.Len(t, 1, ask(rr.(*dns.SRV).Target, dns.TypeA).Answer)
	}
	must.Eq(t, dns.RcodeNameError, ask("_news-gw._udp.news-gw.getaway-app.sif.", dns.TypeSRV).Rcode)
	for _, addr := range []netip.Addr{gateway.v4, gateway.v6} {
		answer := ask(reverse(addr), dns.TypePTR)
		must.Len(t, 1, answer.Answer)
		must.Eq(t, "gcp1.news-gw.getaway-app.sif.", answer.Answer[0].(*dns.PTR).Ptr)
	}
	must.Eq(t, "aws1.getaway-svc.getaway-app.sif.", ask(reverse(svc.v4), dns.TypePTR).Answer[0].(*dns.PTR).Ptr)
	must.Eq(t, dns.RcodeNameError, ask(reverse(proxy.v4), dns.TypePTR).Rcode) // which calls it, not it that
}
