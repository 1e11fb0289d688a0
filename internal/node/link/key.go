// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
)

// Key is a WireGuard public key (Curve25519). Its text form is base64, as in wg(8).
type Key [32]byte

// ParseKey parses the base64 form of a public key.
func ParseKey(s string) (Key, error) {
	b, err := decodeKey(s)
	return Key(b), err
}

// String returns the base64 form.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero reports whether the key is unset.
func (k Key) IsZero() bool { return k == Key{} }

// MarshalText returns the base64 form.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText parses the base64 form.
func (k *Key) UnmarshalText(text []byte) (err error) {
	*k, err = ParseKey(string(text))
	return err
}

// PrivateKey is a WireGuard private key. Printed, logged or marshalled it is "(private key)"; only
// Base64 returns its value.
type PrivateKey [32]byte

const redacted = "(private key)"

// GenerateKey returns a new random private key.
func GenerateKey() (PrivateKey, error) {
	var k PrivateKey
	if _, err := rand.Read(k[:]); err != nil {
		return PrivateKey{}, fmt.Errorf("generate WireGuard key: %w", err)
	}
	return k.clamped(), nil
}

// ParsePrivateKey parses the base64 form of a private key.
func ParsePrivateKey(s string) (PrivateKey, error) {
	b, err := decodeKey(s)
	if err != nil {
		return PrivateKey{}, err
	}
	return PrivateKey(b).clamped(), nil
}

// clamped fixes the bits that are the same in every Curve25519 scalar, as WireGuard does, so that
// the key equals the one that a device reports.
func (k PrivateKey) clamped() PrivateKey {
	if k.IsZero() {
		return k
	}
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

// Base64 returns the key's value, for a file that only root can read.
func (k PrivateKey) Base64() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Public returns the public key. That of an unset key is unset.
func (k PrivateKey) Public() Key {
	if k.IsZero() {
		return Key{}
	}
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		panic("32 bytes are always an X25519 private key: " + err.Error())
	}
	return Key(private.PublicKey().Bytes())
}

// IsZero reports whether the key is unset.
func (k PrivateKey) IsZero() bool { return k == PrivateKey{} }

// Format writes the redacted form for every verb of package fmt.
func (k PrivateKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// String returns the redacted form.
func (k PrivateKey) String() string { return redacted }

// MarshalText returns the redacted form: hclog's JSON output uses it.
func (k PrivateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

func (k PrivateKey) hex() string { return hex.EncodeToString(k[:]) }

// decodeKey does not repeat the text in errors because it may be a private key.
func decodeKey(s string) (b [32]byte, err error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return b, fmt.Errorf("decode WireGuard key: it is not base64")
	}
	if len(raw) != len(b) {
		return b, fmt.Errorf("decode WireGuard key: it has %d bytes, expected %d", len(raw), len(b))
	}
	copy(b[:], raw)
	return b, nil
}
