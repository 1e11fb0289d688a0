// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package workloadapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/atomicfile"
	"github.com/sif-project/sif/internal/keylock"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/trust/identity"
)

const (
	// idle is how long after it was last asked for a certificate is still renewed.
	idle = time.Minute
	// issueTimeout bounds one call to the controller.
	issueTimeout = 5 * time.Second
	minPause     = time.Second // after a failure
	maxPause     = 30 * time.Second
)

// keys are the keys of applications with their certificates, by endpoint. They are not the keys by
// which the node speaks for its services: an application that loses its own key loses no
// connectivity to others. They are on disk, so that an agent that is started while no authority
// answers has them. It is safe for concurrent use.
type keys struct {
	cfg     Config
	renewed func()

	issuing keylock.Locks[string]
	mu      sync.Mutex
	set     map[string]*held
}

// held is what an application holds.
type held struct {
	service fabric.Ref
	cert    *tls.Certificate
	renew   time.Time // when it is to be renewed
	asked   time.Time
	failed  error
	again   time.Time // after a failure
	pauses  *backoff.ExponentialBackOff
}

// wanted reports whether somebody has asked for it lately.
func (h *held) wanted(now time.Time) bool { return now.Sub(h.asked) < idle }

func openKeys(c Config, renewed func()) (*keys, error) {
	k := &keys{cfg: c, renewed: renewed, set: map[string]*held{}}
	if err := os.MkdirAll(c.KeyDir, 0o700); err != nil {
		return nil, fmt.Errorf("create the directory of the keys of applications: %w", err)
	}
	files, err := os.ReadDir(c.KeyDir)
	if err != nil {
		return nil, fmt.Errorf("read the keys of applications: %w", err)
	}
	for _, f := range files {
		if endpoint, ok := strings.CutSuffix(f.Name(), ".pem"); ok {
			k.restore(endpoint)
		}
	}
	return k, nil
}

// restore takes a key over from an earlier agent. One that cannot be used is made anew when it is
// asked for.
func (k *keys) restore(endpoint string) {
	if w, err := k.cfg.Workloads.Current(endpoint); err == nil {
		if b, err := os.ReadFile(k.file(endpoint)); err == nil {
			if cert, err := identity.DecodeCertificate(b); err == nil && k.suits(w, cert.Leaf) == nil {
				k.set[endpoint] = newHeld(w, cert, k.cfg.Now())
				return
			}
		}
	}
	_ = os.Remove(k.file(endpoint)) // it is overwritten otherwise
}

func (k *keys) file(endpoint string) string { return filepath.Join(k.cfg.KeyDir, endpoint+".pem") }

func newHeld(w Workload, cert *tls.Certificate, now time.Time) *held {
	return &held{service: w.Service, cert: cert, renew: identity.RenewalTime(cert.Leaf), asked: now, pauses: retry.Backoff(minPause, maxPause)}
}

