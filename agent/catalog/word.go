// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package catalog

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sif-project/sif/fabric"
)

// word is what the node of an endpoint says about the endpoint's health. Consul's own checks are
// for Consul's users: whoever may write records named sif-* may write checks of them, on every
// node.
type word struct {
	Endpoint string    `json:"endpoint"`
	Consul   string    `json:"consul"` // the Consul node on which the record stands; a copy elsewhere does not count
	Healthy  bool      `json:"healthy"`
	At       time.Time `json:"at"` // of two words the later counts
	// Waits is why the endpoint cannot be called whatever its checks say; see Life.
	Waits string `json:"waits,omitempty"`
}

// signedWord is a word with the signature of the node's certificate, as it stands in the record.
type signedWord struct {
	Payload     []byte   `json:"payload"`
	Certificate [][]byte `json:"certificate"` // DER, leaf first
	Signature   []byte   `json:"signature"`
}

// metaWord is the prefix of the keys of a record's metadata with the JSON form of a signedWord.
const metaWord = "sif-health-"

// Signer signs with the certificate of the node.
type Signer interface {
	Certificate() *tls.Certificate
	Sign(msg []byte) (sig []byte, chain [][]byte, err error)
}

func wordSigningInput(payload []byte) []byte { return append([]byte("sif/v1/health\n"), payload...) }

// sign returns the text of a word for the record.
func (w word) sign(by Signer) (string, error) {
	payload, err := json.Marshal(w)
	if err != nil {
		return "", fmt.Errorf("encode the health of endpoint %s: %w", w.Endpoint, err)
	}
	s := signedWord{Payload: payload}
	if s.Signature, s.Certificate, err = by.Sign(wordSigningInput(payload)); err != nil {
		return "", fmt.Errorf("sign the health of endpoint %s: %w", w.Endpoint, err)
	}
	text, err := json.Marshal(s)
	return string(text), err
}

// decodeWord decodes the result of sign. It does not verify the signature.
func decodeWord(text string) (signedWord, word, error) {
	var s signedWord
	var w word
	if text == "" {
		return s, w, errors.New("its node has not said whether it is healthy")
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return s, w, fmt.Errorf("its health cannot be decoded: %w", err)
	}
	if err := json.Unmarshal(s.Payload, &w); err != nil {
		return s, w, fmt.Errorf("its health cannot be decoded: %w", err)
	}
	return s, w, nil
}

// renew returns the text of w for the record that had the text before: the same if it says the same
// and the certificate is still in use. The time of a new word is later than that of the one before,
// whatever the clock says.
func (w word) renew(before string, by Signer) (string, error) {
	if s, old, err := decodeWord(before); err == nil && old.Endpoint == w.Endpoint {
		leaf := by.Certificate().Certificate[0]
		same := old
		same.At = w.At
		if same == w && len(s.Certificate) > 0 && bytes.Equal(s.Certificate[0], leaf) {
			return before, nil
		}
		if !w.At.After(old.At) {
			w.At = old.At.Add(time.Millisecond)
		}
	}
	return w.sign(by)
}

// wordOf returns the verified word in a record about the admitted endpoint.
func (h *Health) wordOf(text string, a fabric.Admission, consulNode string) (word, error) {
	s, w, err := decodeWord(text)
	if err != nil {
		return w, err
	}
	node, err := h.Speaker(s.Certificate, wordSigningInput(s.Payload), s.Signature)
	switch {
	case err != nil:
		return w, fmt.Errorf("its health is invalid: %w", err)
	case node != a.Host():
		return w, fmt.Errorf("its health is the word of node %s, but it was admitted on %s", node, a.Host())
	case w.Endpoint != a.Endpoint:
		return w, fmt.Errorf("its health is that of endpoint %s", w.Endpoint)
	case w.Consul != consulNode:
		return w, fmt.Errorf("its node registered it on Consul node %s", w.Consul)
	}
	return w, nil
}

// split puts a text into values of metadata whose keys are prefix+"0", prefix+"1" and so on.
func split(m map[string]string, prefix, text string) {
	for i := 0; len(text) > 0; i++ {
		n := min(len(text), maxValue)
		m[prefix+strconv.Itoa(i)] = text[:n]
		text = text[n:]
	}
}

// joined returns the text that split put into metadata, or "" if there is none.
func joined(meta map[string]string, prefix string) string {
	var text strings.Builder
	for i := 0; ; i++ {
		chunk, ok := meta[prefix+strconv.Itoa(i)]
		if !ok {
			return text.String()
		}
		text.WriteString(chunk)
	}
}
