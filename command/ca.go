// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/setup"
)

// authorityCommand is what the commands of sif ca have in common.
type authorityCommand struct{ rotation }

// open returns the fabric's PKI with its authorities, and a client of the controller that trusts
// each of them.
func (c *authorityCommand) open(ctx context.Context) (setup.PKI, setup.AuthoritySet, *api.Client, error) {
	fail := func(err error) (setup.PKI, setup.AuthoritySet, *api.Client, error) {
		return setup.PKI{}, nil, nil, fmt.Errorf("reading the authorities: %w", err)
	}
	vault, err := operatorsVault()
	if err != nil {
		return fail(err)
	}
	settings, err := setup.Stored(ctx, vault, c.mount)
	if err != nil {
		return fail(err)
	}
	pki := setup.OpenPKI(vault, settings)
	set, err := pki.Authorities(ctx)
	if err != nil {
		return fail(err)
	}
	client, err := c.trusting(set)
	return pki, set, client, err
}

// trusting returns a client of the controller that trusts the authorities besides the CA that
// options name.
func (c *authorityCommand) trusting(set setup.AuthoritySet) (*api.Client, error) {
	c.config.MoreCAs = set.Bundle()
	return c.client()
}

// trusts says why a daemon does not trust an authority.
func trusts(a setup.Authority) func(reported) string {
	return func(d reported) string {
		if slices.Contains(d.authorities.Trusted, a.ID) {
			return ""
		}
		return "it does not trust authority " + short(a.ID) + " yet"
	}
}

// abandoned says why a daemon still needs one of the authorities.
func abandoned(old []setup.Authority) func(reported) string {
	return func(d reported) string {
		for _, a := range old {
			if n := d.authorities.Issued[a.ID]; n > 0 {
				return fmt.Sprintf("it uses %s of authority %s", count(n, "certificate"), short(a.ID))
			}
		}
		return ""
	}
}

func short(id string) string { return id[:min(len(id), 12)] }

// errNoRotation says that there is nothing to finish or abort.
var errNoRotation = errors.New("there is one authority only, so no rotation is under way; begin one with \"sif ca rotate\"")

// writeBundle writes the authorities that are trusted to a file, for clients.
func writeBundle(path string, set setup.AuthoritySet) error {
	if err := os.WriteFile(path, set.Bundle(), 0o644); err != nil {
		return fmt.Errorf("writing the authorities: %w", err)
	}
	return nil
}
