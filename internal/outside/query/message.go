// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package query

import (
	"errors"
	"fmt"
	"strings"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/sif-project/sif/internal/outside/resolve"
)

// Message returns the reply as the response to req, whose records hold for at most ttl from now on.
// No part of it but the answer has records.
func (r Reply) Message(req *miekg.Msg, ttl time.Duration, now time.Time) *miekg.Msg {
	m := new(miekg.Msg).SetRcode(req, r.Code)
	m.RecursionAvailable = true
	left := max(0, min(ttl, r.Expires.Sub(now)))
	owner := ""
	for _, rr := range r.Chain {
		m.Answer = append(m.Answer, miekg.Copy(rr))
		owner = rr.(*miekg.CNAME).Target
	}
	for _, rr := range r.Records {
		rr = miekg.Copy(rr)
		if owner == "" { // the records of a chain that is not told
			rr.Header().Name = req.Question[0].Name
		}
		m.Answer = append(m.Answer, rr)
	}
	for _, rr := range m.Answer {
		h := rr.Header()
		h.Ttl = uint32(left / time.Second)
		if strings.EqualFold(h.Name, req.Question[0].Name) {
			h.Name = req.Question[0].Name // as those who ask have written it
		}
	}
	if r.Why != "" {
		opt := &miekg.OPT{Hdr: miekg.RR_Header{Name: ".", Rrtype: miekg.TypeOPT}}
		opt.SetUDPSize(miekg.MinMsgSize)
		opt.Option = []miekg.EDNS0{&miekg.EDNS0_EDE{InfoCode: r.Extended, ExtraText: r.Why}}
		m.Extra = []miekg.RR{opt}
	}
	return m
}

// Pack returns the reply to a question as one daemon tells it another.
func (r Reply) Pack(q resolve.Question, now time.Time) ([]byte, error) {
	req := new(miekg.Msg).SetQuestion(miekg.Fqdn(q.Name), q.Type)
	raw, err := r.Message(req, resolve.MaxTTL, now).Pack()
	if err != nil {
		return nil, fmt.Errorf("encode the answer about %s: %w", q.Name, err)
	}
	return raw, nil
}

// errNotAnswered is the error of a reply without an answer, whatever the reason.
var errNotAnswered = errors.New("the exit does not answer")

// Unpack returns what another daemon has replied to a question: the answer, or why there is none.
func Unpack(raw []byte, q resolve.Question, now time.Time) (resolve.Answer, error) {
	m := new(miekg.Msg)
	if err := m.Unpack(raw); err != nil {
		return resolve.Answer{}, fmt.Errorf("decode the answer about %s: %w", q.Name, err)
	}
	if m.Rcode != miekg.RcodeSuccess && m.Rcode != miekg.RcodeNameError {
		return resolve.Answer{}, fmt.Errorf("%w: %s: %s", errNotAnswered, q.Name, explained(m))
	}
	a, err := resolve.Read(m, q, now)
	if e := extended(m); e != nil {
		a.Extended, a.Why = e.InfoCode, e.ExtraText
	}
	return a, err
}

// explained returns the extended error of a message, or its code.
func explained(m *miekg.Msg) string {
	if e := extended(m); e != nil && e.ExtraText != "" {
		return e.ExtraText
	}
	return miekg.RcodeToString[m.Rcode]
}

// extended returns the extended error of a message, or nil.
func extended(m *miekg.Msg) *miekg.EDNS0_EDE {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*miekg.EDNS0_EDE); ok {
				return e
			}
		}
	}
	return nil
}
