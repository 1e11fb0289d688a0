// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/hashicorp/cli"
	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/hcl"
)

// subcommand is a command as its file declares it. A runner makes a cli.Command of it: the runner
// parses the options, checks the number of arguments, cancels ctx on SIGINT and SIGTERM, and turns
// the error of run into messages and an exit code. A subcommand embeds Meta, which has the UI, the
// client of the controller, the output in JSON, and defaults for the optional methods.
type subcommand interface {
	// Synopsis is one line for the list of commands.
	Synopsis() string
	// usage is the help text above the options, exit codes included.
	usage() string
	// options returns the sections of options, bound to the fields of the command.
	options() []*flag.FlagSet
	// arguments says what may follow the options.
	arguments() arguments
	// run runs the command with its arguments. Its errors begin with what the command was doing:
	// "reading the status: ...".
	run(ctx context.Context, args []string) error
	// failure is the exit code of an error that is not an exitCode.
	failure() exitCode

	init(ui cli.Ui, name string)
}

// arguments says how many arguments a command takes, and how a shell completes them.
type arguments struct {
	min, max int    // max < 0: any number
	words    string // for messages: "one argument: <path>"
	predict  complete.Predictor
}

// Meta is the common part of all commands.
type Meta struct {
	UI   cli.Ui
	name string // without "sif": "graph plan"

	config            api.Config
	token, vaultToken string // of flags
	json              bool
}

func (m *Meta) init(ui cli.Ui, name string) { m.UI, m.name = ui, name }

// Defaults: a command without options and arguments that fails with exit code 1.

func (m *Meta) arguments() arguments {
	return arguments{words: "no arguments", predict: complete.PredictNothing}
}

func (m *Meta) failure() exitCode { return 1 }

// generalOptions says where the controller is and who calls it.
func (m *Meta) generalOptions() *flag.FlagSet {
	m.config = api.DefaultConfig()
	o := newOptions("General Options")
	o.StringVar(&m.config.Address, "address", m.config.Address,
		"The `address` of the controller, as https://host:port, or those of several, separated by commas. One of them is enough: they tell which one leads. Overrides the SIF_HTTP_ADDR environment variable. Default: "+api.DefaultAddress)
	o.StringVar(&m.token, "token", "",
		"Consul ACL `token` of an operator. Overrides SIF_TOKEN and SIF_VAULT_TOKEN, which override CONSUL_HTTP_TOKEN.")
	o.StringVar(&m.vaultToken, "vault-token", "",
		"Vault `token` of an operator, instead of a Consul ACL token. Overrides SIF_VAULT_TOKEN and SIF_TOKEN. "+
			"VAULT_TOKEN is used only if no other token is set, not even CONSUL_HTTP_TOKEN.")
	o.StringVar(&m.config.CACert, "ca-file", m.config.CACert,
		"The `path` to a PEM file of the CA that signed the controller's certificate. Overrides SIF_CACERT.")
	o.DurationVar(&m.config.Expired, "expired", m.config.Expired,
		"The `time` for which a certificate of the controller is accepted beyond its end, at most 96h. While Vault is away it gets no other. Overrides SIF_EXPIRED. Default: 0")
	o.StringVar(&m.config.TrustDomain, "trust-domain", m.config.TrustDomain,
		"The trust `domain` of the fabric. The controller must have the SPIFFE ID spiffe://<domain>/controller. Overrides SIF_TRUST_DOMAIN. Default: any.")
	o.StringVar(&m.config.ClientCert, "client-cert", m.config.ClientCert,
		"The `path` to a PEM file of a client certificate, for mutual TLS. Requires -client-key. Overrides SIF_CLIENT_CERT.")
	o.StringVar(&m.config.ClientKey, "client-key", m.config.ClientKey,
		"The `path` to a PEM file of the client certificate's private key. Overrides SIF_CLIENT_KEY.")
	return o
}

// jsonOption adds -json to the options of a command.
func (m *Meta) jsonOption(o *flag.FlagSet, usage string) { o.BoolVar(&m.json, "json", false, usage) }

// client returns a client of the controller that generalOptions names.
func (m *Meta) client() (*api.Client, error) {
	if m.token != "" && m.vaultToken != "" {
		return nil, errors.New("reaching the controller: -token and -vault-token exclude each other: a call carries one token")
	}
	if m.token != "" || m.vaultToken != "" { // a flag overrides both tokens of the environment
		m.config.Token, m.config.VaultToken = m.token, m.vaultToken
	}
	client, err := api.NewClient(m.config)
	if err != nil {
		return nil, fmt.Errorf("reaching the controller: %w", err)
	}
	return client, nil
}

