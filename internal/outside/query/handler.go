// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package query

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	miekg "github.com/miekg/dns"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/limit"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/outside/names"
	"github.com/sif-project/sif/internal/outside/resolve"
)

// Limits of each source of questions. docs/operations.md lists them.
const (
	maxAtOnce    = 32                    // questions whose answer is awaited
	freshBurst   = 500                   // questions that were not answered lately, at once,
	freshEvery   = 10 * time.Millisecond // and after that one each interval
	logInterval  = time.Minute           // between log lines about one name
	patience     = 800 * time.Millisecond
	staleTTL     = 5 * time.Second
	reservedText = "it has addresses that no outside name may have"
)

// Question is a service's question about an outside name.
type Question struct {
	names.Key
	Type   uint16
	Source string        // whose allowance the question takes
	Exit   fabric.NodeID // who resolves, for Ask; zero: this node
	// Unready is why nobody can be asked at this time.
	Unready error
	// Externals are those that name the name, by contracts of the service.
	Externals []fabric.Peer
	// Granted reports whether a contract of the service names a name.
	Granted func(name string) bool
}

// Handler answers questions.
type Handler struct {
	ask    func(context.Context, Question, func() error) (resolve.Answer, error)
	table  *names.Table
	enact  func() error
	known  func() fabric.Outside
	report func(error)
	log    hclog.Logger

	waiting  *limit.Count[string]
	fresh    *limit.Rate[string]
	logs     *limit.Rate[names.Key]
	filtered atomic.Uint64
	limited  atomic.Uint64
}

// Options configures a Handler.
type Options struct {
	// Ask resolves. It calls may before it asks anybody, and returns may's error.
	Ask func(ctx context.Context, q Question, may func() error) (resolve.Answer, error)
	// Table gets the addresses.
	Table *names.Table
	// Enact brings the table in force.
	Enact func() error
	// Known tells which addresses are the fabric's, and which are reserved.
	Known func() fabric.Outside
	// Report is called with nil after an answer, and with an error that is resolve.ErrUnreachable.
	Report func(error)
	Log    hclog.Logger
}

// New returns a Handler.
func New(o Options) *Handler {
	return &Handler{
		ask: o.Ask, table: o.Table, enact: o.Enact, known: o.Known, report: o.Report, log: o.Log,
		waiting: limit.NewCount[string](maxAtOnce, 0), fresh: limit.NewRate[string](freshEvery, freshBurst),
		logs: limit.NewRate[names.Key](logInterval, 1),
	}
}

// Counts returns how many addresses were left out because no name may have them, and how many
// questions were not answered because their source asks too much.
func (h *Handler) Counts() (filtered, limited uint64) { return h.filtered.Load(), h.limited.Load() }

// errLimited is returned for a question beyond the allowance of its source.
var errLimited = errors.New("too many questions about outside names")

// Reply is the answer to a question. Its addresses are in force.
type Reply struct {
	resolve.Answer
	Code int // of the response
}

// failed returns a reply without an answer.
func failed(code int, extended uint16, why string) Reply {
	return Reply{Code: code, Answer: resolve.Answer{Extended: extended, Why: why}}
}

// Refusal is the reply to a question about a name that no contract grants.
func Refusal(service fabric.Ref, name string) Reply {
	return failed(miekg.RcodeRefused, miekg.ExtendedErrorCodeProhibited, "no contract of "+service.String()+" names "+name)
}

// Failure is the reply to a question that cannot be answered.
func Failure(err error) Reply {
	return failed(miekg.RcodeServerFailure, miekg.ExtendedErrorCodeNetworkError, err.Error())
}

