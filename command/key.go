// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/trust/jwtkey"
	"github.com/sif-project/sif/internal/trust/transit"
)

// keyCommand is what the commands of sif key have in common.
type keyCommand struct{ rotation }

// fabricKey is one of the fabric's two keys, as Vault has it.
type fabricKey struct {
	setup.TransitKey
	key    transit.Key
	tokens []jwtkey.Version // of the key that signs tokens of applications; nil for the other one
}

// read reads the key again.
func (k *fabricKey) read(ctx context.Context) error {
	var err error
	if k.key, err = k.Read(ctx); err != nil || k.tokens == nil {
		return err
	}
	if k.tokens, err = jwtkey.VersionsOf(k.key); err != nil {
		return fmt.Errorf("read the key %s: %w", k, err)
	}
	return nil
}

// signs returns the version that signs.
func (k *fabricKey) signs() int { return k.key.Signs(time.Now()) }

// older returns the versions that count and are older than the one that signs.
func (k *fabricKey) older() []int {
	var list []int
	for _, v := range k.key.Versions {
		if v.Number < k.signs() {
			list = append(list, v.Number)
		}
	}
	return list
}

// open returns the fabric's two keys, and a client of the controller.
func (c *keyCommand) open(ctx context.Context) ([]*fabricKey, *api.Client, error) {
	fail := func(err error) ([]*fabricKey, *api.Client, error) {
		return nil, nil, fmt.Errorf("reading the keys: %w", err)
	}
	vault, err := operatorsVault()
	if err != nil {
		return fail(err)
	}
	settings, err := setup.Stored(ctx, vault, c.mount)
	if err != nil {
		return fail(err)
	}
	keys := []*fabricKey{
		{TransitKey: setup.OpenSigningKey(vault, settings)},
		{TransitKey: setup.OpenTokenKey(vault, settings), tokens: []jwtkey.Version{}},
	}
	for _, k := range keys {
		if err := k.read(ctx); err != nil {
			return fail(err)
		}
	}
	client, err := c.client()
	return keys, client, err
}

// knows says why a daemon does not know a version of a key.
func (k *fabricKey) knows(version int) func(reported) string {
	return func(d reported) string {
		if k.tokens == nil {
			if !slices.Contains(d.authorities.Keys, version) {
				return fmt.Sprintf("it does not know version %d of %s yet", version, k)
			}
			return ""
		}
		if d.agent && !slices.Contains(d.authorities.TokenKeys, k.tokenID(version)) {
			return fmt.Sprintf("it does not know version %d of %s yet", version, k)
		}
		return ""
	}
}

// tokenID returns the ID of a version of the key of tokens.
func (k *fabricKey) tokenID(version int) string {
	for _, v := range k.tokens {
		if v.Number == version {
			return v.ID
		}
	}
	return ""
}

// signing says why a controller does not sign with a version, which it learns from Vault. The key
// of tokens is read for each of them.
func (k *fabricKey) signing(version int) func(reported) string {
	return func(d reported) string {
		if d.controller && k.tokens == nil && d.signs != version {
			return fmt.Sprintf("it signs with version %d of %s still", d.signs, k)
		}
		return ""
	}
}

// explicit says why a controller would sign with a new version at once.
func explicit(d reported) string {
	if d.controller && d.signs == 0 {
		return "it is of an older version, which would sign with a new version of the key at once: upgrade it first"
	}
	return ""
}

// released says why a daemon still needs versions below one.
func (k *fabricKey) released(below int) func(reported) string {
	return func(d reported) string {
		if k.tokens == nil {
			if d.authorities.Statements == nil {
				return "it is of an older version, which does not report what it holds"
			}
			n := 0
			for version, count := range d.authorities.Statements {
				if version < below {
					n += count
				}
			}
			if n > 0 {
				return fmt.Sprintf("it holds %s of an older version of %s", count(n, "statement"), k)
			}
			return ""
		}
		left := d.tokens[""]
		for _, v := range k.tokens {
			if v.Number < below {
				left = max(left, d.tokens[v.ID])
			}
		}
		if left > 0 {
			return fmt.Sprintf("tokens that it had an older version of %s sign live for another %s", k, brief(left))
		}
		return ""
	}
}

