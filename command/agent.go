// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"

	"github.com/sif-project/sif/agent"
)

// AgentCommand is sif agent, the daemon of a workload node.
type AgentCommand struct{ configured }

// Synopsis implements cli.Command.
func (c *AgentCommand) Synopsis() string { return "Run the policy agent of a workload node" }

func (c *AgentCommand) usage() string {
	return `
Usage: sif agent [options]

  Runs the policy agent of a workload node. The agent installs the CNI plugin
  and attaches workloads to the fabric on its behalf: it loads eBPF programs for
  each endpoint, requests connectivity from the engines of its zone, and answers
  DNS queries: for names under .sif, and for those outside names that contracts
  of the asking service name. It must run as root.

  SIGINT and SIGTERM stop the agent. Policy stays enforced while it is stopped,
  and the next start takes it over. SIGHUP reloads the log level.
`
}

func (c *AgentCommand) options() []*flag.FlagSet { return []*flag.FlagSet{c.configOptions()} }

func (c *AgentCommand) run(ctx context.Context, _ []string) error {
	return serveNode(ctx, &c.configured, agent.Start)
}
