// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/wellknown"
)

// resolver is the address of the node's resolver, the same for every workload.
var resolver = netip.AddrPortFrom(wellknown.LinkLocal4, wellknown.DNSPort).String()

// resolve asks the resolver for a name's IPv4 addresses, from inside a workload.
func resolve(w workload, name string) ([]netip.Addr, error) {
	conn, err := within(w.netns, func() (net.Conn, error) { return net.DialTimeout("udp", resolver, time.Second) })
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	question := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	client := &dns.Client{Timeout: time.Second}
	answer, _, err := client.ExchangeWithConn(question, &dns.Conn{Conn: conn})
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", name, err)
	}
	if answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("resolve %s: %s", name, dns.RcodeToString[answer.Rcode])
	}
	var list []netip.Addr
	for _, r := range answer.Answer {
		if a, ok := r.(*dns.A); ok {
			if addr, ok := netip.AddrFromSlice(a.A.To4()); ok {
				list = append(list, addr)
			}
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list, nil
}

// client returns an HTTP client that sends from a namespace and follows no redirects.
func client(path string) *http.Client {
	return &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
				to, err := netip.ParseAddrPort(address)
				if err != nil {
					return nil, err
				}
				return dial(path, to, 2*time.Second)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// instance identifies the instance of a demo service that answered.
type instance struct {
	Service string `json:"service"`
	Node    string `json:"node"`
	Zone    string `json:"zone"`
	Alloc   string `json:"alloc"`
}

// answer is the answer of a demo service.
type answer[T any] struct {
	Instance instance `json:"instance"`
	Data     T        `json:"data"`
	Error    string   `json:"error"`
}

// ask requests JSON.
func ask[T any](path, url string, form url.Values) (answer[T], error) {
	var reply answer[T]
	method, body := http.MethodGet, io.Reader(nil)
	if form != nil {
		method, body = http.MethodPost, strings.NewReader(form.Encode())
	}
	request, err := http.NewRequest(method, url, body)
	if err != nil {
		return reply, err
	}
	request.Header.Set("Accept", "application/json")
	if form != nil {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	response, err := client(path).Do(request)
	if err != nil {
		return reply, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return reply, err
	}
	if response.StatusCode > 299 {
		return reply, fmt.Errorf("%s %s: %s: %s", method, url, response.Status, text)
	}
	if err := json.Unmarshal(text, &reply); err != nil {
		return reply, fmt.Errorf("%s %s: %w: %s", method, url, err, text)
	}
	return reply, nil
}

// part is the part of the page that comes from one gateway.
type part struct {
	From   *instance `json:"from"`
	Origin struct {
		Provider string     `json:"provider"`
		Seen     netip.Addr `json:"seen"`
	} `json:"origin"`
	Error string `json:"error"`
}

// page is what the getaway service collected.
type page struct {
	News    part `json:"news"`
	Places  part `json:"places"`
	Weather part `json:"weather"`
}

// parts returns the three parts of the page by service.
func (p page) parts() map[string]part {
	return map[string]part{"news-gw": p.News, "places-gw": p.Places, "weather-gw": p.Weather}
}

// page requests getaway's page from outside the fabric until it contains the answers of all three
// gateways, and returns it.
func (f *fabricUnderTest) page(t *testing.T, want func(page) error) page {
	t.Helper()
	var got page
	eventually(t, 30*time.Second, func() error {
		reply, err := ask[page](f.NetNS("client"), f.url(t, "getaway-web"), nil)
		if err != nil {
			return err
		}
		got = reply.Data
		for service, p := range got.parts() {
			if p.Error != "" || p.From == nil {
				return fmt.Errorf("%s did not answer: %s", service, p.Error)
			}
		}
		if want != nil {
			return want(got)
		}
		return nil
	})
	return got
}

// url returns the URL at which a job's page is published.
func (f *fabricUnderTest) url(t *testing.T, job string) string {
	t.Helper()
	pages, err := f.Pages(context.Background()) // Cleanups use it, so it must outlive the test's context
	must.NoError(t, err)
	for _, p := range pages {
		if p.Job == job {
			return p.URL
		}
	}
	t.Fatalf("job %s publishes no page: %v", job, pages)
	return ""
}
