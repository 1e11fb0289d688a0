// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package join

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Token is a join token. It can be used once, within minutes: Wrapping is a token of Vault that
// unwraps a Grant.
type Token struct {
	Vault     string `json:"v"`           // the address of Vault
	Namespace string `json:"n,omitempty"` // Vault's
	// Digest is the SHA-256, in hexadecimal, of the last certificate in the chain that Vault sends:
	// the machine, which has no authorities yet, accepts only a chain that this certificate ends.
	// It is empty if Vault is without TLS.
	Digest   string `json:"d,omitempty"`
	Wrapping string `json:"w"`
}

const tokenPrefix = "sif-join-"

// String returns the token as people copy it.
func (t Token) String() string {
	text, err := json.Marshal(t)
	if err != nil {
		panic(err) // strings only
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(text)
}

// ParseToken parses what String returned. White space around it does not matter.
func ParseToken(s string) (Token, error) {
	var t Token
	rest, ours := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ours {
		return t, fmt.Errorf("this is not a join token: it does not begin with %q; \"sif node create\" prints one", tokenPrefix)
	}
	text, err := base64.RawURLEncoding.DecodeString(rest)
	if err == nil {
		err = json.Unmarshal(text, &t)
	}
	if err == nil && (t.Vault == "" || t.Wrapping == "") {
		err = errors.New("it names no Vault or no wrapping token")
	}
	if err != nil {
		return Token{}, fmt.Errorf("the join token is damaged, copy it again as a whole: %w", err)
	}
	return t, nil
}
