// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"strings"

	"github.com/sif-project/sif/api"
)

// KeyRetireCommand is sif key retire.
type KeyRetireCommand struct{ keyCommand }

// Synopsis implements cli.Command.
func (c *KeyRetireCommand) Synopsis() string {
	return "End the older versions of the fabric's keys after a rotation"
}

func (c *KeyRetireCommand) usage() string {
	return `
Usage: sif key retire [options]

  Ends the versions of the fabric's two keys that are older than the ones that
  sign: nothing that they signed counts any more. It cannot be undone.

  The leading controller has everything in force signed again as soon as another
  version signs, and nodes renew their admissions. The command waits until no
  daemon holds anything that an older version signed, and no token of an
  application lives that one signed, which takes some minutes; then it ends
  them, and waits until no daemon accepts them.

  The command can be stopped at any time, and run again to go on.

  A node that is away meanwhile (-without) comes back by itself: it gets what it
  needs anew from Vault and the controllers.

  VAULT_ADDR names Vault; the token is VAULT_TOKEN or that of vault login, and
  must be allowed to read the two keys, and to update "config" under each.
`
}

func (c *KeyRetireCommand) options() []*flag.FlagSet {
	o := newOptions("Retire Options")
	c.jsonOption(o, "Print the keys in JSON at the end. No approval is asked for.")
	c.rotationOptions(o, true)
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *KeyRetireCommand) run(ctx context.Context, _ []string) error {
	keys, client, err := c.open(ctx)
	if err != nil {
		return err
	}
	var old []*fabricKey
	var texts []string
	for _, k := range keys {
		if len(k.older()) > 0 {
			old = append(old, k)
			texts = append(texts, fmt.Sprintf("%s below %d", k, k.signs()))
		}
	}
	if len(old) == 0 {
		return fmt.Errorf("retiring the older keys: %w", errNoOlder)
	}
	if err := c.ask(fmt.Sprintf("End the versions of %s, when nothing needs them? It cannot be undone.", strings.Join(texts, " and of "))); err != nil {
		return err
	}
	for _, k := range old {
		if err := c.retire(ctx, k, client); err != nil {
			return fmt.Errorf("retiring the older keys: %w", err)
		}
	}
	return c.show(ctx, keys, client, "")
}

// retire ends the older versions of a key.
func (c *KeyRetireCommand) retire(ctx context.Context, k *fabricKey, client *api.Client) error {
	signs := k.signs()
	if k.key.Pinned == 0 {
		if err := k.Pin(ctx, signs); err != nil {
			return err
		}
	}
	var ids []string
	for _, v := range k.tokens {
		if v.Number < signs {
			ids = append(ids, v.ID)
		}
	}
	for what, why := range map[string]func(reported) string{"known": k.knows(signs), "in use": k.signing(signs)} {
		if err := c.await(ctx, client, fmt.Sprintf("version %d of %s is %s", signs, k, what), why); err != nil {
			return err
		}
	}
	if err := c.await(ctx, client, fmt.Sprintf("what versions of %s below %d signed is replaced", k, signs), k.released(signs)); err != nil {
		return err
	}
	if err := k.Retire(ctx, signs); err != nil {
		return err
	}
	c.say("%s: versions below %d are retired", k, signs)
	return c.await(ctx, client, fmt.Sprintf("versions of %s below %d are refused", k, signs), k.retired(signs, ids))
}