// output writes v as JSON if the user asked for it, and text otherwise.
func (m *Meta) output(v any, text func() string) error {
	if !m.json {
		m.UI.Output(strings.TrimSuffix(text(), "\n"))
		return nil
	}
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the result: %w", err)
	}
	m.UI.Output(string(data))
	return nil
}

// diagnose shows diagnostics of files, and returns errReported if there is an error among them.
func (m *Meta) diagnose(diags hcl.Diagnostics) error {
	if len(diags) == 0 {
		return nil
	}
	var b strings.Builder
	_ = diags.WriteText(&b) // writing to a Builder cannot fail
	m.UI.Error(strings.TrimSuffix(b.String(), "\n"))
	if diags.HasErrors() {
		return errReported
	}
	return nil
}

// report shows a message that explains the failure by itself, and returns errReported.
func (m *Meta) report(format string, args ...any) error {
	m.UI.Error(fmt.Sprintf(format, args...))
	return errReported
}

// exitCode is the error of a command that has shown its result and ends with this code.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// Exit codes other than 0 and 1. The help of the commands states them.
const (
	exitUnplaced     exitCode = 2 // sif job run: not all allocations could be placed
	exitChanges      exitCode = 2 // sif graph plan -detailed-exitcode: the graph would change
	exitDegraded     exitCode = 2 // sif status: something is degraded
	exitUnfit        exitCode = 2 // sif doctor: something is wrong on the machine
	exitDisagreement exitCode = 2 // sif explain, matrix, verify: declared and enforced differ
	exitDropped      exitCode = 3 // sif explain: the flow is not allowed

	exitJobChanges exitCode = 1   // sif job plan: allocations would be created or destroyed
	exitPlanFailed exitCode = 255 // sif job plan: any failure
)

// errReported is the error of a command whose messages have been shown.
var errReported = errors.New("reported")

// usageError is the error of a command that was called wrongly.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// runner makes a cli.Command of a subcommand.
type runner struct {
	subcommand
	ui   cli.Ui
	name string
}

func newRunner(ui cli.Ui, name string, c subcommand) *runner {
	c.init(ui, name)
	return &runner{subcommand: c, ui: ui, name: name}
}

// Help implements cli.Command.
func (r *runner) Help() string {
	return strings.Trim(r.usage(), "\n") + helpOfOptions(r.options())
}

// AutocompleteFlags implements cli.CommandAutocomplete.
func (r *runner) AutocompleteFlags() complete.Flags { return predictOptions(r.options()) }

// AutocompleteArgs implements cli.CommandAutocomplete.
func (r *runner) AutocompleteArgs() complete.Predictor { return r.arguments().predict }

// Run implements cli.Command.
func (r *runner) Run(args []string) int {
	flags := mergeOptions(r.options())
	err := flags.Parse(args)
	switch a := r.arguments(); {
	case errors.Is(err, flag.ErrHelp):
		return cli.RunResultHelp
	case err != nil:
		err = usageError{err}
	case flags.NArg() < a.min || a.max >= 0 && flags.NArg() > a.max:
		err = usagef("This command takes %s, got %q.", a.words, flags.Args())
	default:
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		// A second signal ends the process, even where the command does not look at ctx.
		context.AfterFunc(ctx, stop)
		err = r.run(ctx, flags.Args())
	}
	return int(r.exit(err))
}

// exit shows an error, unless that was done, and returns the exit code.
func (r *runner) exit(err error) exitCode {
	var code exitCode
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return code
	case errors.Is(err, errReported):
	case errors.As(err, &usage):
		r.ui.Error(err.Error())
		r.ui.Error(fmt.Sprintf("Run 'sif %s -h' for its usage.", r.name))
	default:
		r.ui.Error("Error " + err.Error())
	}
	return r.failure()
}

// readSource reads the file of a name; "-" is standard input.
func readSource(ctx context.Context, name string) (hcl.Source, error) {
	if name != "-" {
		data, err := os.ReadFile(name)
		return hcl.Source{Name: name, Data: data}, err
	}
	type result struct {
		data []byte
		err  error
	}
	read := make(chan result, 1)
	go func() {
		data, err := io.ReadAll(os.Stdin)
		read <- result{data, err}
	}()
	select {
	case <-ctx.Done(): // a read of a terminal cannot be cancelled: it is left behind
		return hcl.Source{}, ctx.Err()
	case r := <-read:
		return hcl.Source{Name: "<stdin>", Data: r.data}, r.err
	}
}
