// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	miekg "github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/limit"
)

// graph is a View of fixed endpoints, which lists the services that each asker may reach.
type graph map[netip.Addr]map[fabric.Ref][]Record

func (g graph) Known(asker netip.Addr) bool { _, ok := g[asker]; return ok }

func (g graph) Reach(asker netip.Addr, service fabric.Ref, ports bool) Reach {
	records, ok := g[asker][service]
	if !ports {
		records = slices.Clone(records)
		for i := range records {
			records[i].Ports = nil
		}
	}
	return Reach{Allowed: ok, Endpoints: records}
}

// Owner implements View: an endpoint is itself, or one that the asker may reach.
func (g graph) Owner(asker, address netip.Addr) (fabric.Ref, string, bool) {
	if asker == address {
		return ref("app/proxy"), "aws1", true
	}
	for service, records := range g[asker] {
		for _, r := range records {
			if r.IPv4 == address || r.IPv6 == address {
				return service, r.Zone, true
			}
		}
	}
	return fabric.Ref{}, "", false
}

var (
	proxy    = netip.MustParseAddr("100.64.1.2")
	stranger = netip.MustParseAddr("100.64.9.9")
)

func record(zone, v4, v6 string, healthy bool) Record {
	r := Record{Zone: zone, Healthy: healthy, IPv4: netip.MustParseAddr(v4)}
	if v6 != "" {
		r.IPv6 = netip.MustParseAddr(v6)
	}
	return r
}

func tcp(name string, port uint16) Port { return Port{name, fabric.TCP, port} }

func ported(endpoint, zone string, n byte, healthy bool, ports ...Port) Record {
	r := record(zone, fmt.Sprintf("100.64.20.%d", n), fmt.Sprintf("fd5f:20::%x", n), healthy)
	r.Endpoint, r.Ports = endpoint, ports
	return r
}

func ref(s string) fabric.Ref {
	r, err := fabric.ParseRef(s)
	if err != nil {
		panic(err)
	}
	return r
}

var testGraph = graph{
	proxy: {
		ref("app/svc"): {
			record("gcp1", "100.64.3.2", "fd5f:3::2", true),
			record("aws1", "100.64.1.3", "fd5f:1::3", true),
			record("aws1", "100.64.2.3", "fd5f:2::3", true),
			record("aws1", "100.64.2.4", "fd5f:2::4", false),
		},
		ref("app/far"): {
			record("west", "100.64.5.2", "fd5f:5::2", true),
			record("aws1", "100.64.1.9", "fd5f:1::9", false),
			record("gcp1", "100.64.3.9", "fd5f:3::9", true),
		},
		ref("app/ported"): {
			ported("11111111-0000-4000-8000-000000000001", "aws1", 1, true, tcp("http", 8080), tcp("admin", 9000), Port{"dns", fabric.UDP, 53}, tcp("dns", 53)),
			ported("11111111-0000-4000-8000-000000000002", "aws1", 2, true, tcp("http", 8081)),
			ported("11111111-0000-4000-8000-000000000003", "aws1", 3, false, tcp("http", 8082), tcp("tcp", 1)),
			ported("11111111-0000-4000-8000-000000000004", "gcp1", 4, true, tcp("http", 8083), tcp("http", 8084), tcp("far", 70)),
		},
		ref("app/sick"):   {record("aws1", "100.64.1.7", "fd5f:1::7", false)},
		ref("app/nobody"): nil,
		ref("app/four"):   {record("aws1", "100.64.1.8", "", true)},
	},
}

var fabricRanges = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd5f::/16")}

// testServer returns a server with a world outside.
func testServer(view View) *Server {
	self := netip.MustParseAddrPort("169.254.1.1:53")
	return &Server{
		authority: authority{zone: "aws1", ranges: slices.Concat(linkLocal, fabricRanges), view: view},
		outside:   &world{}, now: time.Now, waiting: limit.NewCount[netip.Addr](maxOutside, 0), questions: limit.NewRate[netip.Addr](time.Nanosecond, 1e9),
		observe: func(Outcome) {}, log: hclog.NewNullLogger(), addr: self,
	}
}

func question(name string, qtype uint16) *miekg.Msg {
	m := new(miekg.Msg)
	return m.SetQuestion(name, qtype)
}

