// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/wellknown"
)

// joinTTL is the life of a join token, unless an option names another.
const joinTTL = 15 * time.Minute

// NodeCreateCommand is sif node create.
type NodeCreateCommand struct {
	Meta
	mount, zone, kinds, nomadNode string
	bind                          stringList
	ttl                           time.Duration
	poolPrefix                    int
	again                         bool
}

// Synopsis implements cli.Command.
func (c *NodeCreateCommand) Synopsis() string { return "Create a node, and a token for it to join" }

func (c *NodeCreateCommand) usage() string {
	return `
Usage: sif node create [options] <node>

  Makes the credential of a machine in Vault, and prints a token with which the
  machine joins the fabric: sif node join TOKEN. The token can be used once, for
  15 minutes. Whoever has it can join in place of the machine: it is a secret.

  Only Vault is needed: VAULT_ADDR and VAULT_TOKEN, of an operator, or the token
  of vault login. The token needs Vault's policy sif-operator. sif setup comes
  first.
`
}

func (c *NodeCreateCommand) options() []*flag.FlagSet {
	o := newOptions("Create Options")
	o.StringVar(&c.zone, "zone", "", "The `zone` of the node. Required.")
	o.StringVar(&c.kinds, "kind", "", "What the node is for: controller, processor, workload, or several of them with commas: `kind`. Required.")
	o.StringVar(&c.nomadNode, "nomad-node", "", "The `ID` of the Nomad node that the machine must be. Default: the one whose agent runs there")
	o.Var(&c.bind, "bind-cidr", "A `prefix`, such as 10.0.0.11/32, from which alone the machine may log in to Vault. May be given several times. Default: any")
	o.DurationVar(&c.ttl, "ttl", joinTTL, "For `how` long the token can be used. Default: 15m")
	o.IntVar(&c.poolPrefix, "pool-prefix", 0, fmt.Sprintf("How many `bits` the prefix of the node's IPv4 pool gets, %d to %d: with 20 it can have 4,093 endpoints. "+
		"A node that has a pool keeps it until it is removed. Default: what the controller's configuration says", fabric.LargestNodePrefix, fabric.SmallestNodePrefix))
	o.BoolVar(&c.again, "again", false, "The node exists: make a new token, and end the credential that the machine has.")
	o.StringVar(&c.mount, "settings-mount", settingsMount(), "The `mount` in Vault of the fabric's settings. Overrides "+envSettingsMount+". Default: "+wellknown.SettingsMount)
	c.jsonOption(o, "Print the token in JSON.")
	return []*flag.FlagSet{o}
}

// settingsMount is the default of -settings-mount.
func settingsMount() string { return cmp.Or(os.Getenv(envSettingsMount), wellknown.SettingsMount) }

func (c *NodeCreateCommand) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: <node>", predict: complete.PredictAnything}
}

func (c *NodeCreateCommand) run(ctx context.Context, args []string) error {
	m := setup.Machine{ID: fabric.NodeID{Zone: c.zone, Name: args[0]}, NomadNode: c.nomadNode, BoundTo: c.bind, Again: c.again, NodePrefix: c.poolPrefix}
	for k := range strings.SplitSeq(c.kinds, ",") {
		if k = strings.TrimSpace(k); k != "" {
			m.Kinds = append(m.Kinds, join.Kind(k))
		}
	}
	if c.zone == "" || c.kinds == "" {
		return usagef("-zone and -kind are required.")
	}
	if err := m.Check(); err != nil {
		return usagef("%v", err)
	}
	if c.ttl < time.Second || c.ttl > 24*time.Hour {
		return usagef("-ttl: %s is outside 1s to 24h", c.ttl)
	}
	vault, err := operatorsVault()
	if err != nil {
		return fmt.Errorf("creating node %s: %w", m.ID, err)
	}
	settings, err := setup.Stored(ctx, vault, c.mount)
	if err != nil {
		return fmt.Errorf("creating node %s: %w", m.ID, err)
	}
	grant, err := setup.CreateNode(ctx, vault, settings, m)
	if errors.Is(err, setup.ErrExists) {
		return fmt.Errorf("creating it: %w", err)
	}
	var token join.Token
	if err == nil {
		token, err = setup.Wrap(ctx, vault, grant, c.ttl)
	}
	if err != nil {
		return fmt.Errorf("creating it: %w\nWhen the cause is mended, run the command again with -again", err)
	}
	expires := time.Now().Add(c.ttl).Truncate(time.Second)
	result := struct {
		Node    fabric.NodeID `json:"node"`
		Kinds   []join.Kind   `json:"kinds"`
		Fabric  string        `json:"fabric"`
		Token   string        `json:"token"`
		Expires time.Time     `json:"expires"`
	}{m.ID, m.Kinds, settings.Fabric, token.String(), expires}
	return c.output(result, func() string {
		return fmt.Sprintf("Node %s of fabric %q is created. On the machine, once, before %s:\n\n    sif node join %s",
			m.ID, settings.Fabric, expires.Format(time.TimeOnly), token)
	})
}
