// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package resolve

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

const (
	// attemptTimeout limits one query to one resolver. Stub resolvers give up after five seconds.
	attemptTimeout = 1500 * time.Millisecond
	// attempts is how often each resolver is queried, because a datagram can be lost.
	attempts = 2
)

// maxUDP is the maximum size of UDP messages in bytes, which avoids fragments on all paths (RFC
// 9715).
const maxUDP = 1232

// SystemConf is the file in which a machine has its resolvers.
const SystemConf = "/etc/resolv.conf"

// ErrUnreachable is returned when nobody who resolves names can be reached.
var ErrUnreachable = errors.New("no resolver can be reached")

// errRefused is returned for a resolver that says that it cannot answer.
var errRefused = errors.New("it cannot answer")

// Client queries resolvers.
type Client struct {
	self  netip.AddrPort // a server of this daemon, which is never queried; may be zero
	fixed []netip.AddrPort
	conf  resolvConf // used if fixed is empty
	udp   miekg.Client
	tcp   miekg.Client
	good  atomic.Pointer[netip.AddrPort] // the resolver that answered last; it is queried first
}

// NewClient returns a client of the resolvers in fixed or, if there are none, in the file
// resolvConf, which is read again when it changes. It never queries self.
func NewClient(self netip.AddrPort, fixed []netip.AddrPort, resolvConf string) *Client {
	c := &Client{
		self: self, fixed: fixed,
		udp: miekg.Client{Net: "udp", Timeout: attemptTimeout, UDPSize: maxUDP},
		tcp: miekg.Client{Net: "tcp", Timeout: attemptTimeout},
	}
	c.conf.path = resolvConf
	return c
}

// resolvers returns the resolvers to query, in order.
func (c *Client) resolvers() ([]netip.AddrPort, error) {
	list := c.fixed
	if len(list) == 0 {
		var err error
		if list, err = c.conf.servers(); err != nil {
			return nil, err
		}
	}
	list = slices.DeleteFunc(slices.Clone(list), c.isSelf)
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: none is named in dns.upstream, nor in %s", ErrUnreachable, c.conf.path)
	}
	if good := c.good.Load(); good != nil {
		if i := slices.Index(list, *good); i > 0 {
			list = slices.Insert(slices.Delete(list, i, i+1), 0, *good)
		}
	}
	return list, nil
}

// isSelf reports whether a resolver is the daemon's own server, to which a query would loop.
func (c *Client) isSelf(a netip.AddrPort) bool {
	return a.Port() == c.self.Port() && a.Addr().Unmap() == c.self.Addr()
}

// query queries the resolvers one after the other until one answers. The code of the answer is
// NOERROR or NXDOMAIN.
func (c *Client) query(ctx context.Context, name string, qtype uint16) (*miekg.Msg, error) {
	list, err := c.resolvers()
	if err != nil {
		return nil, err
	}
	out := new(miekg.Msg).SetQuestion(name, qtype) // with an ID of its own
	out.SetEdns0(maxUDP, false)
	var errs []error
	for range attempts {
		errs = nil
		for _, resolver := range list {
			in, err := c.exchange(ctx, out, resolver.String())
			if err == nil && in.Rcode != miekg.RcodeSuccess && in.Rcode != miekg.RcodeNameError {
				err = fmt.Errorf("%w: %s", errRefused, miekg.RcodeToString[in.Rcode])
			}
			if err == nil {
				c.good.Store(&resolver)
				return in, nil
			}
			if errs = append(errs, fmt.Errorf("ask resolver %s: %w", resolver, err)); ctx.Err() != nil {
				return nil, fmt.Errorf("%w: %w", ErrUnreachable, errors.Join(errs...))
			}
		}
		if !slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, errRefused) }) {
			break // none was lost
		}
	}
	if slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, errRefused) }) {
		return nil, errors.Join(errs...)
	}
	return nil, fmt.Errorf("%w: %w", ErrUnreachable, errors.Join(errs...))
}

// exchange queries one resolver over UDP, and over TCP if the answer is truncated.
func (c *Client) exchange(ctx context.Context, out *miekg.Msg, resolver string) (*miekg.Msg, error) {
	in, _, err := c.udp.ExchangeContext(ctx, out, resolver)
	if err == nil && in.Rcode == miekg.RcodeFormatError {
		// The resolver may not support EDNS (RFC 6891, section 7).
		out = out.Copy()
		out.Extra = nil
		in, _, err = c.udp.ExchangeContext(ctx, out, resolver)
	}
	if err != nil {
		return nil, err
	}
	if in.Truncated {
		// If TCP fails, use what there is.
		if whole, _, err := c.tcp.ExchangeContext(ctx, out, resolver); err == nil {
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
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
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