// addresses returns the addresses of an answer, sorted.
func addresses(m *miekg.Msg) []string {
	list := []string{}
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *miekg.A:
			list = append(list, rr.A.String())
		case *miekg.AAAA:
			list = append(list, rr.AAAA.String())
		}
	}
	slices.Sort(list)
	return list
}

func TestRespond(t *testing.T) {
	for _, tc := range []struct {
		what, name string
		qtype      uint16
		rcode      int
		want       []string
		outcome    Outcome
	}{
		{"own zone, healthy only", "svc.app.sif.", miekg.TypeA, miekg.RcodeSuccess, []string{"100.64.1.3", "100.64.2.3"}, Answered},
		{"IPv6", "svc.app.sif.", miekg.TypeAAAA, miekg.RcodeSuccess, []string{"fd5f:1::3", "fd5f:2::3"}, Answered},
		{"any type", "svc.app.sif.", miekg.TypeANY, miekg.RcodeSuccess, []string{"100.64.1.3", "100.64.2.3", "fd5f:1::3", "fd5f:2::3"}, Answered},
		{"any case", "SvC.aPP.Sif.", miekg.TypeA, miekg.RcodeSuccess, []string{"100.64.1.3", "100.64.2.3"}, Answered},
		{"no healthy one in the own zone", "far.app.sif.", miekg.TypeA, miekg.RcodeSuccess, []string{"100.64.3.9"}, Answered},
		{"a zone", "gcp1.svc.app.sif.", miekg.TypeA, miekg.RcodeSuccess, []string{"100.64.3.2"}, Answered},
		{"a zone in any case", "GCP1.svc.app.sif.", miekg.TypeAAAA, miekg.RcodeSuccess, []string{"fd5f:3::2"}, Answered},
		{"a zone whose endpoints are unhealthy", "aws1.far.app.sif.", miekg.TypeA, miekg.RcodeSuccess, []string{}, Empty},
		{"a zone without endpoints", "west.svc.app.sif.", miekg.TypeA, miekg.RcodeNameError, []string{}, NoName},
		{"all unhealthy", "sick.app.sif.", miekg.TypeA, miekg.RcodeSuccess, []string{}, Empty},
		{"reachable, no endpoints", "nobody.app.sif.", miekg.TypeA, miekg.RcodeSuccess, []string{}, Empty},
		{"no IPv6 address", "four.app.sif.", miekg.TypeAAAA, miekg.RcodeSuccess, []string{}, Empty},
		{"another type", "svc.app.sif.", miekg.TypeMX, miekg.RcodeSuccess, []string{}, Empty},
		{"not reachable", "secret.app.sif.", miekg.TypeA, miekg.RcodeNameError, []string{}, NoName},
		{"a domain", "app.sif.", miekg.TypeA, miekg.RcodeNameError, []string{}, NoName},
		{"too many labels", "a.gcp1.svc.app.sif.", miekg.TypeA, miekg.RcodeNameError, []string{}, NoName},
		{"not a name of the fabric", "s_vc.app.sif.", miekg.TypeA, miekg.RcodeNameError, []string{}, NoName},
		{"an escaped dot", `svc\.app.sif.`, miekg.TypeA, miekg.RcodeNameError, []string{}, NoName},
		{"the apex", "sif.", miekg.TypeA, miekg.RcodeSuccess, []string{}, Empty},
		{"the apex's SOA", "SIF.", miekg.TypeSOA, miekg.RcodeSuccess, []string{}, Answered},
		{"a transfer", "sif.", miekg.TypeAXFR, miekg.RcodeRefused, []string{}, Refused},
		{"outside, not granted", "example.com.", miekg.TypeA, miekg.RcodeNameError, []string{}, NotGranted},
		{"outside, looks alike", "svc.app.notsif.", miekg.TypeA, miekg.RcodeNameError, []string{}, NotGranted},
		{"outside, of the apex's name", "sif.example.com.", miekg.TypeA, miekg.RcodeNameError, []string{}, NotGranted},
		{"an outside address", "1.2.0.192.in-addr.arpa.", miekg.TypePTR, miekg.RcodeNameError, []string{}, NotGranted},
		{"addresses of the fabric and others", "100.in-addr.arpa.", miekg.TypeNS, miekg.RcodeNameError, []string{}, NotGranted},
	} {
		t.Run(tc.what, func(t *testing.T) {
			req := question(tc.name, tc.qtype)
			resp, outcome := testServer(testGraph).respond(proxy, req)
			must.Eq(t, tc.rcode, resp.Rcode)
			must.Eq(t, tc.want, addresses(resp))
			must.Eq(t, tc.outcome, outcome)
			must.Eq(t, req.Id, resp.Id)
			must.Eq(t, req.Question, resp.Question)
			if outcome == Empty || outcome == NoName {
				must.True(t, resp.Authoritative)
				must.Len(t, 1, resp.Ns)
				must.Eq(t, 1, resp.Ns[0].(*miekg.SOA).Minttl)
				must.Eq(t, 1, resp.Ns[0].Header().Ttl)
			}
			for _, rr := range resp.Answer {
				must.Eq(t, ttl, rr.Header().Ttl)
				must.True(t, strings.EqualFold(tc.name, rr.Header().Name))
			}
		})
	}
}

