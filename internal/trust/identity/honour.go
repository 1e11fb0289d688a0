// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/x509"
	"maps"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/statefile"
)

// In an outage nobody gets another certificate. So this process goes on with its own, and honours
// those of others that it has met before the outage began and that were valid then.

const metFile = "met.json"

// maxMet limits the certificates that are remembered.
const maxMet = 20000

// met is the certificates of others that were verified. The zero value and nil remember none.
type met struct {
	saved *statefile.Saver

	mu   sync.Mutex
	list map[string]meeting // by serial number
}

// meeting is when a certificate was verified first, and when it ends.
type meeting struct {
	Since time.Time `json:"since"`
	Ends  time.Time `json:"ends"`
}

func openMet(path string, log hclog.Logger) *met {
	m := &met{list: map[string]meeting{}}
	file := statefile.File[map[string]meeting]{Path: path, What: "the certificates that were met", Lazy: true}
	stored, found, err := file.Read()
	if err != nil {
		log.Warn("cannot use the certificates that were met before, in an outage their holders are refused when they have ended", logkey.Error, err)
	} else if found && stored != nil {
		m.list = stored
	}
	m.saved = file.Saver(func() map[string]meeting {
		m.mu.Lock()
		defer m.mu.Unlock()
		return maps.Clone(m.list)
	})
	return m
}

// note remembers a certificate that is valid now. It does not wait for the disk.
func (m *met) note(leaf *x509.Certificate, now time.Time) {
	if m == nil {
		return
	}
	serial := Serial(leaf)
	m.mu.Lock()
	_, known := m.list[serial]
	if !known {
		maps.DeleteFunc(m.list, func(_ string, of meeting) bool { return now.After(of.Ends.Add(fabric.MaxDegraded)) })
		if known = len(m.list) >= maxMet; !known {
			m.list[serial] = meeting{now, leaf.NotAfter}
		}
	}
	m.mu.Unlock()
	if !known && m.saved != nil {
		go func() { _ = m.saved.Call() }() // in memory it counts all the same
	}
}

// before reports whether a certificate was met before a time.
func (m *met) before(leaf *x509.Certificate, at time.Time) bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	of, known := m.list[Serial(leaf)]
	return known && !of.Since.After(at)
}

// outage returns when the present outage began; zero: there is none.
func (s *Source) outage() time.Time {
	if s.config.Outage == nil {
		return time.Time{}
	}
	return s.config.Outage()
}

// Stands reports whether this process may go on showing a certificate of its own: it has not ended,
// or was valid when the present outage began.
func (s *Source) Stands(own *x509.Certificate) bool {
	return clock.Now().Before(own.NotAfter) || wasValid(own, s.outage())
}

// honours reports whether a certificate of somebody else counts beyond its end: it was valid when
// the present outage began, and had been met before.
func (s *Source) honours(leaf *x509.Certificate) bool {
	began := s.outage()
	return wasValid(leaf, began) && s.met.before(leaf, began)
}

// wasValid reports whether a certificate was valid when an outage began; zero: there is none.
func wasValid(leaf *x509.Certificate, began time.Time) bool {
	return !began.IsZero() && began.Before(leaf.NotAfter) && !judgedAt(leaf, began).Before(leaf.NotBefore)
}
