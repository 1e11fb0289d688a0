// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/posener/complete"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
)

// graphChange is what the commands that change the graph have in common.
type graphChange struct {
	message    string
	domains    stringList // to remove
	guardrails stringList // to remove
}

// changeOptions is the help of the flags of graphChange.
const changeOptions = `
Change Options:

  -message=<text>
    Why the graph is changed, for the history and the audit log.

  -remove-domain=<name>
    Take a domain and its contracts out of the graph. May be given several
    times; no file is read then unless a path is given.

  -remove-guardrail=<name>
    Take a guardrail out of the graph. May be given several times.
`

func (c *graphChange) flags(flags *flag.FlagSet) {
	flags.StringVar(&c.message, "message", "", "")
	flags.Var(&c.domains, "remove-domain", "")
	flags.Var(&c.guardrails, "remove-guardrail", "")
}

// changePredictions completes the flags of graphChange.
func changePredictions(more complete.Flags) complete.Flags {
	more["-message"], more["-remove-domain"], more["-remove-guardrail"] = complete.PredictAnything, complete.PredictAnything, complete.PredictAnything
	return more
}

// request reads the graph at paths and returns the change that it makes. If it
// is not ok, everything is said.
func (m *Meta) request(c graphChange, paths []string) (req api.GraphRequest, sources []hcl.Source, ok bool) {
	req = api.GraphRequest{Message: c.message, RemoveDomains: c.domains, RemoveGuardrails: c.guardrails}
	if len(paths) == 0 && len(c.domains)+len(c.guardrails) > 0 {
		return req, nil, true
	}
	g, sources, diags := m.loadGraph(paths)
	m.diagnose(diags)
	if diags.HasErrors() {
		return req, sources, false
	}
	if len(g.Domains)+len(g.Guardrails) == 0 {
		m.UI.Error("The files declare no domain and no guardrail; nothing was done.")
		return req, sources, false
	}
	req.Domains, req.Guardrails, req.Files = g.Domains, g.Guardrails, digest(sources)
	return req, sources, true
}

// digest is the digest of the names and the contents of files.
func digest(sources []hcl.Source) fabric.Hash {
	type file struct {
		Name    string      `json:"name"`
		Content fabric.Hash `json:"content"`
	}
	var files []file
	for _, s := range sources {
		files = append(files, file{s.Name, fabric.HashOf(s.Data)})
	}
	return fabric.NewObject(files).Hash
}

// readPlan reads a plan that sif graph plan -out wrote; nil if the file is
// something else.
func readPlan(path string) (*api.Plan, error) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil, nil // whoever reads graphs reports it
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var mark struct {
		Format *int         `json:"format"`
		Digest *fabric.Hash `json:"digest"`
	}
	if json.Unmarshal(data, &mark) != nil || mark.Format == nil || mark.Digest == nil {
		return nil, nil
	}
	plan := &api.Plan{}
	if err := json.Unmarshal(data, plan); err != nil {
		return nil, fmt.Errorf("decode the plan %s: %w", path, err)
	}
	if err := plan.Check(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return plan, nil
}

// refused reports what the controller refused, with the lines of the files.
// If it is not about the graph, it returns false.
func (m *Meta) refused(err error, sources []hcl.Source) bool {
	var e *api.Error
	if !errors.As(err, &e) || len(e.Details.Problems) == 0 {
		return false
	}
	m.UI.Error("The controller refused the change: " + e.Message)
	m.diagnose(hcl.FromProblems(e.Details.Problems, sources...))
	return true
}

// interactive reports whether a person can be asked.
func interactive() bool {
	_, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS)
	return err == nil
}

// confirm asks whether to go on.
func (m *Meta) confirm(question string) bool {
	answer, err := m.UI.Ask(question + "\nOnly 'yes' is taken for a yes:")
	if err != nil || answer != "yes" {
		m.UI.Error("Nothing was changed.")
		return false
	}
	return true
}