// Ports are found by their names, as far as the asker may reach them, and each answer brings the
// addresses of its targets along.
func TestRespondPorts(t *testing.T) {
	const id = "11111111-0000-4000-8000-00000000000"
	for _, tc := range []struct {
		what, name string
		qtype      uint16
		rcode      int
		want       []string
	}{
		{"of the nearest zone", "_http._tcp.ported.app.sif.", miekg.TypeSRV, miekg.RcodeSuccess, []string{"8080 " + id + "1.aws1", "8081 " + id + "2.aws1"}},
		{"in any case", "_HTTP._Tcp.Ported.app.SIF.", miekg.TypeSRV, miekg.RcodeSuccess, []string{"8080 " + id + "1.aws1", "8081 " + id + "2.aws1"}},
		{"any type", "_admin._tcp.ported.app.sif.", miekg.TypeANY, miekg.RcodeSuccess, []string{"9000 " + id + "1.aws1"}},
		{"of a zone, two under one name", "_http._tcp.gcp1.ported.app.sif.", miekg.TypeSRV, miekg.RcodeSuccess, []string{"8083 " + id + "4.gcp1", "8084 " + id + "4.gcp1"}},
		{"the nearest zone that has it", "_far._tcp.ported.app.sif.", miekg.TypeSRV, miekg.RcodeSuccess, []string{"70 " + id + "4.gcp1"}},
		{"UDP", "_dns._udp.ported.app.sif.", miekg.TypeSRV, miekg.RcodeSuccess, []string{"53 " + id + "1.aws1"}},
		{"another protocol", "_http._udp.ported.app.sif.", miekg.TypeSRV, miekg.RcodeNameError, nil},
		{"not in this zone", "_admin._tcp.gcp1.ported.app.sif.", miekg.TypeSRV, miekg.RcodeNameError, nil},
		{"of an endpoint that is not healthy", "_tcp._tcp.ported.app.sif.", miekg.TypeSRV, miekg.RcodeSuccess, nil},
		{"above the names", "_tcp.ported.app.sif.", miekg.TypeSRV, miekg.RcodeSuccess, nil},
		{"above none", "_udp.sick.app.sif.", miekg.TypeSRV, miekg.RcodeNameError, nil},
		{"addresses of a port", "_http._tcp.ported.app.sif.", miekg.TypeA, miekg.RcodeSuccess, nil},
		{"no such port", "_nothing._tcp.ported.app.sif.", miekg.TypeSRV, miekg.RcodeNameError, nil},
		{"no such protocol", "_http._sctp.ported.app.sif.", miekg.TypeSRV, miekg.RcodeNameError, nil},
		{"without its underscore", "http._tcp.ported.app.sif.", miekg.TypeSRV, miekg.RcodeNameError, nil},
		{"an empty name", "_._tcp.ported.app.sif.", miekg.TypeSRV, miekg.RcodeNameError, nil},
		{"of an endpoint", "_http._tcp." + id + "1.aws1.ported.app.sif.", miekg.TypeSRV, miekg.RcodeNameError, nil},
		{"of a service that has none", "_http._tcp.svc.app.sif.", miekg.TypeSRV, miekg.RcodeNameError, nil},
		{"of a service that it may not reach", "_http._tcp.secret.app.sif.", miekg.TypeSRV, miekg.RcodeNameError, nil},
		{"of a service without endpoints", "_http._tcp.nobody.app.sif.", miekg.TypeSRV, miekg.RcodeNameError, nil},
	} {
		t.Run(tc.what, func(t *testing.T) {
			s := testServer(testGraph)
			resp, _ := s.respond(proxy, question(tc.name, tc.qtype))
			must.Eq(t, tc.rcode, resp.Rcode)
			var got []string
			for _, rr := range resp.Answer {
				srv := rr.(*miekg.SRV)
				must.Eq(t, [2]uint16{1, 1}, [2]uint16{srv.Priority, srv.Weight})
				must.Eq(t, ttl, srv.Hdr.Ttl)
				got = append(got, fmt.Sprintf("%d %s", srv.Port, strings.TrimSuffix(srv.Target, ".ported.app.sif.")))
				target, _ := s.respond(proxy, question(srv.Target, miekg.TypeANY))
				must.Len(t, 2, target.Answer)
				for _, a := range target.Answer {
					must.SliceContains(t, resp.Extra, a, must.Cmp(cmp.Comparer(func(a, b miekg.RR) bool { return a.String() == b.String() })))
				}
			}
			slices.Sort(got)
			must.Eq(t, tc.want, got)
			must.Eq(t, len(got) == 0, len(resp.Extra) == 0)
		})
	}
}

