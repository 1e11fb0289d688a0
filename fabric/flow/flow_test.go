// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package flow

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

var at = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func ref(s string) fabric.Ref {
	r, err := fabric.ParseRef(s)
	if err != nil {
		panic(err)
	}
	return r
}

func node(s string) fabric.NodeID {
	id, err := fabric.ParseNodeID(s)
	if err != nil {
		panic(err)
	}
	return id
}

func example() Flow {
	return Flow{
		Time: at, Event: Opened, Verdict: Allow, Reason: "allowed-contract", Node: node("aws1/w1"), Layer: EBPF, Side: Sender, Number: 7, Opened: at, Protocol: "tcp",
		Source:      End{Name: ref("shop/web"), Endpoint: "4a2f0000-0000-0000-0000-000000000001", Node: node("aws1/w1"), Address: netip.MustParseAddr("100.64.0.2"), Port: 40000},
		Destination: End{Name: ref("bank/api"), Endpoint: "77aa0000-0000-0000-0000-000000000002", Node: node("gcp1/w1"), Address: netip.MustParseAddr("100.64.1.2"), Port: 8443},
		Contract:    ref("shop/pay"), Place: "shop.sif.hcl:12", Revision: 3, Sent: Traffic{1, 60},
	}
}

func TestMatch(t *testing.T) {
	outside := example()
	outside.Destination = End{Name: ref("shop/mail"), External: true, DNSName: "mail.example.com", Address: netip.MustParseAddr("203.0.113.7"), Port: 25}
	refused := example()
	refused.Event, refused.Verdict, refused.Reason, refused.Contract = Refused, Refuse, "no-contract", fabric.Ref{}
	check := example()
	check.Source = End{Host: true, Node: node("aws1/w1"), Address: netip.MustParseAddr("fe80::1")}
	yes := func(f Field, v string) Term { return Term{Field: f, Value: v} }
	no := func(f Field, v string) Term { return Term{Field: f, Value: v, Not: true} }

	for name, test := range map[string]struct {
		flow   Flow
		filter Filter
		want   bool
	}{
		"everything":                    {example(), Filter{}, true},
		"from a service":                {example(), Filter{Terms: []Term{yes(From, "shop/web")}}, true},
		"from another service":          {example(), Filter{Terms: []Term{yes(From, "bank/api")}}, false},
		"one of two":                    {example(), Filter{Terms: []Term{yes(From, "bank/api"), yes(From, "shop/web")}}, true},
		"two fields":                    {example(), Filter{Terms: []Term{yes(From, "shop/web"), yes(To, "shop/web")}}, false},
		"either end":                    {example(), Filter{Terms: []Term{yes(Party, "bank/api")}}, true},
		"to a domain":                   {example(), Filter{Terms: []Term{yes(To, "bank/*")}}, true},
		"not to a domain":               {example(), Filter{Terms: []Term{no(To, "bank/*")}}, false},
		"two that are excluded":         {example(), Filter{Terms: []Term{no(To, "shop/*"), no(To, "bank/api")}}, false},
		"neither is excluded":           {example(), Filter{Terms: []Term{no(To, "shop/*"), no(To, "bank/web")}}, true},
		"included and excluded":         {example(), Filter{Terms: []Term{yes(To, "bank/*"), no(To, "bank/api")}}, false},
		"an endpoint":                   {example(), Filter{Terms: []Term{yes(From, "4a2f")}}, true},
		"another endpoint":              {example(), Filter{Terms: []Term{yes(To, "4a2f")}}, false},
		"an address":                    {example(), Filter{Terms: []Term{yes(To, "100.64.1.2")}}, true},
		"a mapped address":              {example(), Filter{Terms: []Term{yes(To, "::ffff:100.64.1.2")}}, true},
		"a prefix":                      {example(), Filter{Terms: []Term{yes(To, "100.64.1.0/24")}}, true},
		"another prefix":                {example(), Filter{Terms: []Term{yes(To, "100.64.2.0/24")}}, false},
		"a DNS name":                    {outside, Filter{Terms: []Term{yes(To, "Mail.example.com.")}}, true},
		"an external":                   {outside, Filter{Terms: []Term{yes(To, "shop/mail")}}, true},
		"the node":                      {check, Filter{Terms: []Term{yes(From, "node")}}, true},
		"not the node":                  {example(), Filter{Terms: []Term{yes(From, "node")}}, false},
		"the domain of the destination": {example(), Filter{Terms: []Term{yes(Domain, "bank")}}, true},
		"another domain":                {example(), Filter{Terms: []Term{yes(Domain, "news")}}, false},
		"the zone of the destination":   {example(), Filter{Terms: []Term{yes(Zone, "gcp1")}}, true},
		"another zone":                  {example(), Filter{Terms: []Term{yes(Zone, "azr1")}}, false},
		"the node where it was seen":    {example(), Filter{Terms: []Term{yes(OnNode, "aws1/w1")}}, true},
		"not where it was seen":         {example(), Filter{Terms: []Term{yes(OnNode, "gcp1/w1")}}, false},
		"refused":                       {refused, Filter{Terms: []Term{yes(ByVerdict, "refused")}}, true},
		"not refused":                   {example(), Filter{Terms: []Term{yes(ByVerdict, "refused")}}, false},
		"an event":                      {example(), Filter{Terms: []Term{yes(ByEvent, "opened")}}, true},
		"a reason":                      {refused, Filter{Terms: []Term{yes(Reason, "no-contract")}}, true},
		"another reason":                {refused, Filter{Terms: []Term{yes(Reason, "no-way")}}, false},
		"a contract":                    {example(), Filter{Terms: []Term{yes(Contract, "shop/pay")}}, true},
		"without a contract":            {refused, Filter{Terms: []Term{yes(Contract, "shop/pay")}}, false},
		"a port":                        {example(), Filter{Terms: []Term{yes(Port, "8443")}}, true},
		"a port of the source":          {example(), Filter{Terms: []Term{yes(Port, "40000")}}, false},
		"a range of ports":              {example(), Filter{Terms: []Term{yes(Port, "8000-9000")}}, true},
		"a port and its protocol":       {example(), Filter{Terms: []Term{yes(Port, "8443/tcp")}}, true},
		"a port and another protocol":   {example(), Filter{Terms: []Term{yes(Port, "8443/udp")}}, false},
		"a protocol":                    {example(), Filter{Terms: []Term{yes(Protocol, "tcp")}}, true},
		"a protocol by its number":      {example(), Filter{Terms: []Term{yes(Protocol, "47")}}, false},
		"since":                         {example(), Filter{Since: at}, true},
		"since later":                   {example(), Filter{Since: at.Add(1)}, false},
		"until":                         {example(), Filter{Until: at}, true},
		"until earlier":                 {example(), Filter{Until: at.Add(-1)}, false},
	} {
		m, err := test.filter.Compile()
		must.NoError(t, err, must.Sprint(name))
		must.Eq(t, test.want, m.Match(&test.flow), must.Sprint(name))
	}
}

