// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/limit"
)

// Limits of the API, per source (see limit.Source) or per identity: a node, or the holder of a
// token. docs/operations.md lists them.
const (
	maxConnsEach = 100  // of a source
	maxConns     = 4096 // of all sources
	maxHeader    = 32 << 10
	maxStreams   = 100              // concurrent calls on one HTTP/2 connection
	maxCalls     = 64               // concurrent calls of an identity, long polls included
	maxBodies    = 2 * maxLargeBody // bytes of the bodies of these calls, which are kept in memory

	// How long a body may take to arrive.
	bodyTime      = 30 * time.Second
	largeBodyTime = 2 * time.Minute

	// New connections of a source: so many at once, and then one each interval. A handshake costs
	// the controller a signature.
	dialBurst    = 200
	dialInterval = 50 * time.Millisecond

	// Calls of a source with a token that is not accepted, for which Consul or Vault is asked; and
	// calls that need no authentication.
	strangerBurst    = 100
	strangerInterval = 200 * time.Millisecond

	// Calls of an identity to one route, unless the route says otherwise.
	callBurst    = 500
	callInterval = 20 * time.Millisecond
)

// Names of the limits in metrics.
const (
	limitConns     = "connections"
	limitDials     = "connections per second"
	limitStrangers = "unauthenticated calls"
	limitPublic    = "calls without authentication"
	limitCalls     = "concurrent calls"
	limitRate      = "calls per second"
	limitBody      = "body"
	limitAudit     = "audit entries"
)

// limits bound what one source or identity takes from the others.
type limits struct {
	conns     *limit.Count[netip.Prefix]
	dials     *limit.Rate[netip.Prefix]
	strangers *limit.Rate[netip.Prefix]
	public    *limit.Rate[netip.Prefix]
	calls     *limit.Count[string]
	bodies    *limit.Count[string]   // bytes
	refused   *prometheus.CounterVec // by limit
}

func newLimits(refused *prometheus.CounterVec) *limits {
	return &limits{
		conns:     limit.NewCount[netip.Prefix](maxConnsEach, maxConns),
		dials:     limit.NewRate[netip.Prefix](dialInterval, dialBurst),
		strangers: limit.NewRate[netip.Prefix](strangerInterval, strangerBurst),
		public:    limit.NewRate[netip.Prefix](strangerInterval, strangerBurst),
		calls:     limit.NewCount[string](maxCalls, 0),
		bodies:    limit.NewCount[string](maxBodies, 0),
		refused:   refused,
	}
}

func (l *limits) count(which string) { l.refused.WithLabelValues(which).Inc() }

// listener returns a listener that closes connections of a source that has too many.
func (l *limits) listener(inner net.Listener) net.Listener {
	return limitedListener{inner, l}
}

type limitedListener struct {
	net.Listener
	limits *limits
}

func (l limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source := limit.Source(conn.RemoteAddr())
		if ok, _ := l.limits.dials.Allow(source); !ok {
			l.limits.count(limitDials)
			conn.Close()
			continue
		}
		if l.limits.conns.Take(source) {
			return limit.OnClose(conn, func() { l.limits.conns.Release(source) }), nil
		}
		l.limits.count(limitConns)
		conn.Close()
	}
}

// source returns the source of a call.
func source(r *http.Request) netip.Prefix {
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{}
	}
	return limit.Source(net.TCPAddrFromAddrPort(addr))
}

// tooMany answers a call that is refused because of a limit, and says when to try again.
func (l *limits) tooMany(w http.ResponseWriter, which string, wait time.Duration, format string, args ...any) {
	l.count(which)
	seconds := max(1, int(math.Ceil(wait.Seconds())))
	w.Header().Set("Retry-After", strconv.Itoa(seconds))
	refuse(w, api.Errorf(http.StatusTooManyRequests, api.CodeTooMany, "%s; try again in %d s", fmt.Sprintf(format, args...), seconds))
}

// anyone bounds the calls of a route that needs no authentication.
func (l *limits) anyone(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if ok, wait := l.public.Allow(source(r)); !ok {
			l.tooMany(w, limitPublic, wait, "too many calls without authentication from %s", source(r))
			return
		}
		next(w, r)
	}
}

// stranger reports whether the call of an operator must be refused before anybody is asked about
// its token, because too many tokens of its source were not accepted. It answers the call then.
func (l *limits) stranger(w http.ResponseWriter, r *http.Request) bool {
	wait := l.strangers.Wait(source(r))
	if wait > 0 {
		l.tooMany(w, limitStrangers, wait, "too many calls from %s were not authenticated", source(r))
	}
	return wait > 0
}

// enter bounds the calls of an identity that was authenticated. It answers a call that is refused,
// and returns false; otherwise the caller must call leave.
func (l *limits) enter(w http.ResponseWriter, r *http.Request, route route, rates *limit.Rate[string], id string) (leave func(), ok bool) {
	if ok, wait := rates.Allow(id); !ok {
		l.tooMany(w, limitRate, wait, "%s makes too many calls %s in a short time", id, route.pattern)
		return nil, false
	}
	if !l.calls.Take(id) {
		l.tooMany(w, limitCalls, time.Second, "%s has %d calls that are not answered yet, the most that it may have", id, maxCalls)
		return nil, false
	}
	size := int(r.ContentLength)
	if most, _ := route.body(); size < 0 || size > most { // it is not known, or body will refuse it
		size = most
	}
	if !l.bodies.TakeN(id, size) {
		l.calls.Release(id)
		l.tooMany(w, limitCalls, time.Second, "%s has calls with %d bytes that are not answered yet, the most that they may have", id, maxBodies)
		return nil, false
	}
	return func() { l.bodies.ReleaseN(id, size); l.calls.Release(id) }, true
}

// hurry bounds how long the body of a call may take to arrive, also if it is refused unread.
func (l *limits) hurry(w http.ResponseWriter, r *http.Request, within time.Duration) {
	if r.ContentLength != 0 {
		// It fails only if the connection is closed.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(within))
	}
}

// body replaces the body of a request by what it contains, of at most so many bytes. So no handler
// waits for a slow caller.
func (l *limits) body(w http.ResponseWriter, r *http.Request, most int, within time.Duration) error {
	if r.ContentLength == 0 {
		return nil
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(most)))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		l.count(limitBody)
		return api.Errorf(http.StatusRequestEntityTooLarge, api.CodeInvalid, "the request must not be larger than %d bytes", most)
	case errors.Is(err, os.ErrDeadlineExceeded):
		l.count(limitBody)
		return api.Errorf(http.StatusRequestTimeout, api.CodeInvalid, "the body of the request did not arrive within %s", within)
	case err != nil:
		return invalid("read the request: %v", err)
	}
	r.Body = io.NopCloser(bytes.NewReader(data))
	// The deadline would end the call, which may take longer.
	if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("end the time of the body: %w", err)
	}
	return nil
}