// An endpoint's own name has its addresses while it is healthy.
func TestRespondEndpoint(t *testing.T) {
	const id = "11111111-0000-4000-8000-00000000000"
	for _, tc := range []struct {
		name  string
		rcode int
		want  []string
	}{
		{id + "1.aws1.ported.app.sif.", miekg.RcodeSuccess, []string{"100.64.20.1"}},
		{strings.ToUpper(id) + "4.GCP1.ported.app.sif.", miekg.RcodeSuccess, []string{"100.64.20.4"}},
		{id + "3.aws1.ported.app.sif.", miekg.RcodeSuccess, []string{}},
		{id + "4.aws1.ported.app.sif.", miekg.RcodeNameError, []string{}},
		{id + "9.aws1.ported.app.sif.", miekg.RcodeNameError, []string{}},
		{id + "1.aws1.svc.app.sif.", miekg.RcodeNameError, []string{}},
		{id + "1.ported.app.sif.", miekg.RcodeNameError, []string{}},
		{"x." + id + "1.aws1.ported.app.sif.", miekg.RcodeNameError, []string{}},
	} {
		resp, _ := testServer(testGraph).respond(proxy, question(tc.name, miekg.TypeA))
		must.Eq(t, tc.rcode, resp.Rcode, must.Sprint(tc.name))
		must.Eq(t, tc.want, addresses(resp), must.Sprint(tc.name))
	}
}

