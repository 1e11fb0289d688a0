// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/retry"

	"github.com/sif-project/sif/internal/logkey"
)

const (
	refreshInterval = time.Minute // of the authorities and the public keys
	minPause        = time.Second // after a failure
	maxPause        = 30 * time.Second
)

// chore renews a part of the identity. run returns when it is due again.
type chore struct {
	name   string
	run    func(ctx context.Context) (time.Time, error)
	due    time.Time
	failed bool
	pauses *backoff.ExponentialBackOff // after failures
}

// chores returns all chores. Later ones need what earlier ones obtain.
func (s *Source) chores() []*chore {
	list := []*chore{
		{name: "token", run: s.doToken},
		{name: "authorities", run: s.doRoots},
		{name: "fabric keys", run: s.doKeys},
		{name: "certificate", run: s.doCertificate},
	}
	for _, ch := range list {
		ch.pauses = retry.Backoff(minPause, maxPause)
	}
	return list
}

// Run renews the identity until ctx ends: the token, the authorities, the public keys, and the
// certificate at RenewalTime. Failures are reported by Degraded and retried.
func (s *Source) Run(ctx context.Context) error {
	if s.vault == nil {
		<-ctx.Done()
		return nil
	}
	chores := s.chores()
	token := chores[0]
	for {
		next := chores[0]
		for _, ch := range chores {
			if ch.due.Before(next.due) {
				next = ch
			}
		}
		if woken, ok := s.sleep(ctx, time.Until(next.due)); !ok {
			return nil
		} else if woken {
			chores[len(chores)-1].due = time.Time{} // the certificate may be revoked
			for _, ch := range chores {
				if ch.failed {
					ch.due = time.Time{}
				}
			}
			continue
		}
		due, err := next.run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		s.report(next.name, err)
		next.failed = err != nil
		if err == nil {
			next.due = due
			next.pauses.Reset()
			continue
		}
		next.due = time.Now().Add(next.pauses.NextBackOff())
		var r *vaultapi.ResponseError
		if next != token && errors.As(err, &r) && r.StatusCode == 403 {
			// The token may have been revoked, or Vault set up anew: log in again before the next
			// attempt.
			s.vault.ClearToken()
			if token.due.After(next.due) {
				token.due = next.due.Add(-time.Millisecond)
			}
		}
	}
}

// sleep waits for d, or until it is woken. It returns false when ctx ends.
func (s *Source) sleep(ctx context.Context, d time.Duration) (woken, ok bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false, false
	case <-s.wake:
		return true, true
	case <-timer.C:
		return false, true
	}
}

func (s *Source) doToken(ctx context.Context) (time.Time, error) {
	ttl, err := s.renew(ctx)
	if err != nil {
		return time.Time{}, err
	}
	s.mu.Lock()
	s.tokenTTL = max(s.tokenTTL, ttl)
	s.mu.Unlock()
	if ttl == 0 { // the token does not expire
		ttl = time.Hour
	}
	return time.Now().Add(max(ttl/2, time.Second)), nil
}

func (s *Source) doKeys(ctx context.Context) (time.Time, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	return time.Now().Add(refreshInterval), s.readKeys(ctx)
}

// readKeys reads the fabric's public keys, and which version of its key signs. The caller holds
// s.reading.
func (s *Source) readKeys(ctx context.Context) error {
	fetched, signs, err := vaultKeys(ctx, s.vault, s.config.TransitMount, s.config.TransitKey)
	if err != nil {
		return err
	}
	pinned := s.Keys()
	keys, err := pin(pinned, fetched)
	if err != nil {
		return err
	}
	onDisk, err := s.store.keys()
	if err != nil {
		return err
	}
	s.mu.Lock()
	before := s.signs
	s.keys, s.signs = keys, signs
	s.mu.Unlock()
	if before != 0 && before != signs {
		s.log.Info("another version of the fabric's key signs", logkey.Key, signs)
	}
	if sameKeys(keys, pinned) && sameKeys(keys, onDisk) {
		return nil
	}
	s.log.Info("fabric keys pinned", logkey.Count, len(keys.Keys))
	return s.store.putKeys(keys)
}

// Signing returns the version of the fabric's key that signs, as Vault said when it was last asked;
// 0 before that.
func (s *Source) Signing() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.signs
}

// SigningVersion is Signing for who signs: it asks Vault if that is not known, or is a version that
// Vault has refused; 0: it has refused none.
func (s *Source) SigningVersion(ctx context.Context, refused int) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if v := s.Signing(); v != 0 && v != refused {
		return v, nil
	}
	if err := s.readKeys(ctx); err != nil {
		return 0, err
	}
	return s.Signing(), nil
}

// doCertificate obtains a certificate if there is none, or if it is past RenewalTime,
// revoked or superseded.
func (s *Source) doCertificate(ctx context.Context) (time.Time, error) {
	s.mu.RLock()
	ask := s.isRevoked
	s.mu.RUnlock()
	if cert := s.Certificate(); cert != nil && s.ownRevoked(cert.Leaf, ask) == nil && !s.Superseded(cert.Leaf) {
		if left := RenewalTime(cert.Leaf).Sub(clock.Now()); left > 0 {
			return time.Now().Add(min(left, refreshInterval)), nil
		}
	}
	key, chain, err := s.issue(ctx)
	if err != nil {
		return time.Time{}, err
	}
	cert, err := Pair(key, chain)
	if err != nil {
		return time.Time{}, err
	}
	if err := s.suits(cert); err != nil {
		// Vault may use an authority that is not known here yet.
		if _, rerr := s.doRoots(ctx); rerr != nil {
			return time.Time{}, rerr
		}
		if err := s.suits(cert); err != nil {
			return time.Time{}, fmt.Errorf("cannot use the certificate that Vault signed: %w", err)
		}
	}
	s.mu.Lock()
	s.cert = cert
	s.mu.Unlock()
	s.log.Info("certificate renewed", logkey.Expires, cert.Leaf.NotAfter)
	left := RenewalTime(cert.Leaf).Sub(clock.Now())
	return time.Now().Add(min(left, refreshInterval)), s.store.putCertificate(cert)
}
