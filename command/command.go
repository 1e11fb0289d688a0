// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package command is the sif command line, one file per command. A command reads options, calls the
// packages that do the work, and writes the result for people or, with -json, for programs. It
// makes no decisions about the fabric.
//
// Exit codes are 0 for success and 1 for failure unless the help of a command says more, and 127
// for a command that does not exist. Results go to standard output, everything else to standard
// error.
package command

import (
	"os"
	"strings"

	"github.com/hashicorp/cli"

	"github.com/sif-project/sif/internal/version"
)

// Run runs the command that args name, without the name of the program, and returns the exit code
// of the process.
func Run(args []string) int {
	ui := &cli.ConcurrentUi{Ui: &cli.BasicUi{Reader: os.Stdin, Writer: os.Stdout, ErrorWriter: os.Stderr}}
	c := cli.NewCLI("sif", "sif v"+version.Version)
	c.Args = args
	c.Commands = commands(ui)
	c.HelpWriter = os.Stdout
	c.ErrorWriter = os.Stderr
	code, err := c.Run()
	if err != nil {
		ui.Error("sif: " + err.Error())
		return 1
	}
	return code
}

// commands returns all commands by their names.
func commands(ui cli.Ui) map[string]cli.CommandFactory {
	factories := map[string]cli.CommandFactory{
		"audit": func() (cli.Command, error) { return group{"Read the audit log", auditUsage}, nil },
		"ca": func() (cli.Command, error) {
			return group{"Rotate the authority that issues certificates", caUsage}, nil
		},
		"endpoint": func() (cli.Command, error) { return group{"Show the endpoints of the fabric", endpointUsage}, nil },
		"graph":    func() (cli.Command, error) { return group{"Manage service graphs", graphUsage}, nil },
		"job":      func() (cli.Command, error) { return group{"Run Nomad jobs with connectivity stanzas", jobUsage}, nil },
		"key":      func() (cli.Command, error) { return group{"Rotate the keys that sign", keyUsage}, nil },
		"node":     func() (cli.Command, error) { return group{"Manage the nodes of the fabric", nodeUsage}, nil },
		"revoke":   func() (cli.Command, error) { return group{"Take rights away, at once", revokeUsage}, nil },
	}
	for name, c := range map[string]subcommand{
		"agent":              &AgentCommand{},
		"attach":             &AttachCommand{},
		"audit list":         &AuditListCommand{},
		"audit verify":       &AuditVerifyCommand{},
		"ca abort":           &CAAbortCommand{},
		"ca finish":          &CAFinishCommand{},
		"ca rotate":          &CARotateCommand{},
		"ca status":          &CAStatusCommand{},
		"cert":               &CertCommand{},
		"controller":         &ControllerCommand{},
		"detach":             &DetachCommand{},
		"doctor":             &DoctorCommand{},
		"endpoint list":      &EndpointListCommand{},
		"endpoint show":      &EndpointShowCommand{},
		"engine":             &EngineCommand{},
		"explain":            &ExplainCommand{},
		"flows":              &FlowsCommand{},
		"graph apply":        &GraphApplyCommand{},
		"graph diff":         &GraphDiffCommand{},
		"graph fmt":          &GraphFmtCommand{},
		"graph history":      &GraphHistoryCommand{},
		"graph init":         &GraphInitCommand{},
		"graph plan":         &GraphPlanCommand{},
		"graph rollback":     &GraphRollbackCommand{},
		"graph show":         &GraphShowCommand{},
		"graph validate":     &GraphValidateCommand{},
		"job plan":           &JobPlanCommand{},
		"job run":            &JobRunCommand{},
		"job validate":       &JobValidateCommand{},
		"key abort":          &KeyAbortCommand{},
		"key retire":         &KeyRetireCommand{},
		"key rotate":         &KeyRotateCommand{},
		"key status":         &KeyStatusCommand{},
		"link":               &LinkCommand{},
		"link list":          &LinkListCommand{},
		"link show":          &LinkShowCommand{},
		"matrix":             &MatrixCommand{},
		"node bind":          &NodeBindCommand{},
		"node create":        &NodeCreateCommand{},
		"node drain":         &NodeDrainCommand{},
		"node firewall":      &NodeFirewallCommand{},
		"node join":          &NodeJoinCommand{},
		"node leave":         &NodeLeaveCommand{},
		"node list":          &NodeListCommand{},
		"node remove":        &NodeRemoveCommand{},
		"node status":        &NodeStatusCommand{},
		"reinstate":          &ReinstateCommand{},
		"revoke certificate": &RevokeCertificateCommand{},
		"revoke endpoint":    &RevokeEndpointCommand{},
		"revoke list":        &RevokeListCommand{},
		"revoke node":        &RevokeNodeCommand{},
		"revoke service":     &RevokeServiceCommand{},
		"run":                &RunCommand{},
		"setup":              &SetupCommand{},
		"status":             &StatusCommand{},
		"verify":             &VerifyCommand{},
		"version":            &VersionCommand{},
	} {
		r := newRunner(ui, name, c)
		factories[name] = func() (cli.Command, error) { return r, nil }
	}
	return factories
}