// Names of the fabric's addresses, and names under .sif with a search suffix, are answered here, to
// each asker by what it may reach.
func TestRespondReverse(t *testing.T) {
	s := testServer(testGraph)
	reverse := func(addr string) string {
		name, err := miekg.ReverseAddr(addr)
		must.NoError(t, err)
		return name
	}
	for _, tc := range []struct {
		what, name string
		qtype      uint16
		rcode      int
		want       string
		outcome    Outcome
	}{
		{"one that it may reach", reverse("100.64.1.3"), miekg.TypePTR, miekg.RcodeSuccess, "aws1.svc.app.sif.", Answered},
		{"IPv6, in another zone", reverse("fd5f:3::2"), miekg.TypePTR, miekg.RcodeSuccess, "gcp1.svc.app.sif.", Answered},
		{"any type", reverse("100.64.1.3"), miekg.TypeANY, miekg.RcodeSuccess, "aws1.svc.app.sif.", Answered},
		{"any case", strings.ToUpper(reverse("fd5f:3::2")), miekg.TypePTR, miekg.RcodeSuccess, "gcp1.svc.app.sif.", Answered},
		{"itself", reverse("100.64.1.2"), miekg.TypePTR, miekg.RcodeSuccess, "aws1.proxy.app.sif.", Answered},
		{"another type", reverse("100.64.1.3"), miekg.TypeTXT, miekg.RcodeSuccess, "", Empty},
		{"one that it may not reach", reverse("100.64.9.9"), miekg.TypePTR, miekg.RcodeNameError, "", NoName},
		{"nobody's, IPv6", reverse("fd5f:9::9"), miekg.TypePTR, miekg.RcodeNameError, "", NoName},
		{"this server", reverse("169.254.1.1"), miekg.TypePTR, miekg.RcodeNameError, "", NoName},
		{"the gateway, IPv6", reverse("fe80::1"), miekg.TypePTR, miekg.RcodeNameError, "", NoName},
		{"above addresses", "1.64.100.in-addr.arpa.", miekg.TypePTR, miekg.RcodeSuccess, "", Empty},
		{"above addresses, IPv6", "0.0.0.0.f.5.d.f.ip6.arpa.", miekg.TypeNS, miekg.RcodeSuccess, "", Empty},
		{"an outside address", reverse("192.0.2.1"), miekg.TypePTR, miekg.RcodeNameError, "", NotGranted},
		{"not an address", "x.2.64.100.in-addr.arpa.", miekg.TypePTR, miekg.RcodeNameError, "", NotGranted},
		{"a number in another form", "03.1.64.100.in-addr.arpa.", miekg.TypePTR, miekg.RcodeNameError, "", NotGranted},
		{"too many labels", "1.3.1.64.100.in-addr.arpa.", miekg.TypePTR, miekg.RcodeNameError, "", NotGranted},
		{"a search suffix", "svc.app.sif.example.com.", miekg.TypeA, miekg.RcodeNameError, "", NoName},
		{"a search suffix of one label", "gcp1.svc.app.SIF.local.", miekg.TypeAAAA, miekg.RcodeNameError, "", NoName},
		{"outside", "www.example.org.", miekg.TypeA, miekg.RcodeNameError, "", NotGranted},
		{"outside, the root", ".", miekg.TypeNS, miekg.RcodeNameError, "", NotGranted},
	} {
		t.Run(tc.what, func(t *testing.T) {
			resp, outcome := s.respond(proxy, question(tc.name, tc.qtype))
			must.Eq(t, tc.rcode, resp.Rcode)
			must.Eq(t, tc.outcome, outcome)
			var got string
			for _, rr := range resp.Answer {
				got = rr.(*miekg.PTR).Ptr
			}
			must.Eq(t, tc.want, got)
			if tc.want == "" {
				return
			}
			// The addresses of the name contain it.
			name, _ := s.respond(proxy, question(got, miekg.TypeANY))
			for _, addr := range addresses(name) {
				if strings.EqualFold(reverse(addr), tc.name) {
					return
				}
			}
			must.Eq(t, "itself", tc.what) // which it may not call
		})
	}
}

// What an asker asks beyond its limit is refused. Others are not affected.
func TestQuestionsAreLimited(t *testing.T) {
	other := netip.MustParseAddr("100.64.1.20")
	s := testServer(graph{proxy: testGraph[proxy], other: testGraph[proxy]})
	s.questions = limit.NewRate[netip.Addr](time.Second, 20)
	outcomes := map[Outcome]int{}
	for range 100 {
		resp, outcome := s.respond(proxy, question("svc.app.sif.", miekg.TypeA))
		must.Eq(t, outcome == Limited, resp.Rcode == miekg.RcodeRefused)
		outcomes[outcome]++
	}
	must.Between(t, 20, outcomes[Answered], 40)
	must.Eq(t, 100-outcomes[Answered], outcomes[Limited])
	_, outcome := s.respond(other, question("svc.app.sif.", miekg.TypeA))
	must.Eq(t, Answered, outcome)
}