func TestFilterErrors(t *testing.T) {
	for want, filter := range map[string]Filter{
		`from: "x" is none of domain/name`:            {Terms: []Term{{Field: From, Value: "x"}}},
		`to: "a/b/c" is neither a service`:            {Terms: []Term{{Field: To, Value: "a/b/c"}}},
		`service: "/*"`:                               {Terms: []Term{{Field: Party, Value: "/*"}}},
		`domain: "a/b" is not the name of a domain`:   {Terms: []Term{{Field: Domain, Value: "a/b"}}},
		`zone: "A" is not the name of a zone`:         {Terms: []Term{{Field: Zone, Value: "A"}}},
		`node: node "w1" is not of the form`:          {Terms: []Term{{Field: OnNode, Value: "w1"}}},
		`verdict: "dropped" is not one of allowed, a`: {Terms: []Term{{Field: ByVerdict, Value: "dropped"}}},
		`event: "closed" is not one of opened, ref`:   {Terms: []Term{{Field: ByEvent, Value: "closed"}}},
		`reason: "no_contract" is not the name of a`:  {Terms: []Term{{Field: Reason, Value: "no_contract"}}},
		`contract: "pay" is not of the form`:          {Terms: []Term{{Field: Contract, Value: "pay"}}},
		`port: "70000" must be a port such as 443`:    {Terms: []Term{{Field: Port, Value: "70000"}}},
		`port: "9-1" must be a port`:                  {Terms: []Term{{Field: Port, Value: "9-1"}}},
		`port: "53/dns": `:                            {Terms: []Term{{Field: Port, Value: "53/dns"}}},
		`protocol: "http" is neither one of tcp, udp`: {Terms: []Term{{Field: Protocol, Value: "http"}}},
		`colour: there is no such field; there are `:  {Terms: []Term{{Field: "colour", Value: "red"}}},
		`from: "": must have from 1 to 256 character`: {Terms: []Term{{Field: From}}},
		`the filter has 65 terms; it may have 64`:     {Terms: make([]Term, 65)},
		`is before since `:                            {Since: at, Until: at.Add(-1)},
	} {
		_, err := filter.Compile()
		must.ErrorContains(t, err, want)
	}
}

