// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"flag"
	"fmt"
	"os"

	"github.com/posener/complete"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
)

// variableOptions is the help of the flags that variableFlags defines.
const variableOptions = `
Variable Options:

  -var=<name>=<value>
    Value of a variable of the graph. May be given several times. Values of
    strings, numbers and variables without a type are taken as they are, others
    are expressions: -var 'ports=[80, 443]'.

  -var-file=<path>
    File of values of variables, in HCL, or in JSON if it ends in .json. May be
    given several times; later files override earlier ones, and -var overrides
    files. What neither gives comes from SIF_VAR_<name> in the environment.
`

// variableFlags adds the flags that give values to variables of a graph.
func (m *Meta) variableFlags(flags *flag.FlagSet) {
	flags.Var(&m.vars, "var", "")
	flags.Var(&m.varFiles, "var-file", "")
}

// variablePredictions completes the flags of variableFlags.
func variablePredictions(more complete.Flags) complete.Flags {
	more["-var"] = complete.PredictAnything
	more["-var-file"] = complete.PredictOr(complete.PredictFiles("*.hcl"), complete.PredictFiles("*.json"))
	return more
}

// graphOptions is what variableFlags and the environment say of variables.
func (m *Meta) graphOptions() (hcl.Options, error) {
	o := hcl.Options{Settings: m.vars, Environment: os.Environ()}
	for _, name := range m.varFiles {
		data, err := os.ReadFile(name)
		if err != nil {
			return o, fmt.Errorf("read values of variables: %w", err)
		}
		o.Files = append(o.Files, hcl.Source{Name: name, Data: data})
	}
	return o, nil
}

// loadGraph decodes the graph that lies at paths, or in the current directory
// if there are none, and returns its files too.
func (m *Meta) loadGraph(paths []string) (*fabric.Graph, []hcl.Source, hcl.Diagnostics) {
	if len(paths) == 0 {
		paths = []string{"."}
	}
	o, err := m.graphOptions()
	if err != nil {
		return nil, nil, hcl.Diagnostics{{Severity: hcl.Error, Summary: err.Error()}}
	}
	sources, err := hcl.ReadSources(paths...)
	if err != nil {
		return nil, nil, hcl.Diagnostics{{Severity: hcl.Error, Summary: err.Error()}}
	}
	g, diags := hcl.DecodeGraph(o, sources...)
	return g, sources, diags
}