// suits returns why a certificate is not one for a workload.
func (k *keys) suits(w Workload, leaf *x509.Certificate) error {
	id, err := x509svid.IDFromCert(leaf)
	switch {
	case err != nil:
		return fmt.Errorf("the certificate for endpoint %s: %w", w.Endpoint, err)
	case id.String() != idOf(k.cfg.TrustDomain, w.Service):
		return fmt.Errorf("the certificate for endpoint %s of service %s is for %s", w.Endpoint, w.Service, id)
	case k.cfg.Revoked(leaf):
		return fmt.Errorf("the certificate for endpoint %s is revoked", w.Endpoint)
	case !k.cfg.Now().Before(leaf.NotAfter):
		return fmt.Errorf("the certificate for endpoint %s ended at %s", w.Endpoint, leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// get returns the key and the certificate of a workload, which are made if there are none.
func (k *keys) get(ctx context.Context, w Workload) (*tls.Certificate, error) {
	if cert := k.have(w); cert != nil {
		return cert, nil
	}
	defer k.issuing.Lock(w.Endpoint)()
	if cert := k.have(w); cert != nil { // somebody else has asked meanwhile
		return cert, nil
	}
	return k.issue(ctx, w)
}

// have returns what a workload has, if it can be used.
func (k *keys) have(w Workload) *tls.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.set[w.Endpoint]
	if h == nil || k.suits(w, h.cert.Leaf) != nil {
		return nil
	}
	h.asked = k.cfg.Now()
	return h.cert
}

// issue makes a key for a workload and has the controller get its certificate. What was there lives
// to its end beside it.
func (k *keys) issue(ctx context.Context, w Workload) (*tls.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	key, csr, err := identity.Request(k.cfg.TrustDomain.Name(), w.Service.SPIFFE(), nil)
	if err != nil {
		return nil, err
	}
	chain, err := k.cfg.Issuer.SVID(ctx, api.SVIDRequest{Endpoint: w.Endpoint, CSR: csr})
	if err != nil {
		return nil, fmt.Errorf("get a certificate for the application of endpoint %s: %w", w.Endpoint, err)
	}
	cert, err := identity.Pair(key, chain)
	if err == nil {
		err = k.suits(w, cert.Leaf)
	}
	if err != nil {
		return nil, fmt.Errorf("use the certificate for the application of endpoint %s: %w", w.Endpoint, err)
	}
	b, err := identity.EncodeCertificate(cert)
	if err != nil {
		return nil, err
	}
	h := newHeld(w, cert, k.cfg.Now())
	k.mu.Lock()
	if old := k.set[w.Endpoint]; old != nil {
		h.asked = old.asked
	}
	k.set[w.Endpoint] = h
	k.mu.Unlock()
	k.cfg.Log.Debug("certificate of an application issued", logkey.Endpoint, w.Endpoint, logkey.Service, w.Service, logkey.Expires, cert.Leaf.NotAfter)
	if err := atomicfile.WriteLazily(k.file(w.Endpoint), b, 0o600); err != nil {
		k.cfg.Log.Warn("cannot keep the key of an application: an agent that starts anew must ask the controller for another", logkey.Endpoint, w.Endpoint, logkey.Error, err)
	}
	k.renewed()
	return cert, nil
}

// run renews what is due until ctx ends, and forgets what belongs to nobody.
func (k *keys) run(ctx context.Context) error {
	for retry.Sleep(ctx, lookInterval) {
		k.forget()
		for _, w := range k.due() {
			k.renew(ctx, w)
		}
		k.cfg.Report("certificates of applications", k.failures())
	}
	return nil
}

// forget drops the keys of endpoints that are not there any more, or lost their rights.
func (k *keys) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for endpoint := range k.set {
		if _, err := k.cfg.Workloads.Current(endpoint); err != nil {
			delete(k.set, endpoint)
			if err := os.Remove(k.file(endpoint)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				k.cfg.Log.Warn("cannot remove the key of an application", logkey.Endpoint, endpoint, logkey.Error, err)
			}
		}
	}
}

// due returns the workloads whose certificates are to be renewed.
func (k *keys) due() []Workload {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.cfg.Now()
	var list []Workload
	for endpoint, h := range k.set {
		if h.wanted(now) && (!now.Before(h.renew) || k.cfg.Superseded(h.cert.Leaf)) && !now.Before(h.again) {
			list = append(list, Workload{Endpoint: endpoint, Service: h.service})
		}
	}
	return list
}

// issuers counts the certificates that have not ended by who issued them (identity.IssuedBy). One
// that nobody asks for any more may be in use to its end.
func (k *keys) issuers() map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	now, counts := k.cfg.Now(), map[string]int{}
	for _, h := range k.set {
		if now.Before(h.cert.Leaf.NotAfter) {
			counts[identity.IssuedBy(h.cert.Leaf)]++
		}
	}
	return counts
}

func (k *keys) renew(ctx context.Context, w Workload) {
	defer k.issuing.Lock(w.Endpoint)()
	_, err := k.issue(ctx, w)
	if err == nil || ctx.Err() != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if h := k.set[w.Endpoint]; h != nil {
		h.failed, h.again = err, k.cfg.Now().Add(h.pauses.NextBackOff())
	}
}

// failures says which certificates that are wanted could not be renewed, and when the first of them
// ends.
func (k *keys) failures() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.cfg.Now()
	var failed []*held
	for _, endpoint := range slices.Sorted(maps.Keys(k.set)) { // of those that end together, always the same one
		h := k.set[endpoint]
		if h.failed != nil && h.wanted(now) {
			failed = append(failed, h)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	first := slices.MinFunc(failed, func(a, b *held) int { return a.cert.Leaf.NotAfter.Compare(b.cert.Leaf.NotAfter) })
	return fmt.Errorf("%d cannot be renewed, of which the first, of service %s, ends at %s: %w",
		len(failed), first.service, first.cert.Leaf.NotAfter.UTC().Format(time.RFC3339), first.failed)
}
