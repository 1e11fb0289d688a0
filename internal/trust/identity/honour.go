// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/x509"
	"maps"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/statefile"
)

// In an outage nobody gets another certificate. So this process goes on with its own, and honours
// those of others that it has met before the outage began and that were valid then.

const metFile = "met.json"

// maxMet limits the certificates that are remembered, and maxMetOf those of one holder: a node can
// get any number of them from Vault, and must not take the place of others'.
const maxMet, maxMetOf = 20000, 32

// met is the certificates of others that were verified. The zero value and nil remember none.
type met struct {
	saved *statefile.Saver

	mu   sync.Mutex
	list map[string]meeting // by serial number
}

// meeting is when a certificate was verified first, when it ends, and whose it is. What an earlier
// version stored does not say whose.
type meeting struct {
	Since time.Time `json:"since"`
	Ends  time.Time `json:"ends"`
	Of    string    `json:"of,omitempty"`
}

// honoured reports whether an outage that began at a time, zero if there is none, honours the
// certificate beyond its end.
func (m meeting) honoured(began time.Time) bool {
	return !began.IsZero() && began.Before(m.Ends) && !m.Since.After(began)
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

// note remembers a certificate of a holder that is valid now, and forgets those that have ended and
// that neither the present outage, which began at a time, honours nor a later one can. It does not
// wait for the disk.
func (m *met) note(leaf *x509.Certificate, of Subject, now, began time.Time) {
	if m == nil {
		return
	}
	serial, holder := Serial(leaf), of.String()
	m.mu.Lock()
	_, known := m.list[serial]
	if !known {
		same := 0
		maps.DeleteFunc(m.list, func(_ string, other meeting) bool {
			over := !now.Before(other.Ends) && !other.honoured(began)
			if !over && other.Of == holder {
				same++
			}
			return over
		})
		if known = len(m.list) >= maxMet || same >= maxMetOf; !known {
			m.list[serial] = meeting{now, leaf.NotAfter, holder}
		}
	}
	m.mu.Unlock()
	if !known && m.saved != nil {
		go func() { _ = m.saved.Call() }() // in memory it counts all the same
	}
}

// honours reports whether a certificate was met before an outage that began at a time, and is
// honoured in it.
func (m *met) honours(leaf *x509.Certificate, began time.Time) bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	of, known := m.list[Serial(leaf)]
	return known && of.honoured(began)
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
	return wasValid(leaf, began) && s.met.honours(leaf, began)
}

// wasValid reports whether a certificate was valid when an outage began; zero: there is none.
func wasValid(leaf *x509.Certificate, began time.Time) bool {
	return !began.IsZero() && began.Before(leaf.NotAfter) && !judgedAt(leaf, began).Before(leaf.NotBefore)
}