// retired says why a daemon still accepts versions below one. Keys of tokens have no order, and are
// dropped when Vault does.
func (k *fabricKey) retired(below int, old []string) func(reported) string {
	return func(d reported) string {
		if k.tokens == nil {
			if d.authorities.Lowest < below {
				return fmt.Sprintf("it still accepts versions of %s below %d", k, below)
			}
			return ""
		}
		if slices.ContainsFunc(old, func(id string) bool { return slices.Contains(d.authorities.TokenKeys, id) }) {
			return fmt.Sprintf("it still accepts versions of %s below %d", k, below)
		}
		return ""
	}
}

// keyStatus is the result in JSON.
type keyStatus struct {
	Keys    []keyVersions `json:"keys"`
	Lacking []string      `json:"lacking,omitempty"` // a sentence for each daemon that does not know all versions, or did not report
	Daemons int           `json:"daemons"`
}

type keyVersions struct {
	Key      string       `json:"key"` // its path in Vault
	Versions []keyVersion `json:"versions"`
}

type keyVersion struct {
	Version    int       `json:"version"`
	State      string    `json:"state"` // signs, next, old
	Created    time.Time `json:"created"`
	Known      int       `json:"known"`                // by so many daemons
	Of         int       `json:"of"`                   // daemons that need it
	Statements *int      `json:"statements,omitempty"` // that daemons hold and that it signed
}

// look reads what the daemons say of the keys.
func (c *keyCommand) look(ctx context.Context, keys []*fabricKey, client *api.Client) (keyStatus, error) {
	daemons, err := c.daemons(ctx, client)
	if err != nil {
		return keyStatus{}, err
	}
	s := keyStatus{Daemons: len(daemons)}
	for _, k := range keys {
		if err := k.read(ctx); err != nil {
			return s, err
		}
		of := keyVersions{Key: k.String()}
		for _, v := range k.key.Versions {
			x := keyVersion{Version: v.Number, State: "old", Created: v.Created}
			switch signs := k.signs(); {
			case v.Number == signs:
				x.State = "signs"
			case v.Number > signs:
				x.State = "next"
			}
			held := 0
			for _, d := range daemons {
				if k.tokens != nil && !d.agent {
					continue
				}
				x.Of++
				if d.silent == "" && k.knows(v.Number)(d) == "" {
					x.Known++
				}
				held += d.authorities.Statements[v.Number]
			}
			if k.tokens == nil {
				x.Statements = &held
			}
			of.Versions = append(of.Versions, x)
		}
		s.Keys = append(s.Keys, of)
	}
	s.Lacking = lacking(daemons, func(d reported) string {
		for _, k := range keys {
			for _, v := range k.key.Versions {
				if why := k.knows(v.Number)(d); why != "" {
					return why
				}
			}
		}
		return ""
	})
	return s, nil
}

// show shows the keys as they are now, and what can be done next.
func (c *keyCommand) show(ctx context.Context, keys []*fabricKey, client *api.Client, next string) error {
	s, err := c.look(ctx, keys, client)
	if err != nil {
		return err
	}
	return c.output(s, func() string { return formatKeys(s) + next })
}

func formatKeys(s keyStatus) string {
	var b strings.Builder
	rows := [][]string{{"Key", "Version", "State", "Made", "Known by", "Statements"}}
	for _, k := range s.Keys {
		for _, v := range k.Versions {
			held := "-"
			if v.Statements != nil {
				held = fmt.Sprint(*v.Statements)
			}
			rows = append(rows, []string{k.Key, fmt.Sprint(v.Version), v.State, v.Created.Format(time.DateTime), fmt.Sprintf("%d of %d", v.Known, v.Of), held})
		}
	}
	table(&b, rows)
	if len(s.Lacking) > 0 {
		b.WriteString("\nNot all is known everywhere:" + someOf(s.Lacking) + "\n")
	}
	return b.String()
}

// errNoOlder says that there is nothing to retire, or to go back to.
var errNoOlder = errors.New("no older version counts, so no rotation is under way; begin one with \"sif key rotate\"")
