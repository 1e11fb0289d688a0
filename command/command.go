// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package command is the sif command line, one command a file. It reads flags,
// calls the packages that do the work, and writes for people or, with -json,
// for programs. It decides nothing.
//
// Exit codes are 0 for success and 1 for failure, unless the help of a command
// says more, and 127 for a command that does not exist. Results go to standard
// output, everything else to standard error.
package command

import (
	"os"
	"strings"

	"github.com/hashicorp/cli"

	"github.com/sif-project/sif/internal/version"
)

// Run runs the command that args name, without the program's name, and returns
// the exit code of the process.
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

// commands lists all commands.
func commands(ui cli.Ui) map[string]cli.CommandFactory {
	list := map[string]cli.Command{
		"agent":          &AgentCommand{Meta{UI: ui}},
		"controller":     &ControllerCommand{Meta{UI: ui}},
		"engine":         &EngineCommand{Meta{UI: ui}},
		"explain":        &ExplainCommand{Meta: Meta{UI: ui}},
		"graph":          group{"Work with service graphs", graphGroupHelp},
		"graph apply":    &GraphApplyCommand{Meta: Meta{UI: ui}},
		"graph diff":     &GraphDiffCommand{Meta: Meta{UI: ui}},
		"graph fmt":      &GraphFmtCommand{Meta: Meta{UI: ui}},
		"graph history":  &GraphHistoryCommand{Meta: Meta{UI: ui}},
		"graph plan":     &GraphPlanCommand{Meta: Meta{UI: ui}},
		"graph rollback": &GraphRollbackCommand{Meta: Meta{UI: ui}},
		"graph show":     &GraphShowCommand{Meta: Meta{UI: ui}},
		"graph validate": &GraphValidateCommand{Meta: Meta{UI: ui}},
		"job":            group{"Work with Nomad jobs that carry connectivity stanzas", jobGroupHelp},
		"job plan":       &JobPlanCommand{jobMeta{Meta: Meta{UI: ui}}},
		"job run":        &JobRunCommand{jobMeta{Meta: Meta{UI: ui}}},
		"job validate":   &JobValidateCommand{jobMeta{Meta: Meta{UI: ui}}},
		"link":           &LinkCommand{Meta{UI: ui}},
		"matrix":         &MatrixCommand{Meta: Meta{UI: ui}},
		"status":         &StatusCommand{Meta: Meta{UI: ui}},
		"verify":         &VerifyCommand{Meta: Meta{UI: ui}},
		"version":        &VersionCommand{UI: ui},
	}
	factories := map[string]cli.CommandFactory{}
	for name, c := range list {
		factories[name] = func() (cli.Command, error) { return c, nil }
	}
	return factories
}

// group is a command that only has subcommands.
type group struct{ synopsis, help string }

func (g group) Synopsis() string { return g.synopsis }
func (g group) Help() string     { return strings.TrimSpace(g.help) }
func (g group) Run([]string) int { return cli.RunResultHelp }

const graphGroupHelp = `
Usage: sif graph <subcommand> [options] [args]

  A service graph declares which services exist and which contracts allow them
  to talk. It is written in files named *.sif.hcl, a domain each or several.

  Check a graph without a fabric:

      $ sif graph validate ./graphs

  See what putting it in force would do:

      $ sif graph plan -out=plan.json ./graphs

  Put it in force, just as planned:

      $ sif graph apply -message="open the news API" plan.json

  See what is in force, what was before, and go back:

      $ sif graph show
      $ sif graph history
      $ sif graph diff 6 7
      $ sif graph rollback 6

  See the help of each subcommand for more.
`

const jobGroupHelp = `
Usage: sif job <subcommand> [options] [args]

  These commands take Nomad jobs whose groups carry a connectivity stanza,
  turn the stanza into what plain Nomad understands, and hand the job to Nomad.

  Check a job:

      $ sif job validate web.nomad.hcl

  See what running it would do:

      $ sif job plan web.nomad.hcl

  Run it:

      $ sif job run web.nomad.hcl

  Nomad is found and authorised by its own environment variables, such as
  NOMAD_ADDR and NOMAD_TOKEN. See the help of each subcommand for more.
`
