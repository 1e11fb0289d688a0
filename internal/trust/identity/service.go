// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/atomicfile"
	"github.com/sif-project/sif/internal/clock"
)

// maxPending bounds the keys of a service that wait for their certificate.
const maxPending = 8

// ServiceKeys are the keys and certificates of the services that have endpoints on this node. The
// keys never leave the node. It is safe for concurrent use.
type ServiceKeys struct {
	dir         string
	trustDomain string
	superseded  func(*x509.Certificate) bool

	mu      sync.Mutex
	certs   map[fabric.Ref]*tls.Certificate
	pending map[fabric.Ref][]*ecdsa.PrivateKey
}

// OpenServiceKeys reads the keys in dir, which it creates if need be. superseded says whether a
// certificate is to be replaced before its time: see Source.Superseded.
func OpenServiceKeys(dir, trustDomain string, superseded func(*x509.Certificate) bool) (*ServiceKeys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the directory of service keys: %w", err)
	}
	k := &ServiceKeys{
		dir:         dir,
		trustDomain: trustDomain,
		superseded:  superseded,
		certs:       map[fabric.Ref]*tls.Certificate{},
		pending:     map[fabric.Ref][]*ecdsa.PrivateKey{},
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the service keys: %w", err)
	}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".pem")
		if !ok {
			continue
		}
		// Names do not contain "--", so the file name is unambiguous.
		service, err := fabric.ParseRef(strings.Replace(name, "--", "/", 1))
		if err != nil {
			continue
		}
		b, err := os.ReadFile(k.file(service))
		if err != nil {
			return nil, fmt.Errorf("read the key of service %s: %w", service, err)
		}
		cert, err := DecodeCertificate(b)
		if err == nil {
			err = k.suits(service, cert)
		}
		if err != nil {
			continue // the caller requests another one
		}
		k.certs[service] = cert
	}
	return k, nil
}

func (k *ServiceKeys) file(service fabric.Ref) string {
	return filepath.Join(k.dir, service.Domain+"--"+service.Name+".pem")
}

func (k *ServiceKeys) suits(service fabric.Ref, cert *tls.Certificate) error {
	subject, err := Read(cert.Leaf, k.trustDomain)
	if err != nil {
		return err
	}
	if subject != (Subject{Service: service}) {
		return fmt.Errorf("the certificate is for %s", subject.SPIFFE())
	}
	return nil
}

// Key returns a signing request (DER) for a new key of the service. The current key is used until
// Put.
func (k *ServiceKeys) Key(service fabric.Ref) (csr []byte, err error) {
	key, csr, err := Request(k.trustDomain, service.SPIFFE(), nil)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	list := append(k.pending[service], key)
	k.pending[service] = list[max(0, len(list)-maxPending):]
	return csr, nil
}

// Put stores and uses the certificate (DER, leaf first) that was issued for a request that Key
// returned.
func (k *ServiceKeys) Put(service fabric.Ref, chain [][]byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.put(service, chain); err != nil {
		return fmt.Errorf("use the certificate of service %s: %w", service, err)
	}
	return nil
}

func (k *ServiceKeys) put(service fabric.Ref, chain [][]byte) error {
	var cert *tls.Certificate
	err := errors.New("none was asked for")
	for i, key := range k.pending[service] {
		if cert, err = Pair(key, chain); err == nil {
			k.pending[service] = slices.Delete(k.pending[service], i, i+1)
			break
		}
	}
	if err != nil {
		return err
	}
	if err := k.suits(service, cert); err != nil {
		return err
	}
	b, err := EncodeCertificate(cert)
	if err != nil {
		return err
	}
	k.certs[service] = cert
	return atomicfile.Write(k.file(service), b, 0o600)
}

// NeedsRenewal reports whether the service has no certificate, or one that is past RenewalTime or
// superseded.
func (k *ServiceKeys) NeedsRenewal(service fabric.Ref) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	cert := k.certs[service]
	return cert == nil || !clock.Now().Before(RenewalTime(cert.Leaf)) || k.superseded(cert.Leaf)
}

// Discard removes the keys of the certificates for which void is true, of the disk as well.
func (k *ServiceKeys) Discard(void func(fabric.Ref, *x509.Certificate) bool) error {
	k.mu.Lock()
	var list []fabric.Ref
	for service, cert := range k.certs {
		if void(service, cert.Leaf) {
			list = append(list, service)
		}
	}
	k.mu.Unlock()
	var errs []error
	for _, service := range list {
		errs = append(errs, k.Drop(service))
	}
	return errors.Join(errs...)
}

// Sign signs msg with the service's key and returns the chain (DER, leaf first) for VerifyBy.
func (k *ServiceKeys) Sign(service fabric.Ref, msg []byte) (sig []byte, chain [][]byte, err error) {
	k.mu.Lock()
	cert := k.certs[service]
	k.mu.Unlock()
	if cert == nil {
		return nil, nil, fmt.Errorf("service %s has no certificate here", service)
	}
	sig, chain, err = signWith(cert, msg, clock.Now().Before(cert.Leaf.NotAfter))
	if err != nil {
		return nil, nil, fmt.Errorf("service %s: %w", service, err)
	}
	return sig, chain, nil
}

// Expiry returns when the service's certificate expires, or zero if it has none.
func (k *ServiceKeys) Expiry(service fabric.Ref) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if cert := k.certs[service]; cert != nil {
		return cert.Leaf.NotAfter
	}
	return time.Time{}
}

// Issuers counts the certificates by who issued them (IssuedBy).
func (k *ServiceKeys) Issuers() map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	counts := map[string]int{}
	for _, cert := range k.certs {
		counts[IssuedBy(cert.Leaf)]++
	}
	return counts
}

// Services returns the services that have a certificate, in order.
func (k *ServiceKeys) Services() []fabric.Ref {
	k.mu.Lock()
	defer k.mu.Unlock()
	refs := make([]fabric.Ref, 0, len(k.certs))
	for r := range k.certs {
		refs = append(refs, r)
	}
	slices.SortFunc(refs, fabric.CompareRefs)
	return refs
}

// Drop removes the service's key and certificate.
func (k *ServiceKeys) Drop(service fabric.Ref) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.certs, service)
	delete(k.pending, service)
	if err := os.Remove(k.file(service)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the key of service %s: %w", service, err)
	}
	return nil
}
