// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package jwtkey

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"

	"github.com/sif-project/sif/internal/atomicfile"
	"github.com/sif-project/sif/internal/retry"
)

// RefreshInterval is how often the public keys are read, retryInterval the pause after Vault did
// not answer.
const (
	RefreshInterval = time.Minute
	retryInterval   = 5 * time.Second
)

// A token of a key that is not known has the keys read at once, so often at most.
const (
	hurryInterval = 5 * time.Second
	readTimeout   = 5 * time.Second
)

// Source has the public keys of the trust domain, which Run reads. It is safe for concurrent use.
type Source struct {
	key    Key
	path   string
	report func(error)
	hurry  *rate.Limiter

	work sync.Mutex        // held while they are read, so that the newest answer comes last
	kept *jwtbundle.Bundle // what is on disk

	mu     sync.Mutex
	bundle *jwtbundle.Bundle
}

// Open returns a Source with the keys on disk, if there are any. report is told of each attempt to
// read them from Vault.
func Open(key Key, trustDomain spiffeid.TrustDomain, path string, report func(error)) (*Source, error) {
	s := &Source{key: key, path: path, report: report, hurry: rate.NewLimiter(rate.Every(hurryInterval), 1), bundle: jwtbundle.New(trustDomain)}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the public keys of JWT-SVIDs: %w", err)
	}
	// A file that cannot be used is replaced by what Vault says.
	if b, err := jwtbundle.Parse(trustDomain, data); err == nil {
		s.bundle, s.kept = b, b
	}
	return s, nil
}

// Bundle returns the public keys. It is not modified later.
func (s *Source) Bundle() *jwtbundle.Bundle {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bundle
}

// IDs returns the IDs of the public keys, in order.
func (s *Source) IDs() []string {
	return slices.Sorted(maps.Keys(s.Bundle().JWTAuthorities()))
}

// Run reads the keys until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	for {
		err := s.refresh(ctx)
		s.report(err)
		pause := RefreshInterval
		if err != nil {
			pause = retryInterval
		}
		if !retry.Sleep(ctx, pause) {
			return nil
		}
	}
}

// Hurry reads the keys now, unless that was done just before: somebody has a token of a key that is
// not known here.
func (s *Source) Hurry(ctx context.Context) {
	if s.hurry.Allow() {
		s.report(s.refresh(ctx))
	}
}

func (s *Source) refresh(ctx context.Context) error {
	s.work.Lock()
	defer s.work.Unlock()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	list, err := s.key.Versions(ctx)
	if err != nil {
		return err
	}
	before := s.Bundle()
	next := jwtbundle.New(before.TrustDomain())
	for _, v := range list {
		if err := next.AddJWTAuthority(v.ID, v.Public); err != nil {
			return fmt.Errorf("take over version %d of the key of JWT-SVIDs: %w", v.Number, err)
		}
	}
	if !next.Equal(before) {
		s.mu.Lock()
		s.bundle = next
		s.mu.Unlock()
	}
	if s.kept != nil && next.Equal(s.kept) {
		return nil
	}
	data, err := next.Marshal()
	if err == nil {
		err = atomicfile.Write(s.path, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep the public keys of JWT-SVIDs: %w", err)
	}
	s.kept = next
	return nil
}
