// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/ed25519"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

func TestReadKeys(t *testing.T) {
	public, _, err := ed25519.GenerateKey(nil)
	must.NoError(t, err)
	dir := t.TempDir()
	s, err := openStore(dir)
	must.NoError(t, err)
	none, err := s.keys()
	must.NoError(t, err)
	must.MapEmpty(t, none.Keys)
	kept := fabric.KeySet{Keys: map[int]ed25519.PublicKey{3: public}, Min: 2}
	must.NoError(t, s.putKeys(kept))
	read, err := ReadKeys(filepath.Join(dir, "identity", "fabric-keys.json"))
	must.NoError(t, err)
	must.Eq(t, kept, read)

	for text, want := range map[string]string{
		"":                                   "EOF",
		"{}":                                 "the key has no versions",
		`{"keys":{}}`:                        "the key has no versions",
		`{"keys":{"1":"AAAA"},"min":1}`:      "version 1 is not an ed25519 public key",
		`{"keys":{"one":"AAAA"},"min":1}`:    "cannot unmarshal",
		`{"keyz":{"1":"AAAA"}}`:              `unknown field "keyz"`,
		`{"keys":{"1":"*"}}`:                 "illegal base64",
		`{"data":{"keys":{}},"lease_id":""}`: `unknown field "data"`,
	} {
		file := filepath.Join(dir, "keys.json")
		must.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		_, err := ReadKeys(file)
		must.ErrorContains(t, err, want)
		must.ErrorContains(t, err, file)
	}
	_, err = ReadKeys(filepath.Join(dir, "none.json"))
	must.ErrorIs(t, err, os.ErrNotExist)
}

// What is read can be verified with, and written again.
func FuzzKeys(f *testing.F) {
	for _, seed := range []string{`{"keys":{"1":"nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="},"min":1}`, `{"keys":{"1":null},"min":-1}`, `{"keys":{}} {}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := decodeKeys(data)
		if err != nil {
			return
		}
		for n := range set.Keys {
			_ = set.Verify(fabric.Signed{Kind: fabric.KindPointer, Version: n, Signature: make([]byte, ed25519.SignatureSize)}, fabric.KindPointer, &fabric.Pointer{})
		}
		again, err := json.Marshal(set)
		must.NoError(t, err)
		same, err := decodeKeys(again)
		must.NoError(t, err)
		must.Eq(t, set, same)
	})
}
