// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/logkey"
)

// AuthorityID names an authority, in status and commands: its subject key identifier.
func AuthorityID(authority *x509.Certificate) string {
	return hex.EncodeToString(authority.SubjectKeyId)
}

// IssuedBy returns the AuthorityID of whoever issued a certificate.
func IssuedBy(leaf *x509.Certificate) string { return hex.EncodeToString(leaf.AuthorityKeyId) }

// issuer is an authority as Vault has it.
type issuer struct {
	cert    *x509.Certificate
	ended   bool // Vault says that it is revoked
	current bool // new certificates are from it
}

// fetchIssuers reads the issuers of the PKI mount.
func (s *Source) fetchIssuers(ctx context.Context) ([]issuer, error) {
	path := s.config.PKIMount + "/issuers"
	list, err := s.vault.Logical().ListWithContext(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("list the issuers of %s: %w", s.config.PKIMount, err)
	}
	if list == nil {
		return nil, fmt.Errorf("list the issuers of %s: there are none", s.config.PKIMount)
	}
	current, err := s.readIssuer(ctx, "default")
	if err != nil {
		return nil, err
	}
	ids, _ := list.Data["keys"].([]any)
	var issuers []issuer
	for _, id := range ids {
		i, err := s.readIssuer(ctx, fmt.Sprint(id))
		if err != nil {
			return nil, err
		}
		if i.cert == nil {
			continue // it was just deleted
		}
		i.current = i.cert.Equal(current.cert)
		issuers = append(issuers, i)
	}
	if len(issuers) == 0 {
		return nil, fmt.Errorf("the issuers of %s contain no certificate", s.config.PKIMount)
	}
	return issuers, nil
}

// readIssuer reads an issuer. Its certificate is nil if there is none.
func (s *Source) readIssuer(ctx context.Context, id string) (issuer, error) {
	path := s.config.PKIMount + "/issuer/" + id
	secret, err := s.vault.Logical().ReadWithContext(ctx, path)
	if err != nil {
		return issuer{}, fmt.Errorf("read %s: %w", path, err)
	}
	if secret == nil {
		return issuer{}, nil
	}
	text, _ := secret.Data["certificate"].(string)
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return issuer{}, fmt.Errorf("read %s: it has no certificate", path)
	}
	i := issuer{}
	if i.cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		return issuer{}, fmt.Errorf("read %s: %w", path, err)
	}
	i.ended, _ = secret.Data["revoked"].(bool)
	return i, nil
}

// follow returns whom to trust after an answer of Vault, and who of those it does not list. An
// authority that was trusted stays trusted when Vault lists it no more: that it is missing is not
// its end. It ends when Vault says that it is revoked (`sif ca finish`), or with its certificate.
func follow(trusted []*x509.Certificate, listed []issuer, now time.Time) (next, missing []*x509.Certificate) {
	known := func(c *x509.Certificate) bool {
		return slices.ContainsFunc(listed, func(i issuer) bool { return i.cert.Equal(c) })
	}
	for _, c := range trusted {
		if !known(c) && now.Before(c.NotAfter) {
			next, missing = append(next, c), append(missing, c)
		}
	}
	for _, i := range listed {
		if !i.ended {
			next = append(next, i.cert)
		}
	}
	slices.SortFunc(next, func(a, b *x509.Certificate) int {
		return cmp.Or(a.NotBefore.Compare(b.NotBefore), cmp.Compare(AuthorityID(a), AuthorityID(b)))
	})
	return next, missing
}

// doRoots fetches the authorities.
func (s *Source) doRoots(ctx context.Context) (time.Time, error) {
	due := time.Now().Add(refreshInterval)
	listed, err := s.fetchIssuers(ctx)
	if err != nil {
		return time.Time{}, err
	}
	before := s.trusted()
	next, missing := follow(before, listed, clock.Now())
	if len(next) == 0 {
		return time.Time{}, fmt.Errorf("every issuer of %s is revoked: the last one that was trusted stays trusted", s.config.PKIMount)
	}
	current := ""
	for _, i := range listed {
		if i.current {
			current = AuthorityID(i.cert)
		}
	}
	s.mu.Lock()
	if s.current != "" && s.current != current {
		s.log.Info("another authority issues the certificates now: those of this process are renewed", logkey.Subject, current)
	}
	s.current = current
	s.mu.Unlock()
	if !slices.EqualFunc(before, next, (*x509.Certificate).Equal) {
		s.trust(next)
		s.log.Info("authorities changed", logkey.Count, len(next))
	}
	// Compared with the file, because writing it may have failed the last time.
	encoded := encodeAuthorities(next)
	if onDisk, err := s.store.read(rootsFile); err != nil || !bytes.Equal(onDisk, encoded) {
		if err := s.store.write(rootsFile, encoded); err != nil {
			return time.Time{}, err
		}
	}
	s.report("authorities in Vault", describeMissing(missing, s.config.PKIMount))
	return due, nil
}

func describeMissing(missing []*x509.Certificate, mount string) error {
	var errs []error
	for _, c := range missing {
		errs = append(errs, fmt.Errorf("authority %s (%s) is missing among the issuers of %s: it stays trusted to its end, %s; "+
			"to end it before, import its certificate there again (vault write %s/issuers/import/cert), and use `sif ca finish`",
			AuthorityID(c), c.Subject, mount, c.NotAfter.Format(time.DateOnly), mount))
	}
	return errors.Join(errs...)
}

// trust replaces the authorities that certificates are verified with.
func (s *Source) trust(authorities []*x509.Certificate) {
	pool := x509.NewCertPool()
	for _, c := range authorities {
		pool.AddCert(c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.authorities, s.roots = authorities, pool
}

func (s *Source) trusted() []*x509.Certificate {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.authorities
}

// Authorities returns the AuthorityIDs of those that certificates are verified with.
func (s *Source) Authorities() []string {
	var ids []string
	for _, c := range s.trusted() {
		ids = append(ids, AuthorityID(c))
	}
	return ids
}

// supersededRest is how old a certificate must be to be replaced because its issuer was. It keeps
// certificates from being replaced in a loop where a role has an issuer of its own.
const supersededRest = 2 * time.Minute

// Superseded reports whether certificates are issued by another authority now than a certificate,
// so that it is replaced before its time.
func (s *Source) Superseded(leaf *x509.Certificate) bool {
	s.mu.RLock()
	current := s.current
	s.mu.RUnlock()
	return current != "" && IssuedBy(leaf) != current && clock.Now().Sub(leaf.NotBefore) > supersededRest
}

func encodeAuthorities(authorities []*x509.Certificate) []byte {
	var b strings.Builder
	for _, c := range authorities {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // writing to a Builder cannot fail
	}
	return []byte(b.String())
}

// decodeAuthorities reads certificates in PEM, at least one.
func decodeAuthorities(text []byte) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, errors.New("it contains no certificate")
	}
	return list, nil
}
