// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/mattn/go-isatty"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
)

// graphChange has the options of the commands that change the graph.
type graphChange struct {
	variables
	message          string
	removeDomains    stringList
	removeGuardrails stringList
	removeBindings   stringList
	removeLinks      stringList
}

// options returns the sections of options of a change.
func (c *graphChange) options() []*flag.FlagSet {
	o := newOptions("Change Options")
	o.StringVar(&c.message, "message", "", "A `message` that says why, for the history and the audit log.")
	o.Var(&c.removeDomains, "remove-domain",
		"The `name` of a domain to remove, with its contracts. May be given several times. Without a path, no file is read then.")
	o.Var(&c.removeGuardrails, "remove-guardrail", "The `name` of a guardrail to remove. May be given several times.")
	o.Var(&c.removeBindings, "remove-binding", "The `domain` whose binding to remove, or *. May be given several times.")
	o.Var(&c.removeLinks, "remove-link", "The `name` of a link to remove. May be given several times.")
	return []*flag.FlagSet{o, c.variables.options()}
}

// removals counts what is removed.
func (c *graphChange) removals() int {
	return len(c.removeDomains) + len(c.removeGuardrails) + len(c.removeBindings) + len(c.removeLinks)
}

// given reports whether an option was given that a plan file does not allow.
func (c *graphChange) given() bool {
	return c.removals()+len(c.settings)+len(c.paths) > 0
}

// request reads the graph at paths and returns the change to it. Diagnostics are shown.
func (m *Meta) request(ctx context.Context, c *graphChange, paths []string) (api.GraphRequest, []hcl.Source, error) {
	req := api.GraphRequest{
		Message: c.message, RemoveDomains: c.removeDomains,
		RemoveGuardrails: c.removeGuardrails, RemoveBindings: c.removeBindings, RemoveLinks: c.removeLinks,
	}
	if len(paths) == 0 && c.removals() > 0 {
		return req, nil, nil
	}
	g, sources, diags := loadGraph(ctx, &c.variables, paths)
	if err := m.diagnose(diags); err != nil {
		return req, sources, err
	}
	if len(g.Domains)+len(g.Guardrails)+len(g.Bindings)+len(g.Links) == 0 {
		return req, sources, m.report("The files declare no domain, no guardrail, no binding and no link. Nothing was changed.")
	}
	req.Domains, req.Guardrails, req.Bindings, req.Links, req.Files = g.Domains, g.Guardrails, g.Bindings, g.Links, digest(sources)
	return req, sources, nil
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

// readPlan reads a plan that sif graph plan -out wrote. It returns nil if the file is not a plan or
// cannot be read: the caller reads it as a graph then, which reports its errors.
func readPlan(path string) (*api.Plan, error) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the plan: %w", err)
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
		return nil, fmt.Errorf("reading the plan: decode %s: %w", path, err)
	}
	if err := plan.Check(); err != nil {
		return nil, fmt.Errorf("reading the plan: %s: %w", path, err)
	}
	return plan, nil
}

// refused returns the error of a change that failed. It shows the problems for which the controller
// refused the change, with the lines of the files.
func (m *Meta) refused(doing string, err error, sources []hcl.Source) error {
	var e *api.Error
	if !errors.As(err, &e) || len(e.Details.Problems) == 0 {
		return fmt.Errorf("%s: %w", doing, err)
	}
	m.UI.Error("The controller refused the change: " + e.Message)
	_ = m.diagnose(hcl.FromProblems(e.Details.Problems, sources...))
	return errReported
}

// interactive reports whether standard input is a terminal.
func interactive() bool {
	return isatty.IsTerminal(os.Stdin.Fd())
}

// confirm asks the user whether to go on.
func (m *Meta) confirm(question string) error {
	answer, err := m.UI.Ask(question + "\nOnly 'yes' is accepted:")
	if err != nil || answer != "yes" {
		return m.report("Nothing was changed.")
	}
	return nil
}
