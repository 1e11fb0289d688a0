// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	hcljson "github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"
)

// JobVariables merges variable files and settings of the form "name=value" into the single text of
// variables that Nomad's parser accepts. As in Nomad, later files override earlier ones, and
// settings override files. A setting is taken literally if the variable is a string, a number or
// has no type; otherwise it is an expression.
func JobVariables(job Source, files []Source, settings []string) (string, Diagnostics) {
	values := map[string]string{} // HCL expressions
	for _, f := range files {
		exprs, diags := variableFile(f)
		if diags.HasErrors() {
			return "", newDiagnostics(diags, f)
		}
		maps.Copy(values, exprs)
	}
	types := variableTypes(job)
	for _, s := range settings {
		name, value, ok := strings.Cut(s, "=")
		name = strings.TrimSpace(name)
		if !ok || !hclsyntax.ValidIdentifier(name) {
			return "", Diagnostics{{Severity: Error, Summary: fmt.Sprintf("-var %q is not of the form name=value", s), Detail: "Write for instance -var 'count=2'."}}
		}
		switch types[name] {
		case "", "string", "number":
			value = string(hclwrite.TokensForValue(cty.StringVal(value)).Bytes())
		default:
			where := "-var " + name
			if _, diags := hclsyntax.ParseExpression([]byte(value), where, hcl2.InitialPos); diags.HasErrors() {
				return "", newDiagnostics(diags, Source{Name: where, Data: []byte(value)})
			}
		}
		values[name] = value
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(&b, "%s = %s\n", name, values[name])
	}
	return b.String(), nil
}

// variableFile returns the expressions in a variable file by name.
func variableFile(f Source) (map[string]string, hcl2.Diagnostics) {
	json := strings.HasSuffix(f.Name, ".json")
	parse := func() (*hcl2.File, hcl2.Diagnostics) { return hclsyntax.ParseConfig(f.Data, f.Name, hcl2.InitialPos) }
	if json {
		parse = func() (*hcl2.File, hcl2.Diagnostics) { return hcljson.Parse(f.Data, f.Name) }
	}
	file, diags := parse()
	if diags.HasErrors() {
		return nil, diags
	}
	attrs, diags := file.Body.JustAttributes()
	if diags.HasErrors() {
		return nil, diags
	}
	values := map[string]string{}
	for name, a := range attrs {
		if !json {
			values[name] = string(a.Expr.Range().SliceBytes(f.Data))
			continue
		}
		v, diags := a.Expr.Value(nil)
		if diags.HasErrors() {
			return nil, diags
		}
		values[name] = string(hclwrite.TokensForValue(v).Bytes())
	}
	return values, nil
}

// variableTypes returns the declared types of the variables of a job file, as written. Nomad
// reports invalid declarations.
func variableTypes(job Source) map[string]string {
	types := map[string]string{}
	file, diags := hclsyntax.ParseConfig(job.Data, job.Name, hcl2.InitialPos)
	if diags.HasErrors() {
		return types
	}
	for _, b := range file.Body.(*hclsyntax.Body).Blocks {
		if b.Type == "variable" && len(b.Labels) == 1 {
			if t := b.Body.Attributes["type"]; t != nil {
				types[b.Labels[0]] = string(t.Expr.Range().SliceBytes(job.Data))
			}
		}
	}
	return types
}
