// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/wellknown"
)

const (
	// watchInterval is how often the daemons' reports are read while a command waits for them.
	watchInterval = 2 * time.Second
	// watchTimeout is how long a command waits unless an option says otherwise: longer than a
	// certificate lives that an application holds without asking again (fabric.MaxSVIDLife).
	watchTimeout = 90 * time.Minute
	// reportAge is how old the report of a daemon may be to count.
	reportAge = 30 * time.Second
)

// rotation is what the commands that rotate the fabric's authority or key have in common: the
// fabric's settings in Vault, and the daemons' reports at the controller.
type rotation struct {
	Meta
	mount    string
	without  string
	timeout  time.Duration
	approved bool
}

// rotationOptions are options of all of them; writes is false for those that only read.
func (c *rotation) rotationOptions(o *flag.FlagSet, writes bool) {
	o.StringVar(&c.mount, "settings-mount", settingsMount(), "The `mount` in Vault of the fabric's settings. Overrides "+envSettingsMount+". Default: "+wellknown.SettingsMount)
	if !writes {
		return
	}
	o.BoolVar(&c.approved, "auto-approve", false, "Write without asking.")
	o.StringVar(&c.without, "without", "", "`Nodes`, as zone/node,..., whose daemons are not waited for, because they are away for good. "+
		"They must join again if they come back.")
	o.DurationVar(&c.timeout, "timeout", watchTimeout, "How `long` to wait for the daemons. What was done stays, and the same command goes on from there. Default: 1h30m")
}

// ask asks for approval, if people are there.
func (c *rotation) ask(question string) error {
	if c.json || c.approved || !interactive() {
		return nil
	}
	return c.confirm(question)
}

// reported is a daemon and what it says.
type reported struct {
	who         string
	silent      string // why its report does not count; empty: it does
	authorities api.AuthorityStatus
}

// daemons reads what all daemons report, without the nodes that are not waited for.
func (c *rotation) daemons(ctx context.Context, client *api.Client) ([]reported, error) {
	s, err := client.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the status: %w", err)
	}
	list := []reported{{who: "the controller"}}
	if s.Controller.Authorities == nil {
		list[0].silent = "it is of an older version, which does not report authorities"
	} else {
		list[0].authorities = *s.Controller.Authorities
	}
	without := strings.Split(c.without, ",")
	for _, n := range s.Nodes {
		if slices.Contains(without, n.ID().String()) {
			continue
		}
		r := reported{who: fmt.Sprintf("%s (%s)", n.ID(), n.Kind)}
		switch age := time.Since(n.Reported); {
		case n.Reported.IsZero():
			r.who, r.silent = n.ID().String(), "it has not reported since the controller started"
		case age > reportAge:
			r.silent = fmt.Sprintf("it last reported %s ago", brief(age))
		case n.Authorities == nil:
			r.silent = "it is of an older version, which does not report authorities"
		default:
			r.authorities = *n.Authorities
		}
		list = append(list, r)
	}
	return list, nil
}

// lacking lists, of those daemons for which why returns a reason, the reasons.
func lacking(list []reported, why func(api.AuthorityStatus) string) []string {
	var lack []string
	for _, r := range list {
		reason := r.silent
		if reason == "" {
			reason = why(r.authorities)
		}
		if reason != "" {
			lack = append(lack, r.who+": "+reason)
		}
	}
	return lack
}

// maxLacking is how many daemons a message lists.
const maxLacking = 10

func someOf(lack []string) string {
	if len(lack) > maxLacking {
		lack = append(slices.Clone(lack[:maxLacking]), fmt.Sprintf("and %d more", len(lack)-maxLacking))
	}
	return "\n  " + strings.Join(lack, "\n  ")
}

// await waits until no daemon lacks anything.
func (c *rotation) await(ctx context.Context, client *api.Client, what string, why func(api.AuthorityStatus) string) error {
	began, said := time.Now(), -1
	for {
		list, err := c.daemons(ctx, client)
		var lack []string
		if err != nil {
			lack = []string{err.Error()} // a controller that changes its certificate, or restarts
		} else {
			lack = lacking(list, why)
		}
		if len(lack) == 0 {
			c.say("%s: all %d daemons", what, len(list))
			return nil
		}
		if len(lack) != said {
			said = len(lack)
			c.say("%s: waiting for %d:%s", what, said, someOf(lack))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: stopped while waiting for:%s\nWhat was done stays; the same command goes on from here", what, someOf(lack))
		case <-time.After(watchInterval):
		}
		if time.Since(began) > c.timeout {
			return fmt.Errorf("%s: not within %s:%s\nWhat was done stays; the same command goes on from here, and -without leaves out nodes that are away for good", what, c.timeout, someOf(lack))
		}
	}
}

// say shows progress to people.
func (c *rotation) say(format string, args ...any) {
	if !c.json {
		c.UI.Output(fmt.Sprintf(format, args...))
	}
}

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
func trusts(a setup.Authority) func(api.AuthorityStatus) string {
	return func(s api.AuthorityStatus) string {
		if slices.Contains(s.Trusted, a.ID) {
			return ""
		}
		return "it does not trust authority " + short(a.ID) + " yet"
	}
}

// abandoned says why a daemon still needs one of the authorities.
func abandoned(old []setup.Authority) func(api.AuthorityStatus) string {
	return func(s api.AuthorityStatus) string {
		for _, a := range old {
			if n := s.Issued[a.ID]; n > 0 {
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
