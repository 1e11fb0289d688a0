// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/posener/complete"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
)

// variables are the values of the variables of a graph or a job.
type variables struct {
	settings stringList // name=value
	paths    stringList
}

// add adds -var and -var-file to the options of a command.
func (v *variables) add(o *flag.FlagSet, varUsage, fileUsage string) {
	o.Var(&v.settings, "var", varUsage)
	o.Var(&v.paths, "var-file", fileUsage)
}

// options returns the options of a command that reads a graph.
func (v *variables) options() *flag.FlagSet {
	o := newOptions("Variable Options")
	v.add(o, "Set a variable of the graph, as `name=value`. May be given several times. Values of strings, numbers and variables "+
		"without a type are literal; other values are HCL expressions: -var 'ports=[80, 443]'.",
		"The `path` to a file with values of variables, in HCL, or in JSON if its name ends in .json. May be given several times: "+
			"later files override earlier ones, and -var overrides files. Both override SIF_VAR_<name> in the environment.")
	return o
}

// files reads the files of values.
func (v *variables) files(ctx context.Context) ([]hcl.Source, error) {
	var files []hcl.Source
	for _, path := range v.paths {
		f, err := readSource(ctx, path)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// graphArguments are the paths of a graph.
var graphArguments = arguments{max: -1, predict: complete.PredictOr(
	complete.PredictFiles("*.sif.hcl"), complete.PredictFiles("*.sif.json"), complete.PredictDirs("*"))}

// loadGraph decodes the graph at paths, or in the current directory if there are none. It also
// returns the files of the graph.
func loadGraph(ctx context.Context, v *variables, paths []string) (*fabric.Graph, []hcl.Source, hcl.Diagnostics) {
	failed := func(err error) (*fabric.Graph, []hcl.Source, hcl.Diagnostics) {
		return nil, nil, hcl.Diagnostics{{Severity: hcl.Error, Summary: err.Error()}}
	}
	files, err := v.files(ctx)
	if err != nil {
		return failed(fmt.Errorf("read values of variables: %w", err))
	}
	if len(paths) == 0 {
		paths = []string{"."}
	}
	sources, err := hcl.ReadSources(paths...)
	if err != nil {
		return failed(err)
	}
	g, diags := hcl.DecodeGraph(hcl.Options{Settings: v.settings, Files: files, Environment: os.Environ()}, sources...)
	return g, sources, diags
}

// summary counts what a graph declares.
func summary(g *fabric.Graph) string {
	services, contracts := 0, 0
	for _, d := range g.Domains {
		services += len(d.Services)
		contracts += len(d.Contracts)
	}
	var parts []string
	if len(g.Domains) > 0 || len(g.Guardrails)+len(g.Bindings)+len(g.Links) == 0 {
		parts = append(parts, count(len(g.Domains), "domain"), count(services, "service"), count(contracts, "contract"))
	}
	if len(g.Guardrails) > 0 {
		parts = append(parts, count(len(g.Guardrails), "guardrail"))
	}
	if len(g.Bindings) > 0 {
		parts = append(parts, count(len(g.Bindings), "binding"))
	}
	if len(g.Links) > 0 {
		parts = append(parts, count(len(g.Links), "link"))
	}
	return strings.Join(parts, ", ")
}

// warnWaiting warns of the contracts of the given domains that wait for another domain's consent.
func (m *Meta) warnWaiting(waiting []fabric.Waiting, domains map[string]*fabric.Domain) {
	for _, w := range waiting {
		if domains[w.Contract.Domain] == nil {
			continue
		}
		for _, service := range w.For {
			m.UI.Warn(fmt.Sprintf("Contract %s is not in force: it waits until domain %q accepts it for %s.", w.Contract, service.Domain, service))
		}
	}
}