// Answer answers a question about a name that q grants.
func (h *Handler) Answer(ctx context.Context, q Question) Reply {
	switch {
	case q.Type == miekg.TypeANY:
		return failed(miekg.RcodeRefused, miekg.ExtendedErrorCodeNotSupported, "questions of type ANY are not answered")
	case !slices.Contains(resolve.Types, q.Type):
		return Reply{}
	case !h.waiting.Take(q.Source):
		h.limited.Add(1)
		return Failure(errLimited)
	}
	defer h.waiting.Release(q.Source)
	held := h.held(q)
	waiting := ctx
	if len(held) > 0 {
		var cancel context.CancelFunc
		waiting, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	a, err := resolve.Answer{}, q.Unready
	if err == nil {
		a, err = h.ask(waiting, q, func() error {
			if ok, _ := h.fresh.Allow(q.Source); !ok {
				return errLimited
			}
			return nil
		})
	}
	switch {
	case err == nil:
		h.report(nil)
	case errors.Is(err, errLimited):
		h.limited.Add(1)
	case errors.Is(err, resolve.ErrUnreachable):
		h.report(resolve.ErrUnreachable)
		fallthrough
	default:
		if ok, _ := h.logs.Allow(q.Key); ok {
			h.log.Warn("cannot resolve an outside name", logkey.Name, q.Name, logkey.Service, q.Service, logkey.Error, err)
		}
	}
	if err != nil {
		if len(held) > 0 {
			a = resolve.Known(q.Name, held, h.now().Add(staleTTL))
			a.Extended, a.Why = miekg.ExtendedErrorCodeStaleAnswer, err.Error()
			return Reply{Answer: a}
		}
		return Failure(err)
	}
	return h.admit(q, a)
}

// held returns the addresses of a name that are in force and of the type in question.
func (h *Handler) held(q Question) []netip.Addr {
	if q.Type != miekg.TypeA && q.Type != miekg.TypeAAAA {
		return nil
	}
	return slices.DeleteFunc(h.table.Known(q.Key), func(a netip.Addr) bool { return a.Is4() != (q.Type == miekg.TypeA) })
}

func (h *Handler) now() time.Time { return h.table.Now() }

// admit leaves out of an answer what the service must not have, and brings its addresses in force.
func (h *Handler) admit(q Question, a resolve.Answer) Reply {
	r := Reply{Answer: a}
	if a.NoName {
		r.Code = miekg.RcodeNameError
	}
	if q.Type != miekg.TypeA && q.Type != miekg.TypeAAAA {
		// The records count as the name's own: those who ask would otherwise ask for names in the
		// chain, which no contract names.
		r.Chain, r.Records = nil, cleaned(a.Records, q.Granted)
		return r
	}
	known := h.known()
	var bad, rest []netip.Addr
	for _, addr := range a.Addresses() {
		if barred(known, addr, q.Externals) {
			bad = append(bad, addr)
		} else {
			rest = append(rest, addr)
		}
	}
	if len(bad) > 0 {
		h.filtered.Add(uint64(len(bad)))
		if ok, _ := h.logs.Allow(q.Key); ok {
			h.log.Warn("an outside name has addresses that no outside name may have; they are left out", logkey.Name, q.Name, logkey.Service, q.Service, logkey.Address, bad)
		}
		r.Extended, r.Why = miekg.ExtendedErrorCodeFiltered, reservedText
	}
	if len(rest) > 0 {
		rest = h.table.Put(q.Key, rest, names.Life(a.Expires.Sub(h.now())))
		if err := h.table.Enact(h.enact); err != nil {
			// The answer is given all the same: what fails may concern others, and nothing passes
			// that is not in force.
			h.log.Warn("the addresses of an outside name may not be in force yet", logkey.Name, q.Name, logkey.Service, q.Service, logkey.Error, err)
		}
	}
	r.Records = slices.DeleteFunc(slices.Clone(a.Records), func(rr miekg.RR) bool {
		addr, ok := resolve.AddressOf(rr)
		return !ok || !slices.Contains(rest, addr)
	})
	return r
}

// cleaned returns records without what leads around policy: addresses, and names that are not
// granted.
func cleaned(records []miekg.RR, granted func(string) bool) (list []miekg.RR) {
	names := func(target string) bool {
		name, ok := resolve.ParseName(target)
		return ok && granted(name)
	}
	for _, rr := range records {
		keep := true
		switch r := rr.(type) {
		case *miekg.HTTPS:
			c := &miekg.HTTPS{}
			*c = *r
			c.SVCB, keep = service(r.SVCB, names)
			rr = c
		case *miekg.SVCB:
			c, ok := service(*r, names)
			rr, keep = &c, ok
		case *miekg.SRV:
			keep = names(r.Target)
		case *miekg.MX:
			keep = names(r.Mx)
		case *miekg.CNAME, *miekg.TXT:
		default:
			keep = false
		}
		if keep {
			list = append(list, rr)
		}
	}
	return list
}

// service returns a service binding (RFC 9460) without addresses and without what is not known
// here. ok is false if it must not be told: it leads to another name, or needs what is left out.
func service(r miekg.SVCB, names func(string) bool) (_ miekg.SVCB, ok bool) {
	if r.Target != "." && !strings.EqualFold(r.Target, r.Hdr.Name) && !names(r.Target) {
		return r, false
	}
	known := []miekg.SVCBKey{miekg.SVCB_MANDATORY, miekg.SVCB_ALPN, miekg.SVCB_NO_DEFAULT_ALPN, miekg.SVCB_PORT}
	var values []miekg.SVCBKeyValue
	for _, v := range r.Value {
		if m, is := v.(*miekg.SVCBMandatory); is && slices.ContainsFunc(m.Code, func(k miekg.SVCBKey) bool { return !slices.Contains(known, k) }) {
			return r, false
		}
		if slices.Contains(known, v.Key()) {
			values = append(values, v)
		}
	}
	r.Value = values
	return r, true
}