func TestFor(t *testing.T) {
	reads := func(domains ...string) func(string) bool {
		return func(d string) bool {
			for _, x := range domains {
				if x == d {
					return true
				}
			}
			return false
		}
	}
	all, ok := example().For(reads("shop", "bank"))
	must.True(t, ok)
	must.Eq(t, example(), all)
	part, ok := example().For(reads("bank"))
	must.True(t, ok)
	must.Eq(t, End{Withheld: true, Address: example().Source.Address, Port: 40000}, part.Source)
	must.Eq(t, example().Destination, part.Destination)
	must.Eq(t, "(withheld) (100.64.0.2:40000)", part.Source.String())
	_, ok = example().For(reads("news"))
	must.False(t, ok)
	unknown := example()
	unknown.Source = End{Address: unknown.Source.Address}
	seen, ok := unknown.For(reads("bank"))
	must.True(t, ok)
	must.Eq(t, unknown, seen)
	unknown.Destination = End{}
	_, ok = unknown.For(reads("bank"))
	must.False(t, ok)
}

func TestText(t *testing.T) {
	f := example()
	must.Eq(t, "shop/web (100.64.0.2:40000) -> bank/api (100.64.1.2:8443) tcp opened, allowed by shop/pay at shop.sif.hcl:12 [aws1/w1 sender]", f.String())
	f.Event, f.Verdict, f.Sent, f.Received = Ended, Audit, Traffic{3, 180}, Traffic{2, 120}
	must.Eq(t, "shop/web (100.64.0.2:40000) -> bank/api (100.64.1.2:8443) tcp ended, allowed only by audit mode of shop/pay at shop.sif.hcl:12; 3 packets 180 bytes sent, 2 packets 120 bytes received [aws1/w1 sender]", f.String())
	f.Verdict, f.Reason, f.Contract, f.Overridden = Refuse, "no-contract", fabric.Ref{}, true
	must.Eq(t, "shop/web (100.64.0.2:40000) -> bank/api (100.64.1.2:8443) tcp refused: no-contract, but passed (test override); 3 packets 180 bytes in all [aws1/w1 sender]", f.String())
	f = example()
	f.Source, f.Contract, f.Reason, f.Side, f.Protocol, f.Destination.DNSName = End{Host: true}, fabric.Ref{}, "allowed-check", Receiver, ProtocolName(47), "api.example.com"
	must.Eq(t, "node (-) -> bank/api=api.example.com (100.64.1.2:8443) 47 opened: allowed-check [aws1/w1 receiver]", f.String())
	must.Eq(t, "(unknown) (100.64.0.2)", End{Address: netip.MustParseAddr("100.64.0.2")}.String())
	must.Eq(t, "icmpv6", ProtocolName(58))
}

// FuzzFilter: a filter that compiles matches without a panic, and is the same after it was encoded
// and decoded.
func FuzzFilter(f *testing.F) {
	for _, field := range Fields {
		for _, v := range []string{"shop/web", "shop/*", "100.64.0.0/10", "4a2f", "mail.example.com", "node", "refused", "opened", "8000-8080/tcp", "no-contract", "aws1/w1", "tcp"} {
			f.Add(string(field), v, true)
		}
	}
	f.Fuzz(func(t *testing.T, field, value string, not bool) {
		filter := Filter{Terms: []Term{{Field: Field(field), Value: value, Not: not}}}
		m, err := filter.Compile()
		if err != nil {
			return
		}
		flow := example()
		got := m.Match(&flow)
		text, err := json.Marshal(filter)
		must.NoError(t, err)
		var back Filter
		must.NoError(t, json.Unmarshal(text, &back))
		again, err := back.Compile()
		if err != nil {
			t.Fatalf("%q compiles, %q does not: %v", value, text, err)
		}
		must.Eq(t, got, again.Match(&flow))
		filter.Terms[0].Not = !not
		opposite, err := filter.Compile()
		must.NoError(t, err)
		must.Eq(t, !got, opposite.Match(&flow))
	})
}

// FuzzFlow: what is decoded can be encoded, is then the same, and has a text in one line.
func FuzzFlow(f *testing.F) {
	text, err := json.Marshal(example())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"time":"2026-11-29T12:00:00Z","source":{"name":"shop/web"},"destination":{"withheld":true}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var flow Flow
		if json.Unmarshal(data, &flow) != nil {
			return
		}
		text, err := json.Marshal(flow)
		if err != nil {
			return // a time beyond the year 9999
		}
		var back Flow
		must.NoError(t, json.Unmarshal(text, &back))
		again, err := json.Marshal(back)
		must.NoError(t, err)
		must.Eq(t, string(text), string(again))
		if line := flow.String(); strings.ContainsAny(line, "\n\r\x1b\x00") {
			t.Errorf("%q is not one line", line)
		}
	})
}