func TestRespondRefuses(t *testing.T) {
	s := testServer(testGraph)
	edns1 := question("svc.app.sif.", miekg.TypeA).SetEdns0(1232, false)
	edns1.IsEdns0().SetVersion(1)
	chaos := question("version.bind.", miekg.TypeTXT)
	chaos.Question[0].Qclass = miekg.ClassCHAOS
	notify := question("svc.app.sif.", miekg.TypeSOA)
	notify.Opcode = miekg.OpcodeNotify
	for _, tc := range []struct {
		what  string
		asker netip.Addr
		req   *miekg.Msg
		rcode int
	}{
		{"a stranger", stranger, question("svc.app.sif.", miekg.TypeA), miekg.RcodeRefused},
		{"a stranger who asks for the world", stranger, question("example.com.", miekg.TypeA), miekg.RcodeRefused},
		{"a later EDNS", proxy, edns1, miekg.RcodeBadVers},
		{"another class", proxy, chaos, miekg.RcodeRefused},
		{"another operation", proxy, notify, miekg.RcodeNotImplemented},
	} {
		resp, outcome := s.respond(tc.asker, tc.req)
		must.Eq(t, tc.rcode, resp.Rcode, must.Sprint(tc.what))
		must.Eq(t, Refused, outcome, must.Sprint(tc.what))
		finish(tc.req, resp, true)
		_, err := resp.Pack()
		must.NoError(t, err, must.Sprint(tc.what))
	}
}

// The answers to one asker do not depend on what another may reach.
func TestRespondByAsker(t *testing.T) {
	other := netip.MustParseAddr("100.64.1.20")
	s := testServer(graph{proxy: testGraph[proxy], other: {}})
	resp, _ := s.respond(proxy, question("svc.app.sif.", miekg.TypeA))
	must.Eq(t, miekg.RcodeSuccess, resp.Rcode)
	resp, _ = s.respond(other, question("svc.app.sif.", miekg.TypeA))
	must.Eq(t, miekg.RcodeNameError, resp.Rcode)
}

// Each endpoint comes first in some answers.
func TestAnswerOrder(t *testing.T) {
	s := testServer(testGraph)
	first := map[string]int{}
	for range 200 {
		resp, _ := s.respond(proxy, question("svc.app.sif.", miekg.TypeA))
		first[resp.Answer[0].(*miekg.A).A.String()]++
	}
	must.MapLen(t, 2, first)
	for addr, n := range first {
		must.Between(t, 50, n, 150, must.Sprint(addr))
	}
}

func manyEndpoints(n int) graph {
	var records []Record
	for i := range n {
		records = append(records, Record{
			Endpoint: fmt.Sprintf("%08d-0000-4000-8000-000000000000", i), Ports: []Port{tcp("http", 8080)}, Zone: "aws1", Healthy: true,
			IPv4: netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}), IPv6: netip.MustParseAddr("fd5f::1")})
	}
	return graph{proxy: {ref("app/svc"): records}}
}

func TestTruncation(t *testing.T) {
	s := testServer(manyEndpoints(300))
	for _, tc := range []struct {
		what      string
		edns      uint16
		udp       bool
		limit     int
		truncated bool
	}{
		{"UDP without EDNS", 0, true, 512, true},
		{"UDP with EDNS", 1000, true, 1000, true},
		{"UDP with a bold EDNS", 65000, true, maxUDP, true},
		{"UDP with a timid EDNS", 100, true, 512, true},
		{"TCP", 0, false, 65535, false},
		{"TCP with EDNS", 512, false, 65535, false},
	} {
		req := question("svc.app.sif.", miekg.TypeA)
		if tc.edns > 0 {
			req.SetEdns0(tc.edns, true)
		}
		resp, _ := s.respond(proxy, req)
		finish(req, resp, tc.udp)
		raw, err := resp.Pack()
		must.NoError(t, err)
		must.LessEq(t, tc.limit, len(raw), must.Sprint(tc.what))
		must.Eq(t, tc.truncated, resp.Truncated, must.Sprint(tc.what))
		must.Eq(t, !tc.truncated, len(resp.Answer) == 300, must.Sprint(tc.what))
		must.Greater(t, 20, len(resp.Answer), must.Sprint(tc.what))
		must.Eq(t, tc.edns > 0, resp.IsEdns0() != nil)
		must.True(t, tc.edns == 0 || resp.IsEdns0().Do())
	}
}

