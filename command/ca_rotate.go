// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/setup"
)

// CARotateCommand is sif ca rotate.
type CARotateCommand struct {
	authorityCommand
	csr, signed, bundle string
}

// Synopsis implements cli.Command.
func (c *CARotateCommand) Synopsis() string { return "Have another authority issue the certificates" }

func (c *CARotateCommand) usage() string {
	return `
Usage: sif ca rotate [options]

  Replaces the authority that issues the fabric's certificates, in three steps:

    1. a new one is made in Vault, and every daemon learns to trust it;
    2. when all do, new certificates are from it, and the daemons renew theirs;
    3. when none of the old one is in use, the command ends.

  Both are trusted from then on, until "sif ca finish" ends the old one. Nothing
  is interrupted at any step. All state is in Vault: the command can be stopped
  at any time, and run again to go on; "sif ca abort" goes back.

  With -csr the new authority is signed by one outside Vault, for instance an
  offline root: the command writes the request to a file, and ends. Have it
  signed as the certificate of an authority, and go on with -signed.

  People and programs outside the fabric verify the controller with the file in
  SIF_CACERT. Give them one with both authorities (-bundle) before step 2: the
  command writes it before it goes on.

  VAULT_ADDR names Vault; the token is VAULT_TOKEN or that of vault login, and
  must be an administrator's of the PKI mount.
`
}

func (c *CARotateCommand) options() []*flag.FlagSet {
	o := newOptions("Rotate Options")
	c.jsonOption(o, "Print the authorities in JSON at the end. No approval is asked for.")
	o.StringVar(&c.csr, "csr", "", "Make a key for the new authority in Vault, write the request for its certificate to this `file`, and end.")
	o.StringVar(&c.signed, "signed", "", "The new authority is the one in this `file`, a certificate in PEM that was signed for the request of -csr.")
	o.StringVar(&c.bundle, "bundle", "", "Write the certificates of all authorities that are trusted to this `file`, in PEM, before the new one is used.")
	c.rotationOptions(o, true)
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *CARotateCommand) run(ctx context.Context, _ []string) error {
	if c.csr != "" && c.signed != "" {
		return usagef("-csr and -signed exclude each other.")
	}
	pki, set, _, err := c.open(ctx)
	if err != nil {
		return err
	}
	if (c.csr != "" || c.signed != "") && len(set.Old()) > 0 {
		return fmt.Errorf("rotating the authority: another rotation is under way: end it first with \"sif ca finish\" or \"sif ca abort\"")
	}
	if c.csr != "" {
		return c.request(ctx, pki)
	}
	if set, err = c.next(ctx, pki, set); err != nil {
		return err
	}
	client, err := c.trusting(set)
	if err != nil {
		return err
	}
	if next, ok := set.Next(); ok {
		if set, err = c.use(ctx, pki, set, client, next); err != nil {
			return err
		}
	}
	if err := c.await(ctx, client, "certificates of the new authority are in use", abandoned(set.Old())); err != nil {
		return fmt.Errorf("rotating the authority: %w", err)
	}
	s, err := c.look(ctx, set, client)
	if err != nil {
		return err
	}
	return c.output(s, func() string {
		return formatAuthorities(s) + "\nThe old authority is still trusted. End it, which cannot be undone:\n\n    sif ca finish"
	})
}

// request writes the request for a certificate of a new authority.
func (c *CARotateCommand) request(ctx context.Context, pki setup.PKI) error {
	csr, err := pki.Request(ctx)
	if err != nil {
		return fmt.Errorf("rotating the authority: %w", err)
	}
	if err := os.WriteFile(c.csr, csr, 0o644); err != nil {
		return fmt.Errorf("rotating the authority: write the request: %w", err)
	}
	return c.output(map[string]string{"request": c.csr}, func() string {
		return fmt.Sprintf("The request is in %s. Have it signed as an authority (CA:TRUE, keyCertSign), and go on:\n\n    sif ca rotate -signed=<certificate>", c.csr)
	})
}

// next makes the next authority, if a rotation is not under way.
func (c *CARotateCommand) next(ctx context.Context, pki setup.PKI, set setup.AuthoritySet) (setup.AuthoritySet, error) {
	next, ok := set.Next()
	switch {
	case ok && c.signed != "":
		return nil, fmt.Errorf("rotating the authority: authority %s is the next one already: leave -signed out to go on with it, or use \"sif ca abort\" first", short(next.ID))
	case ok:
		c.say("going on with authority %s", short(next.ID))
		return set, nil
	case len(set.Old()) > 0:
		c.say("going on: authority %s is to be given up", short(set.Old()[0].ID))
		return set, nil
	}
	current, _ := set.Current()
	if err := c.ask(fmt.Sprintf("Replace authority %s (%s)?", short(current.ID), current.Subject)); err != nil {
		return nil, err
	}
	if c.signed == "" {
		if err := pki.Create(ctx, time.Now()); err != nil {
			return nil, fmt.Errorf("rotating the authority: %w", err)
		}
	} else {
		text, err := os.ReadFile(c.signed)
		if err == nil {
			err = pki.Signed(ctx, text, time.Now())
		}
		if err != nil {
			return nil, fmt.Errorf("rotating the authority: the signed certificate: %w", err)
		}
	}
	set, err := pki.Authorities(ctx)
	if err != nil {
		return nil, err
	}
	if next, ok = set.Next(); !ok {
		return nil, fmt.Errorf("rotating the authority: the new authority begins before the current one, %s: have it signed with a later begin", current.From.Format(time.RFC3339))
	}
	c.say("made authority %s (%s)", short(next.ID), next.Subject)
	return set, nil
}

// use has the next authority issue certificates, once everybody trusts it.
func (c *CARotateCommand) use(ctx context.Context, pki setup.PKI, set setup.AuthoritySet, client *api.Client, next setup.Authority) (setup.AuthoritySet, error) {
	if c.bundle != "" {
		if err := writeBundle(c.bundle, set); err != nil {
			return nil, err
		}
	}
	if err := c.await(ctx, client, "the new authority is trusted", trusts(next)); err != nil {
		return nil, fmt.Errorf("rotating the authority: %w", err)
	}
	if err := pki.Use(ctx, next); err != nil {
		return nil, fmt.Errorf("rotating the authority: %w", err)
	}
	c.say("authority %s issues the certificates now", short(next.ID))
	return pki.Authorities(ctx)
}
