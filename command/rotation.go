// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
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
	o.StringVar(&c.without, "without", "", "`Nodes`, as zone/node,..., whose daemons are not waited for, because they are away, and controllers, as host:port.")
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

	agent      bool
	controller bool
	signs      int                      // of a controller: api.ControllerStatus.Signs
	tokens     map[string]time.Duration // likewise
}

// reportedBy returns what a controller says of itself.
func reportedBy(s api.ControllerStatus) reported {
	r := reported{who: "controller " + s.Address, controller: true, signs: s.Signs, tokens: s.Tokens}
	switch {
	case s.Away != "":
		r.silent = "it does not answer: " + s.Away
	case s.Authorities == nil:
		r.silent = "it is of an older version, which does not report authorities"
	default:
		r.authorities = *s.Authorities
	}
	return r
}

// daemons reads what all daemons report, without the nodes that are not waited for.
func (c *rotation) daemons(ctx context.Context, client *api.Client) ([]reported, error) {
	s, err := client.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the status: %w", err)
	}
	without := strings.Split(c.without, ",")
	var list []reported
	for _, of := range append([]api.ControllerStatus{s.Controller}, s.Controllers...) {
		if !slices.Contains(without, of.Address) {
			list = append(list, reportedBy(of))
		}
	}
	for _, n := range s.Nodes {
		if slices.Contains(without, n.ID().String()) {
			continue
		}
		r := reported{who: fmt.Sprintf("%s (%s)", n.ID(), n.Daemon()), agent: n.Kind == fabric.KindWorkload}
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
func lacking(list []reported, why func(reported) string) []string {
	var lack []string
	for _, r := range list {
		reason := r.silent
		if reason == "" {
			reason = why(r)
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
func (c *rotation) await(ctx context.Context, client *api.Client, what string, why func(reported) string) error {
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