// What does not fit is left out of the additional section first, where it is not missed.
func TestTruncationOfPorts(t *testing.T) {
	for _, tc := range []struct {
		endpoints      int
		udp, truncated bool
	}{{3, true, false}, {11, true, false}, {300, true, true}, {300, false, false}} {
		s := testServer(manyEndpoints(tc.endpoints))
		req := question("_http._tcp.svc.app.sif.", miekg.TypeSRV).SetEdns0(maxUDP, false)
		resp, outcome := s.respond(proxy, req)
		must.Eq(t, Answered, outcome)
		finish(req, resp, tc.udp)
		raw, err := resp.Pack()
		must.NoError(t, err)
		must.Eq(t, tc.truncated, resp.Truncated, must.Sprint(tc.endpoints, tc.udp, len(raw)))
		must.Eq(t, !tc.truncated, len(resp.Answer) == tc.endpoints, must.Sprint(len(resp.Answer)))
		must.True(t, !tc.udp || len(raw) <= maxUDP)
		must.NotNil(t, resp.IsEdns0())
	}
}

// To any query, the response can be sent, is to that query, and has only addresses that the asker
// may reach.
func FuzzRespond(f *testing.F) {
	for _, m := range []*miekg.Msg{
		question("svc.app.sif.", miekg.TypeA), question("gcp1.svc.app.sif.", miekg.TypeAAAA),
		question("sif.", miekg.TypeSOA), question("example.com.", miekg.TypeA).SetEdns0(4096, true),
		question(`s\000vc.app.sif.`, miekg.TypeANY), question(`svc\.app.sif.`, miekg.TypeA), question(".", miekg.TypeNS),
		question("_http._tcp.ported.app.sif.", miekg.TypeSRV), question("_dns._udp.aws1.ported.app.sif.", miekg.TypeANY),
		question("11111111-0000-4000-8000-000000000001.aws1.ported.app.sif.", miekg.TypeA), question("_tcp._tcp.ported.app.sif.", miekg.TypeSRV),
		question("3.1.64.100.in-addr.arpa.", miekg.TypePTR), question("svc.app.sif.example.com.", miekg.TypeA),
	} {
		raw, err := m.Pack()
		must.NoError(f, err)
		f.Add(raw, true)
		f.Add(raw, false)
	}
	s := testServer(testGraph)
	f.Fuzz(func(t *testing.T, raw []byte, udp bool) {
		req := new(miekg.Msg)
		if req.Unpack(raw) != nil {
			return
		}
		resp, _ := s.respond(proxy, req)
		finish(req, resp, udp)
		wire, err := resp.Pack()
		if err != nil {
			t.Fatalf("the answer to %v cannot be sent: %v", req, err)
		}
		if udp && len(wire) > maxUDP {
			t.Fatalf("%d bytes over UDP", len(wire))
		}
		if resp.Id != req.Id || !resp.Response {
			t.Fatalf("not an answer to %v: %v", req, resp)
		}
		for _, rr := range resp.Extra {
			if rr.Header().Rrtype != miekg.TypeOPT && !strings.HasSuffix(rr.Header().Name, ".ported.app.sif.") {
				t.Fatalf("%v is not asked for", rr)
			}
		}
		if stray, _ := s.respond(stranger, req); len(stray.Answer)+len(stray.Ns) > 0 {
			t.Fatalf("a stranger was told %v", stray)
		}
		for _, rr := range resp.Answer {
			n := strings.ToLower(rr.Header().Name)
			if rr.Header().Rrtype == miekg.TypePTR && strings.HasSuffix(n, ".arpa.") {
				continue
			}
			if srv, ok := rr.(*miekg.SRV); ok {
				// Whoever is sent somewhere finds it there, and may go there.
				if target, _ := s.respond(proxy, question(srv.Target, miekg.TypeANY)); len(target.Answer) == 0 || srv.Port == 0 {
					t.Fatalf("%v leads nowhere", srv)
				}
			}
			if n != apex && !strings.HasSuffix(n, ".app.sif.") && n != "www.example.com." {
				t.Fatalf("%q has an address", n)
			}
		}
	})
}

func BenchmarkRespond(b *testing.B) {
	for _, tc := range []struct {
		what string
		view graph
	}{{"3Endpoints", testGraph}, {"300Endpoints", manyEndpoints(300)}} {
		b.Run(tc.what, func(b *testing.B) {
			s, req := testServer(tc.view), question("svc.app.sif.", miekg.TypeA).SetEdns0(1232, false)
			b.ReportAllocs()
			for b.Loop() {
				resp, _ := s.respond(proxy, req)
				finish(req, resp, true)
				if _, err := resp.Pack(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
