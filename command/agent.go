// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"github.com/sif-project/sif/agent"
	"github.com/sif-project/sif/internal/config"
)

// AgentCommand is `sif agent`: the daemon of a workload node.
type AgentCommand struct{ Meta }

// Synopsis implements cli.Command.
func (c *AgentCommand) Synopsis() string { return "Run the policy agent of a workload node" }

// Help implements cli.Command.
func (c *AgentCommand) Help() string {
	return help(`
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
	return c.runConfigured(c.flagSet("agent"), config.RoleAgent, args, onNode(agent.Start))
}
