// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package states keeps the newest state of each processor of the fabric, as its engine signed it.
// States travel from hand to hand, by engines and agents alike, so what is in them is believed for
// its signature, whoever sent it: a processor can speak of itself and of its own tunnels only. The
// package does not know how states are sent, nor what is chosen by them.
package states

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/limit"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/revocation"
)

// Signed is a state with what it can be verified by.
type Signed struct {
	State       []byte   `json:"state"`       // JSON of a desired.State
	Certificate [][]byte `json:"certificate"` // DER, leaf first; of the processor
	Signature   []byte   `json:"signature"`   // by the leaf's key over what signingInput returns
}

// Limits of a state. MaxMessage is the number of states in one message.
const (
	maxSize      = 1 << 20 // bytes of a state
	maxChain     = 8       // certificates
	maxSilent    = 1 << 12
	maxUnreached = 1 << 14
	MaxMessage   = 64
)

func signingInput(state []byte) []byte { return append([]byte("sif/v1/processor-state\n"), state...) }

// Parse reads a state that was not verified yet. It refuses what no engine would publish.
func Parse(b []byte) (s desired.State, err error) {
	if len(b) > maxSize {
		return s, fmt.Errorf("the state has %d bytes, at most %d are allowed", len(b), maxSize)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return desired.State{}, fmt.Errorf("decode the state: %w", err)
	}
	return s, check(s)
}

func check(s desired.State) error {
	if err := errors.Join(fabric.CheckName(s.Processor.Zone), fabric.CheckName(s.Processor.Name)); err != nil {
		return fmt.Errorf("processor %q of the state: %w", s.Processor, err)
	}
	switch {
	case s.Number == 0:
		return fmt.Errorf("the state of %s has no number", s.Processor)
	case len(s.Silent) > maxSilent || len(s.Unreached) > maxUnreached:
		return fmt.Errorf("the state of %s lists %d tunnels and %d nodes, at most %d and %d are allowed", s.Processor, len(s.Silent), len(s.Unreached), maxSilent, maxUnreached)
	}
	for _, h := range s.Silent {
		if h.Processor.Zone == s.Processor.Zone || h.IsZero() {
			return fmt.Errorf("the state of %s lists tunnel %q, which does not lead to another zone", s.Processor, h)
		}
	}
	for _, n := range s.Unreached {
		if n.Zone != s.Processor.Zone {
			return fmt.Errorf("the state of %s lists node %s, which is not of its zone", s.Processor, n)
		}
	}
	return nil
}

// Verifier is what states are checked against. The functions are called each time.
type Verifier struct {
	// VerifyBy verifies a signature by a certificate: see identity.Source.VerifyBy.
	VerifyBy func(chain [][]byte, msg, sig []byte) (identity.Subject, *x509.Certificate, error)
	Node     func(fabric.NodeID) (fabric.Node, bool)
	Removed  func() fabric.Revocations
}

// verify checks that a state was signed by the processor that it is about, and returns the
// certificate of the signature.
func (v Verifier) verify(s desired.State, signed Signed) (*x509.Certificate, error) {
	n, known := v.Node(s.Processor)
	switch {
	case !known:
		return nil, fmt.Errorf("the state is of %s, which is not a node of the fabric", s.Processor)
	case !n.Kind.Has(fabric.KindProcessor):
		return nil, fmt.Errorf("the state is of %s, which is no processor", s.Processor)
	case len(signed.Certificate) > maxChain:
		return nil, fmt.Errorf("the state of %s comes with %d certificates, at most %d are allowed", s.Processor, len(signed.Certificate), maxChain)
	}
	signer, leaf, err := v.VerifyBy(signed.Certificate, signingInput(signed.State), signed.Signature)
	if err != nil {
		return nil, fmt.Errorf("state of %s: %w", s.Processor, err)
	}
	if signer != identity.OfNode(n) {
		return nil, fmt.Errorf("the state of %s is signed by %s", s.Processor, signer)
	}
	if err := revocation.Certificate(v.Removed(), signer, leaf); err != nil {
		return nil, fmt.Errorf("the state of %s is signed with a certificate that is revoked: %w", s.Processor, err)
	}
	return leaf, nil
}

// entry is a verified state.
type entry struct {
	state  desired.State
	signed Signed
	leaf   *x509.Certificate
}

// A processor may publish statesAtOnce states at once, and after that one each statesEach. More are
// refused, because all nodes look for other ways after each.
const (
	statesAtOnce = 30
	statesEach   = 500 * time.Millisecond
)