// group is a command that only has subcommands.
type group struct{ synopsis, usage string }

func (g group) Synopsis() string { return g.synopsis }
func (g group) Help() string     { return strings.TrimSpace(g.usage) }
func (g group) Run([]string) int { return cli.RunResultHelp }

const auditUsage = `
Usage: sif audit <subcommand> [options] [args]

  This command groups subcommands for the audit log: who asked the controllers
  for which change, and what became of it.

  List what was refused since yesterday:

      $ sif audit list -refused -since=24h

  Verify that no record is missing or was changed:

      $ sif audit verify

  See the help of each subcommand for its options.
`

const keyUsage = `
Usage: sif key <subcommand> [options] [args]

  This command groups subcommands for the fabric's keys in Vault: the one that
  signs revisions, admissions, node records and revocations, and the one that
  signs tokens of applications.

  Show their versions, and which daemons know them:

      $ sif key status

  Have new ones sign, while everything runs, and end the older ones afterwards:

      $ sif key rotate
      $ sif key retire

  Or go back:

      $ sif key abort

  See the help of each subcommand for its options.
`

const caUsage = `
Usage: sif ca <subcommand> [options] [args]

  This command groups subcommands for the authorities that issue the fabric's
  certificates.

  Show them, and which daemons trust them:

      $ sif ca status

  Replace the one in use, while everything runs, and end it afterwards:

      $ sif ca rotate
      $ sif ca finish

  Or go back:

      $ sif ca abort

  See the help of each subcommand for its options.
`

const endpointUsage = `
Usage: sif endpoint <subcommand> [options] [args]

  This command groups subcommands for endpoints: the running instances of
  services, be they allocations of Nomad, virtual machines, or workloads that
  were attached.

  List them:

      $ sif endpoint list -service=shop/db

  Show one of them:

      $ sif endpoint show 4a2f

  List what is attached on this machine from outside Nomad:

      $ sif endpoint list -local

  See the help of each subcommand for its options.
`

const graphUsage = `
Usage: sif graph <subcommand> [options] [args]

  This command groups subcommands for service graphs. A service graph declares
  services, and the contracts that allow them to communicate. It is written in
  files named *.sif.hcl; a file holds one domain or several.

  Draft a graph of what Nomad runs today, in audit mode:

      $ sif graph init -from=nomad -o shop.sif.hcl

  Check the files of a graph, without a controller:

      $ sif graph validate ./graphs

  Show what applying them would change:

      $ sif graph plan -out=plan.json ./graphs

  Apply exactly that plan:

      $ sif graph apply -message="open the news API" plan.json

  Show the graph in force, compare revisions, and go back to one:

      $ sif graph show
      $ sif graph history
      $ sif graph diff 6 7
      $ sif graph rollback 6

  See the help of each subcommand for its options.
`

const jobUsage = `
Usage: sif job <subcommand> [options] [args]

  This command groups subcommands for Nomad jobs whose groups have a
  connectivity stanza. They rewrite the stanza as a plain Nomad network and
  metadata, and submit the job to Nomad.

  Check a job file:

      $ sif job validate web.nomad.hcl

  Show what running it would change:

      $ sif job plan web.nomad.hcl

  Run it:

      $ sif job run web.nomad.hcl

  Nomad's own environment variables, such as NOMAD_ADDR and NOMAD_TOKEN, apply.
  See the help of each subcommand for its options.
`

const nodeUsage = `
Usage: sif node <subcommand> [options] [args]

  This command groups subcommands for the nodes of the fabric.

  Let the machine that it runs on join, with a token of sif node create:

      $ sif node join -

  List them:

      $ sif node list

  Show what one of them enforces, and what is degraded:

      $ sif node status aws1/aws1-w2

  Say that a node's Nomad client was set up again, with another ID:

      $ sif node bind aws1/aws1-w2

  Show what listens on this machine, and close what need not be open:

      $ sif node firewall enforce

  Take the fabric off the machine that it runs on:

      $ sif node leave -dry-run

  Remove one that is gone, or that must not take part any more:

      $ sif node remove -message="stolen" aws1/aws1-w2

  See the help of each subcommand for its options.
`

const revokeUsage = `
Usage: sif revoke <subcommand> [options] [args]

  This command groups subcommands that take rights away: of a node, of a
  service, of one endpoint or of one certificate. A revocation is part of a
  signed list that every daemon keeps on disk. It is enforced within two
  seconds, on connections that are open too, and comes to the daemons while
  Consul is away. It cannot be signed while Vault is away.

  A machine was stolen:

      $ sif revoke node -reason="stolen" aws1/aws1-w2

  A service, or one endpoint of it, must not speak to anybody:

      $ sif revoke service -reason="compromised" shop/web
      $ sif revoke endpoint 4a2f

  A certificate with its key leaked:

      $ sif revoke certificate 39:dd:2e:90:b7:23:1f:8d

  Show what is revoked, and take that of a service or an endpoint back:

      $ sif revoke list
      $ sif reinstate service shop/web

  See the help of each subcommand for its options.
`
