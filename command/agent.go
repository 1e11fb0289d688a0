// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"strings"

	"github.com/hashicorp/cli"
	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/agent"
	"github.com/sif-project/sif/internal/config"
)

// AgentCommand is `sif agent`: the daemon of a workload node.
type AgentCommand struct{ UI cli.Ui }

// Synopsis implements cli.Command.
func (c *AgentCommand) Synopsis() string { return "Run the policy agent of a workload node" }

// Help implements cli.Command.
func (c *AgentCommand) Help() string {
	return strings.TrimSpace(`
Usage: sif agent [options]

  Runs the policy agent of a workload node. It attaches workloads to the fabric
  on behalf of the CNI plugin, which it installs, programs eBPF for each of
  them, requests their connectivity from the engines of its zone and answers
  their DNS questions. It needs root.

  SIGINT and SIGTERM stop it; what it enforces stays enforced, and the next
  start takes it over. SIGHUP rereads the log level.

Options:

  -config=<path>  Configuration file. Default: /etc/sif/agent.hcl
`)
}

// Run implements cli.Command.
func (c *AgentCommand) Run(args []string) int {
	return runDaemon(c.UI, config.RoleAgent, args, func(ctx context.Context, cfg *config.Config, log hclog.Logger) (runner, error) {
		return agent.Start(ctx, cfg, log)
	})
}
