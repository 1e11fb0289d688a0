// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/sif-project/sif/internal/wellknown"
)

// attemptTimeout limits one query to one resolver. Stub resolvers give up after five seconds, so
// two resolvers can be tried.
const attemptTimeout = 2 * time.Second

// errNoUpstream says that no resolver is configured.
var errNoUpstream = errors.New("the node has no resolver")

// forwarder queries the node's resolvers.
type forwarder struct {
	self  netip.AddrPort // this server, which is never queried
	fixed []netip.AddrPort
	conf  resolvConf // used if fixed is empty
	udp   miekg.Client
	tcp   miekg.Client
	good  atomic.Pointer[netip.AddrPort] // the resolver that answered last; it is queried first
}

func newForwarder(self netip.AddrPort, fixed []netip.AddrPort, resolvConfPath string) *forwarder {
	return &forwarder{
		self: self, fixed: fixed, conf: resolvConf{path: resolvConfPath},
		udp: miekg.Client{Net: "udp", Timeout: attemptTimeout, UDPSize: maxUDP},
		tcp: miekg.Client{Net: "tcp", Timeout: attemptTimeout},
	}
}

// upstreams returns the resolvers to query, in order.
func (f *forwarder) upstreams() ([]netip.AddrPort, error) {
	list := f.fixed
	if len(list) == 0 {
		var err error
		if list, err = f.conf.servers(); err != nil {
			return nil, err
		}
	}
	list = slices.DeleteFunc(slices.Clone(list), f.isSelf)
	if len(list) == 0 {
		return nil, errNoUpstream
	}
	if good := f.good.Load(); good != nil {
		if i := slices.Index(list, *good); i > 0 {
			list = slices.Insert(slices.Delete(list, i, i+1), 0, *good)
		}
	}
	return list, nil
}

// isSelf reports whether a resolver is this server, to which a query would loop.
func (f *forwarder) isSelf(a netip.AddrPort) bool {
	return a.Port() == f.self.Port() && a.Addr().Unmap() == f.self.Addr()
}

// forward queries the node's resolvers one after the other until one answers, and returns the
// answer as the response to req. EDNS is hop by hop (RFC 6891), so its options are not forwarded.
func (f *forwarder) forward(ctx context.Context, req *miekg.Msg) (*miekg.Msg, error) {
	upstreams, err := f.upstreams()
	if err != nil {
		return nil, err
	}
	out := new(miekg.Msg)
	out.Id = miekg.Id() // not the workload's ID, which would help it to forge answers
	out.RecursionDesired = req.RecursionDesired
	out.CheckingDisabled, out.AuthenticatedData = req.CheckingDisabled, req.AuthenticatedData
	out.Question = slices.Clone(req.Question)
	opt := req.IsEdns0()
	out.SetEdns0(maxUDP, opt != nil && opt.Do())
	var errs []error
	var last *miekg.Msg
	for _, upstream := range upstreams {
		in, err := f.exchange(ctx, out, upstream.String())
		if err != nil {
			errs = append(errs, fmt.Errorf("query resolver %s: %w", upstream, err))
			continue
		}
		last = in
		if in.Rcode == miekg.RcodeServerFailure || in.Rcode == miekg.RcodeRefused {
			continue // another resolver may answer
		}
		f.good.Store(&upstream)
		break
	}
	if last == nil {
		return nil, errors.Join(errs...)
	}
	resp := reply(req, last.Rcode)
	resp.Authoritative, resp.AuthenticatedData = last.Authoritative, last.AuthenticatedData
	resp.Truncated, resp.RecursionAvailable = last.Truncated, last.RecursionAvailable
	resp.Answer, resp.Ns = last.Answer, last.Ns
	resp.Extra = slices.DeleteFunc(last.Extra, func(rr miekg.RR) bool { return rr.Header().Rrtype == miekg.TypeOPT })
	return resp, nil
}

// exchange queries one resolver over UDP, and over TCP if the answer is truncated.
func (f *forwarder) exchange(ctx context.Context, out *miekg.Msg, upstream string) (*miekg.Msg, error) {
	in, _, err := f.udp.ExchangeContext(ctx, out, upstream)
	if err == nil && in.Rcode == miekg.RcodeFormatError {
		// The resolver may not support EDNS (RFC 6891, section 7).
		out = out.Copy()
		out.Extra = nil
		in, _, err = f.udp.ExchangeContext(ctx, out, upstream)
	}
	if err != nil {
		return nil, err
	}
	if in.Truncated {
		// If TCP fails, return the truncated answer, which is marked as such.
		if whole, _, err := f.tcp.ExchangeContext(ctx, out, upstream); err == nil {
			in = whole
		}
	}
	return in, sameQuestion(out, in)
}

// sameQuestion returns an error if in is not a response to out.
func sameQuestion(out, in *miekg.Msg) error {
	if !in.Response {
		return errors.New("the message is not a response")
	}
	if len(in.Question) == 0 && in.Rcode != miekg.RcodeSuccess {
		return nil // some resolvers omit the question from errors
	}
	if len(in.Question) != 1 || in.Question[0].Qtype != out.Question[0].Qtype || in.Question[0].Qclass != out.Question[0].Qclass ||
		!strings.EqualFold(in.Question[0].Name, out.Question[0].Name) {
		return errors.New("the response is to another question")
	}
	return nil
}

// resolvConf reads the name servers of a resolv.conf (see resolv.conf(5)), and reads the file again
// when it changes.
type resolvConf struct {
	path string

	mu   sync.Mutex
	read time.Time // modification time of the file when it was read
	list []netip.AddrPort
}

func (r *resolvConf) servers() ([]netip.AddrPort, error) {
	info, err := os.Stat(r.path)
	if err != nil {
		return nil, fmt.Errorf("read the node's resolvers: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if info.ModTime().Equal(r.read) {
		return r.list, nil
	}
	conf, err := miekg.ClientConfigFromFile(r.path)
	if err != nil {
		return nil, fmt.Errorf("read the node's resolvers: %w", err)
	}
	r.read, r.list = info.ModTime(), nil
	for _, s := range conf.Servers {
		if addr, err := netip.ParseAddr(s); err == nil {
			r.list = append(r.list, netip.AddrPortFrom(addr, wellknown.DNSPort))
		}
	}
	return r.list, nil
}