// Set is the newest states. It is safe for concurrent use.
type Set struct {
	verify Verifier
	rates  *limit.Rate[fabric.NodeID]

	mu      sync.Mutex
	newest  map[fabric.NodeID]entry
	changed []func()
}

// New returns an empty set.
func New(v Verifier) *Set {
	return &Set{verify: v, rates: limit.NewRate[fabric.NodeID](statesEach, statesAtOnce), newest: map[fabric.NodeID]entry{}}
}

// OnChange has f called after each change, without order. Do not call it after the first Take.
func (s *Set) OnChange(f func()) { s.changed = append(s.changed, f) }

// Take adds those states that are newer than what is there, and returns them. The error says which
// were refused; the others are taken nevertheless.
func (s *Set) Take(list []Signed) (news []Signed, err error) {
	if len(list) > MaxMessage {
		return nil, fmt.Errorf("the message has %d states, at most %d are allowed", len(list), MaxMessage)
	}
	var errs []error
	for _, signed := range list {
		state, err := Parse(signed.State)
		if err == nil && state.Number <= s.Numbers()[state.Processor] {
			continue // without a look at the signature: most states come several times
		}
		var leaf *x509.Certificate
		if err == nil {
			leaf, err = s.verify.verify(state, signed)
		}
		if err == nil {
			if ok, _ := s.rates.Allow(state.Processor); !ok {
				err = fmt.Errorf("%s publishes too many states in a short time", state.Processor)
			}
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if s.put(entry{state, signed, leaf}) {
			news = append(news, signed)
		}
	}
	if len(news) > 0 {
		for _, f := range s.changed {
			f()
		}
	}
	return news, errors.Join(errs...)
}

// put keeps a state unless there is one that is as new.
func (s *Set) put(e entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.state.Number <= s.newest[e.state.Processor].state.Number {
		return false
	}
	s.newest[e.state.Processor] = e
	return true
}

// prune drops the states of processors that were removed, and of those whose certificate was
// revoked. The caller must hold mu.
func (s *Set) prune() {
	removed := s.verify.Removed()
	maps.DeleteFunc(s.newest, func(id fabric.NodeID, e entry) bool {
		return revocation.Certificate(removed, identity.Subject{Node: identity.Node{NodeID: id}}, e.leaf) != nil
	})
}

// States returns the newest states, ordered by processor.
func (s *Set) States() []desired.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prune()
	var list []desired.State
	for _, e := range s.newest {
		list = append(list, e.state)
	}
	slices.SortFunc(list, func(a, b desired.State) int { return fabric.CompareNodeIDs(a.Processor, b.Processor) })
	return list
}

// Numbers returns the numbers of the newest states.
func (s *Set) Numbers() map[fabric.NodeID]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prune()
	numbers := map[fabric.NodeID]uint64{}
	for id, e := range s.newest {
		numbers[id] = e.state.Number
	}
	return numbers
}

// Compare returns states that are newer than the given numbers, as many as one message may have,
// and the processors of which the given numbers are newer than what is here.
func (s *Set) Compare(numbers map[fabric.NodeID]uint64) (newer []Signed, lacking []fabric.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prune()
	for id, e := range s.newest {
		if e.state.Number > numbers[id] && len(newer) < MaxMessage {
			newer = append(newer, e.signed)
		}
	}
	for id, number := range numbers {
		if number > s.newest[id].state.Number {
			lacking = append(lacking, id)
		}
	}
	slices.SortFunc(lacking, fabric.CompareNodeIDs)
	return newer, lacking
}

// Of returns the newest states of processors, as far as they are known.
func (s *Set) Of(ids []fabric.NodeID) (list []Signed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if e, ok := s.newest[id]; ok {
			list = append(list, e.signed)
		}
	}
	return list
}

// Sign signs a state. sign is identity.Source.Sign.
func Sign(state desired.State, sign func(msg []byte) (sig []byte, chain [][]byte, err error)) (Signed, error) {
	b, err := json.Marshal(state)
	if err != nil {
		return Signed{}, fmt.Errorf("encode the processor's state: %w", err)
	}
	sig, chain, err := sign(signingInput(b))
	if err != nil {
		return Signed{}, fmt.Errorf("sign the processor's state: %w", err)
	}
	return Signed{State: b, Certificate: chain, Signature: sig}, nil
}
