// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/atomicfile"
)

// store is the directory of a Source. A missing file is read as nil. A corrupt file is an error,
// because pinned keys must not be forgotten silently.
type store string

const (
	certificateFile = "certificate.pem" // key and chain in one file, because they change together
	rootsFile       = "authorities.pem"
	keysFile        = "fabric-keys.json"

	storeDir = "identity" // in the data directory
)

func openStore(dataDir string) (store, error) {
	dir := filepath.Join(dataDir, storeDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("create the directory of the identity: %w", err)
	}
	return store(dir), nil
}

func (s store) path(name string) string { return filepath.Join(string(s), name) }

func (s store) read(name string) ([]byte, error) {
	b, err := os.ReadFile(s.path(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func (s store) write(name string, data []byte) error {
	return atomicfile.Write(s.path(name), data, 0o600)
}

func (s store) certificate() (*tls.Certificate, error) {
	b, err := s.read(certificateFile)
	if b == nil || err != nil {
		return nil, err
	}
	return DecodeCertificate(b)
}

func (s store) putCertificate(cert *tls.Certificate) error {
	b, err := EncodeCertificate(cert)
	if err != nil {
		return err
	}
	return s.write(certificateFile, b)
}

// roots returns nil if there are none.
func (s store) roots() ([]*x509.Certificate, error) {
	b, err := s.read(rootsFile)
	if b == nil || err != nil {
		return nil, err
	}
	list, err := decodeAuthorities(b)
	if err != nil {
		return nil, fmt.Errorf("read the authorities from %s: %w", s.path(rootsFile), err)
	}
	return list, nil
}

func (s store) keys() (fabric.KeySet, error) {
	k, err := ReadKeys(s.path(keysFile))
	if errors.Is(err, os.ErrNotExist) {
		return fabric.KeySet{}, nil
	}
	return k, err
}

// KeptKeys returns the public keys of the fabric that a Source has kept in its data directory; none
// if there are none.
func KeptKeys(dataDir string) (fabric.KeySet, error) {
	return store(filepath.Join(dataDir, storeDir)).keys()
}

func (s store) putKeys(k fabric.KeySet) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return s.write(keysFile, b)
}

// EncodeCertificate writes key and chain as PEM.
func EncodeCertificate(cert *tls.Certificate) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, c := range cert.Certificate {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	return b, nil
}

// DecodeCertificate is the inverse of EncodeCertificate.
func DecodeCertificate(b []byte) (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(b, b) // skips blocks of the other kind, and sets Leaf
	if err != nil {
		return nil, fmt.Errorf("decode a certificate with its key: %w", err)
	}
	return &cert, nil
}

// Pair combines a chain (DER, leaf first) with its key.
func Pair(key *ecdsa.PrivateKey, chain [][]byte) (*tls.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("there is no certificate")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("parse the certificate: %w", err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil
}
