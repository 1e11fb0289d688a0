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

// Meta is what commands have in common.
type Meta struct {
	UI cli.Ui

	config            api.Config
	token, vaultToken string // of flags
	json              bool

	vars, varFiles stringList // values of variables, of a graph or a job
}

// controllerOptions is the help of the flags that controllerFlags defines.
const controllerOptions = `
Controller Options:

  -address=<addr>
    Address of the controller, https://host:port. Overrides SIF_HTTP_ADDR.
    Default: ` + api.DefaultAddress + `

  -token=<token>
    Consul ACL token of an operator. Overrides SIF_TOKEN and SIF_VAULT_TOKEN,
    which override CONSUL_HTTP_TOKEN.

  -vault-token=<token>
    Vault token of an operator, in the place of one of Consul. Overrides
    SIF_VAULT_TOKEN and SIF_TOKEN. VAULT_TOKEN is used only if there is no other
    token, not even CONSUL_HTTP_TOKEN.

  -ca-file=<path>
    PEM file of the CA that signed the controller's certificate. Overrides
    SIF_CACERT.

  -client-cert=<path>, -client-key=<path>
    PEM files of a client certificate and its key, for mutual TLS. Override
    SIF_CLIENT_CERT and SIF_CLIENT_KEY.
`

// flagSet makes the flags of a command. Errors are for parse to report.
func (m *Meta) flagSet(name string) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	return flags
}

// controllerFlags adds the flags that say where the controller is.
func (m *Meta) controllerFlags(flags *flag.FlagSet) {
	m.config = api.DefaultConfig()
	flags.StringVar(&m.config.Address, "address", m.config.Address, "")
	flags.StringVar(&m.token, "token", "", "")
	flags.StringVar(&m.vaultToken, "vault-token", "", "")
	flags.StringVar(&m.config.CACert, "ca-file", m.config.CACert, "")
	flags.StringVar(&m.config.ClientCert, "client-cert", m.config.ClientCert, "")
	flags.StringVar(&m.config.ClientKey, "client-key", m.config.ClientKey, "")
}

// jsonFlag adds -json.
func (m *Meta) jsonFlag(flags *flag.FlagSet) { flags.BoolVar(&m.json, "json", false, "") }

// parse parses args. If it returns ok false, code is for Run to return.
func (m *Meta) parse(flags *flag.FlagSet, args []string) (code int, ok bool) {
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return cli.RunResultHelp, false
	case err != nil:
		return m.usage(flags.Name(), "%s", err), false
	}
	return 0, true
}

// parseOptions is parse for a command that takes nothing but options.
func (m *Meta) parseOptions(flags *flag.FlagSet, args []string) (code int, ok bool) {
	if code, ok = m.parse(flags, args); ok && flags.NArg() > 0 {
		return m.usage(flags.Name(), "This command takes no arguments, got %q.", flags.Args()), false
	}
	return code, ok
}

// usage reports that a command was called wrongly.
func (m *Meta) usage(command, format string, args ...any) int {
	m.UI.Error(fmt.Sprintf(format, args...))
	m.UI.Error(fmt.Sprintf("Run 'sif %s -h' for its usage.", command))
	return 1
}

// fail reports an error while doing something.
func (m *Meta) fail(doing string, err error) int {
	m.UI.Error(fmt.Sprintf("Error %s: %s", doing, err))
	return 1
}

// client connects to the controller as the flags say.
func (m *Meta) client() (*api.Client, error) {
	switch {
	case m.token != "" && m.vaultToken != "":
		return nil, errors.New("-token and -vault-token exclude each other: the controller is shown one token")
	case m.token != "" || m.vaultToken != "": // nothing of the environment counts then
		m.config.Token, m.config.VaultToken = m.token, m.vaultToken
	}
	return api.NewClient(m.config)
}

// diagnose writes diagnostics for people, if there are any.
func (m *Meta) diagnose(diags hcl.Diagnostics) {
	if len(diags) == 0 {
		return
	}
	var b strings.Builder
	_ = diags.WriteText(&b) // a Builder takes everything
	m.UI.Error(strings.TrimSuffix(b.String(), "\n"))
}

// outputJSON writes v for programs.
func (m *Meta) outputJSON(v any) int {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return m.fail("encoding the result", err)
	}
	m.UI.Output(string(data))
	return 0
}

// interruptible returns a context that ends when the user or the system asks
// the process to.
func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
}

// help assembles the help of a command from its parts.
func help(parts ...string) string {
	for i, p := range parts {
		parts[i] = strings.Trim(p, "\n")
	}
	return strings.Join(parts, "\n\n")
}

// controllerPredictions completes the flags of controllerFlags.
func controllerPredictions(more complete.Flags) complete.Flags {
	flags := complete.Flags{
		"-address": complete.PredictAnything, "-token": complete.PredictAnything, "-vault-token": complete.PredictAnything,
		"-ca-file": complete.PredictFiles("*"), "-client-cert": complete.PredictFiles("*"), "-client-key": complete.PredictFiles("*"),
	}
	for name, p := range more {
		flags[name] = p
	}
	return flags
}

// graphPaths completes paths of graphs.
var graphPaths = complete.PredictOr(complete.PredictFiles("*.sif.hcl"), complete.PredictFiles("*.sif.json"), complete.PredictDirs("*"))
