// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

func TestMessages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := message{kind: rapid.SampledFrom([]kind{request, answer}).Draw(t, "kind"), size: rapid.IntRange(smallPayload, 9000).Draw(t, "size"), nonce: newNonce()}
		b := encode(m)
		got, ok := decode(b)
		must.True(t, ok)
		must.Eq(t, m, got)
		if m.kind == request {
			must.Len(t, m.size, b)
		}
	})
}

// No payload makes a node send more than it received, or answer an answer.
func FuzzDecode(f *testing.F) {
	f.Add(encode(message{kind: request, size: 100}))
	f.Add(encode(message{kind: answer, size: 100}))
	f.Add([]byte("SIFp"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := decode(b)
		if !ok {
			return
		}
		must.LessEq(t, len(b), len(encode(message{kind: answer, nonce: m.nonce, size: m.size})))
		if m.kind == request {
			must.Eq(t, len(b), m.size)
		}
	})
}
