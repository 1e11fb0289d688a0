// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package resolve

import (
	"context"
	"fmt"
	"time"

	miekg "github.com/miekg/dns"
)

// Timeout limits the time to answer a question, with all that its chain of names needs.
const Timeout = 5 * time.Second

// maxQueries limits the queries for one question: the chain of names may leave an answer, and few
// resolvers do not follow it themselves.
const maxQueries = 8

// Question is a question about a name, as ParseName returns it.
type Question struct {
	Name string
	Type uint16
}

// Resolver answers questions about names.
type Resolver struct {
	client *Client
	now    func() time.Time
	cache  *Cache[Question]
}

// NewResolver returns a resolver that queries by client.
func NewResolver(client *Client, now func() time.Time) *Resolver {
	r := &Resolver{client: client, now: now}
	r.cache = NewCache(r.lookup, now)
	return r
}

// Resolve answers a question. Of A and AAAA, it asks for the other one at the same time, because
// that question comes next. may says, when resolvers must be asked, whether they may be now.
func (r *Resolver) Resolve(ctx context.Context, q Question, may func() error) (Answer, error) {
	other := q
	switch q.Type {
	case miekg.TypeA:
		other.Type = miekg.TypeAAAA
	case miekg.TypeAAAA:
		other.Type = miekg.TypeA
	}
	if other != q {
		may = r.alongside(other, may)
	}
	return r.cache.Ask(ctx, q, may)
}

// alongside returns may with the effect that, if it succeeds, the cache learns the answer to other
// too.
func (r *Resolver) alongside(other Question, may func() error) func() error {
	return func() error {
		err := may()
		if err == nil {
			r.cache.Learn(other)
		}
		return err
	}
}

// lookup queries resolvers until the chain of names has ended.
func (r *Resolver) lookup(ctx context.Context, q Question) (a Answer, err error) {
	name := miekg.Fqdn(q.Name)
	for range maxQueries {
		m, err := r.client.query(ctx, name, q.Type)
		if err != nil {
			return a, fmt.Errorf("resolve %s: %w", q.Name, err)
		}
		var next string
		if a, next, err = a.read(m, name, q.Type, r.now()); err != nil {
			return a, fmt.Errorf("resolve %s: %w", q.Name, err)
		}
		if next == "" {
			return a, nil
		}
		name = next
	}
	return a, fmt.Errorf("resolve %s: %w", q.Name, errLong)
}
