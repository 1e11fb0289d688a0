// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/setup"
)

// CAStatusCommand is sif ca status.
type CAStatusCommand struct {
	authorityCommand
	bundle string
}

// Synopsis implements cli.Command.
func (c *CAStatusCommand) Synopsis() string {
	return "Show the fabric's authorities, and who trusts them"
}

func (c *CAStatusCommand) usage() string {
	return `
Usage: sif ca status [options]

  Shows the authorities that issue the fabric's certificates: which one issues
  new ones, by how many daemons each is trusted, and how many certificates of
  each are in use. It names the daemons of which that is not known, or that do
  not trust all of them.

  VAULT_ADDR names Vault; the token is VAULT_TOKEN or that of vault login, and
  must be allowed to read the PKI mount and the settings.
`
}

func (c *CAStatusCommand) options() []*flag.FlagSet {
	o := newOptions("Status Options")
	c.jsonOption(o, "Print the authorities in JSON.")
	o.StringVar(&c.bundle, "bundle", "", "Write the certificates of all that are trusted to this `file`, in PEM, as SIF_CACERT needs them.")
	c.rotationOptions(o, false)
	return []*flag.FlagSet{c.generalOptions(), o}
}

// caStatus is the result in JSON.
type caStatus struct {
	Authorities []caAuthority `json:"authorities"`
	Lacking     []string      `json:"lacking,omitempty"` // a sentence for each daemon that does not trust all of them, or did not report
	Daemons     int           `json:"daemons"`
}

type caAuthority struct {
	setup.Authority
	State   string `json:"state"` // current, next, old, trusted, ended
	Trusted int    `json:"trusted"`
	InUse   int    `json:"inUse"`
}

func (c *CAStatusCommand) run(ctx context.Context, _ []string) error {
	_, set, client, err := c.open(ctx)
	if err != nil {
		return err
	}
	if c.bundle != "" {
		if err := writeBundle(c.bundle, set); err != nil {
			return err
		}
	}
	s, err := c.look(ctx, set, client)
	if err != nil {
		return err
	}
	return c.output(s, func() string { return formatAuthorities(s) })
}

// look reads what the daemons say of the authorities.
func (c *authorityCommand) look(ctx context.Context, set setup.AuthoritySet, client *api.Client) (caStatus, error) {
	daemons, err := c.daemons(ctx, client)
	if err != nil {
		return caStatus{}, err
	}
	s := caStatus{Daemons: len(daemons)}
	next, hasNext := set.Next()
	old := map[string]bool{}
	for _, a := range set.Old() {
		old[a.Issuer] = true
	}
	for _, a := range set {
		x := caAuthority{Authority: a, State: "trusted"}
		switch {
		case a.Ended:
			x.State = "ended"
		case a.Current:
			x.State = "current"
		case hasNext && a.Issuer == next.Issuer:
			x.State = "next"
		case old[a.Issuer]:
			x.State = "old"
		}
		for _, d := range daemons {
			if trusts(a)(d) == "" {
				x.Trusted++
			}
			x.InUse += d.authorities.Issued[a.ID]
		}
		s.Authorities = append(s.Authorities, x)
	}
	s.Lacking = lacking(daemons, func(of reported) string {
		for _, a := range set {
			if why := trusts(a)(of); why != "" && !a.Ended {
				return why
			}
		}
		return ""
	})
	return s, nil
}

func formatAuthorities(s caStatus) string {
	var b strings.Builder
	rows := [][]string{{"Authority", "Name", "State", "Signed by", "Until", "Trusted by", "Certificates"}}
	for _, a := range s.Authorities {
		by := "itself"
		if a.Outside {
			by = "an outside authority"
		}
		rows = append(rows, []string{short(a.ID), cmp.Or(a.Name, "-"), a.State, by, a.Until.Format(time.DateOnly), fmt.Sprintf("%d of %d", a.Trusted, s.Daemons), fmt.Sprint(a.InUse)})
	}
	table(&b, rows)
	if len(s.Lacking) > 0 {
		b.WriteString("\nNot all is known and trusted everywhere:" + someOf(s.Lacking) + "\n")
	}
	return b.String()
}
