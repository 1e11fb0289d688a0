// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/wellknown"
)

// NodeRemoveCommand is sif node remove.
type NodeRemoveCommand struct {
	Meta
	message  string
	mount    string
	approved bool
}

// Synopsis implements cli.Command.
func (c *NodeRemoveCommand) Synopsis() string { return "Remove a node from the fabric" }

func (c *NodeRemoveCommand) usage() string {
	return `
Usage: sif node remove [options] <zone>/<node>

  Removes a node: within seconds every other node drops its links and its
  endpoints, and its certificates and admissions are refused. The removal is
  signed, and cannot be undone: the machine joins again as a new node, under
  the same name if wanted, with a new key. Delete its data_dir for that.

  Drain it in Nomad first. The token must be an operator's.

  If VAULT_ADDR is set, the command first deletes the machine's credential in
  Vault, with VAULT_TOKEN or the token of vault login, so that the machine gets
  no new certificate. Otherwise, or if that fails, it says what to delete.

  If standard input is a terminal, the command shows what it would remove and
  asks for approval. Otherwise it removes the node without asking.
`
}

func (c *NodeRemoveCommand) options() []*flag.FlagSet {
	o := newOptions("Remove Options")
	o.BoolVar(&c.approved, "auto-approve", false, "Remove the node without asking.")
	c.jsonOption(o, "Print the removal in JSON. No approval is asked for.")
	o.StringVar(&c.message, "message", "", "A `message` that says why, for the list of removed nodes and the audit log.")
	o.StringVar(&c.mount, "settings-mount", settingsMount(), "The `mount` in Vault of the fabric's settings. Overrides "+envSettingsMount+". Default: "+wellknown.SettingsMount)
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *NodeRemoveCommand) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: <zone>/<node>", predict: complete.PredictAnything}
}

func (c *NodeRemoveCommand) run(ctx context.Context, args []string) error {
	id, err := fabric.ParseNodeID(args[0])
	if err != nil {
		return usagef("%v", err)
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	if !c.json && !c.approved && interactive() {
		if err := c.ask(ctx, client, id); err != nil {
			return err
		}
	}
	credential := c.deleteCredential(ctx, id)
	if credential.Why != "" {
		defer func() {
			c.UI.Warn(fmt.Sprintf("Warning: the machine's credential in Vault was not deleted, so it can come back as a new node: %s. Delete it:\n\n    vault delete %s",
				credential.Why, strings.Join(credential.Left, "\n    vault delete ")))
		}()
	}
	removal, err := client.RemoveNode(ctx, id, c.message)
	if err != nil {
		if credential.Deleted {
			return fmt.Errorf("removing node %s: %w\nIts credential in Vault is deleted already, so the machine gets no new certificate; the one that it has goes on until its end unless the node is removed", id, err)
		}
		return fmt.Errorf("removing node %s: %w", id, err)
	}
	return c.output(struct {
		api.Removal
		Credential credentialReply `json:"credential"`
	}{removal, credential}, func() string {
		text := fmt.Sprintf("Node %s is removed, with the admissions of %s.\nIts pools %s and %s rest until %s.",
			id, count(removal.Endpoints, "endpoint"), removal.Tombstone.Pool4, removal.Tombstone.Pool6, removal.Rests.Format(time.RFC3339))
		if credential.Deleted {
			text += "\nIts credential in Vault is deleted."
		}
		if removal.Unstored != "" {
			text += "\nThe controller hands the removal to the nodes, and they to one another; it is not in Consul yet: " + removal.Unstored
		}
		return text
	})
}

// credentialReply says what became of a machine's credential in Vault.
type credentialReply struct {
	Deleted bool     `json:"deleted"`
	Why     string   `json:"why,omitempty"`  // it was not
	Left    []string `json:"left,omitempty"` // paths in Vault
}

// deleteCredential deletes a machine's credential in Vault.
func (c *NodeRemoveCommand) deleteCredential(ctx context.Context, id fabric.NodeID) credentialReply {
	left := func(s join.Settings, why string) credentialReply {
		return credentialReply{Why: why, Left: setup.NodePaths(s, id)}
	}
	s := setup.Defaults(join.Settings{Vault: join.VaultSettings{SettingsMount: c.mount}})
	if os.Getenv(vaultapi.EnvVaultAddress) == "" {
		return left(s, "VAULT_ADDR is not set")
	}
	vault, err := operatorsVault()
	if err != nil {
		return left(s, err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, vaultTimeout)
	defer cancel()
	stored, err := setup.Stored(ctx, vault, c.mount)
	if err != nil {
		return left(s, err.Error())
	}
	if err := setup.RemoveNode(ctx, vault, stored, id); err != nil {
		return left(stored, err.Error())
	}
	return credentialReply{Deleted: true}
}

// ask shows what would be removed and asks for approval. A node that does not exist is refused by
// the removal itself.
func (c *NodeRemoveCommand) ask(ctx context.Context, client *api.Client, id fabric.NodeID) error {
	list, err := client.Nodes(ctx)
	if err != nil {
		return fmt.Errorf("removing node %s: read it: %w", id, err)
	}
	i := slices.IndexFunc(list.Nodes, func(n api.NodeInfo) bool { return n.Node.ID() == id })
	if i < 0 {
		return nil
	}
	n := list.Nodes[i]
	c.UI.Output(fmt.Sprintf("The %s node %s at %s, with %s, would be removed.", n.Node.Kind, id, n.Node.Underlay, count(n.Endpoints, "endpoint")))
	return c.confirm("\nRemove it?")
}
