// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// EnvironmentPrefix is the prefix of environment variables that set variables of graphs.
const EnvironmentPrefix = "SIF_VAR_"

// Options are the inputs of a graph from outside its files. Settings override Files, later ones
// override earlier ones, and both override Environment.
type Options struct {
	Settings    []string  // "name=value", as after -var
	Files       []Source  // variable files, as after -var-file
	Environment []string  // as of os.Environ; only names with EnvironmentPrefix count
	Now         time.Time // decides what has expired; zero: the time of the call
}

func (o Options) now() time.Time {
	if o.Now.IsZero() {
		return time.Now()
	}
	return o.Now
}

// variable is a declared variable.
type variable struct {
	place    hcl2.Range
	typ      cty.Type
	defaults *typeexpr.Defaults
	implied  hcl2.Expression // the default; nil if a value is required
	broken   bool            // the declaration is invalid
	checks   []*hcl2.BodyContent
	given    *given
}

// given is a value from outside the files, before its conversion.
type given struct {
	expr hcl2.Expression // nil: the value is text, whose meaning depends on the type
	text text
}

// scope are the names that expressions may use after a keyword: "var" or "local".
type scope struct {
	declared map[string]hcl2.Range
	values   map[string]cty.Value // of the declared names without an error
}

func newScope() *scope {
	return &scope{declared: map[string]hcl2.Range{}, values: map[string]cty.Value{}}
}

// variables evaluates the variable blocks of all files, and lets expressions refer to them.
func (d *decoder) variables(blocks []*hcl2.Block, o Options) {
	d.why = "The default of a variable, and a value given to it, must not refer to variables or locals."
	vars, declared := newScope(), map[string]*variable{}
	for _, b := range blocks {
		name := b.Labels[0]
		if !hclsyntax.ValidIdentifier(name) {
			d.report(errorAt(labelRange(b), "Use letters, digits, _ and -, and start with a letter.", "%q is not a valid variable name", name))
			continue
		}
		if first, dup := vars.declared[name]; dup {
			d.report(errorAt(labelRange(b), "Variables are shared by all files that are read together. Remove one of the two.",
				"variable %q is already declared at %s", name, position(first)))
			continue
		}
		vars.declared[name] = labelRange(b)
		declared[name] = d.variable(b)
	}
	d.given(o, declared)
	for _, name := range slices.Sorted(maps.Keys(declared)) {
		if v, ok := d.variableValue(name, declared[name]); ok {
			vars.values[name] = v
		}
	}
	d.open("var", vars)
	for _, name := range slices.Sorted(maps.Keys(declared)) {
		d.validate(name, declared[name])
	}
}

// open lets expressions refer to a scope.
func (d *decoder) open(keyword string, s *scope) {
	if d.scopes == nil {
		d.scopes = map[string]*scope{}
	}
	d.scopes[keyword] = s
	d.ctx.Variables[keyword] = cty.ObjectVal(s.values)
}

func (d *decoder) variable(b *hcl2.Block) *variable {
	v := &variable{place: labelRange(b), typ: cty.DynamicPseudoType}
	before := len(d.diags)
	content := d.content(b.Body, variableBlock.schema, subject{kind: "variable", label: b.Labels[0]})
	d.stringAttr(content, "description")
	if attr := content.Attributes["type"]; attr != nil {
		typ, defaults, diags := typeexpr.TypeConstraintWithDefaults(attr.Expr)
		for _, diag := range diags {
			word := strings.Trim(firstQuoted.FindString(diag.Detail), `"`)
			types := []string{"any", "bool", "list", "map", "number", "object", "optional", "set", "string", "tuple"}
			diag.Detail = strings.TrimSpace(fmt.Sprintf("%s Write a type such as string, number, bool or list(string). %s", diag.Detail, didYouMean(word, types)))
		}
		d.report(diags...)
		v.typ, v.defaults = typ, defaults
	}
	if attr := content.Attributes["default"]; attr != nil {
		v.implied = attr.Expr
	}
	for _, b := range content.Blocks {
		v.checks = append(v.checks, d.content(b.Body, validationBlock.schema, subject{kind: "validation"}))
	}
	v.broken = len(d.diags) > before
	return v
}

// given records the values that are given to variables.
func (d *decoder) given(o Options, declared map[string]*variable) {
	undeclared := func(r hcl2.Range, name string) {
		remedy := didYouMean(name, slices.Collect(maps.Keys(declared)))
		if remedy == "" {
			remedy = fmt.Sprintf("Declare it with variable %q {}, or remove the value.", name)
		}
		d.report(errorAt(r, remedy, "a value for an undeclared variable %q", name))
	}
	for _, entry := range o.Environment {
		name, value, ok := strings.Cut(entry, "=")
		v := declared[strings.TrimPrefix(name, EnvironmentPrefix)]
		if ok && v != nil && strings.HasPrefix(name, EnvironmentPrefix) {
			v.given = &given{text: d.outside(name, value)}
		}
	}
	for _, f := range o.Files {
		d.sources = append(d.sources, f)
		body, diags := parse(f)
		d.report(diags...)
		if diags.HasErrors() {
			continue
		}
		attrs, diags := body.JustAttributes()
		d.report(diags...)
		for _, a := range sortedAttributes(attrs) {
			if v := declared[a.Name]; v != nil {
				v.given = &given{expr: a.Expr}
			} else {
				undeclared(a.NameRange, a.Name)
			}
		}
	}
	for _, s := range o.Settings {
		name, value, ok := strings.Cut(s, "=")
		name = strings.TrimSpace(name)
		if !ok || !hclsyntax.ValidIdentifier(name) {
			t := d.outside("-var", s)
			d.report(errorAt(t.rng, "Write for instance -var 'count=2'.", "-var %q is not of the form name=value", s))
			continue
		}
		t := d.outside("-var "+name, value)
		if v := declared[name]; v != nil {
			v.given = &given{text: t}
		} else {
			undeclared(t.rng, name)
		}
	}
}

// outside returns a value from outside the files as a text, and adds it to the sources that
// diagnostics quote.
func (d *decoder) outside(name, value string) text {
	d.sources = append(d.sources, Source{Name: name, Data: []byte(value)})
	end := hcl2.Pos{Line: 1, Column: 1 + len(value), Byte: len(value)}
	return text{value: value, rng: hcl2.Range{Filename: name, Start: hcl2.InitialPos, End: end}}
}

// variableValue returns the value of a variable, if it has a valid one.
func (d *decoder) variableValue(name string, v *variable) (cty.Value, bool) {
	if v.broken {
		return cty.NilVal, false
	}
	expr := v.implied
	if v.given != nil {
		expr = v.given.expr
		if expr == nil {
			expr = d.textExpression(v)
		}
	} else if expr == nil {
		d.report(errorAt(v.place, fmt.Sprintf("Set it with -var '%s=...', in a file given with -var-file, or as the environment variable %s%s; or declare a default.", name, EnvironmentPrefix, name),
			"variable %q has no value", name))
	}
	if expr == nil {
		return cty.NilVal, false
	}
	val, ok := d.value(expr)
	if !ok {
		return cty.NilVal, false
	}
	if v.defaults != nil && !val.IsNull() {
		val = v.defaults.Apply(val)
	}
	val, err := convert.Convert(val, v.typ)
	if err != nil {
		d.report(errorAt(expr.Range(), fmt.Sprintf("The variable is declared as %s at %s.", typeexpr.TypeString(v.typ), position(v.place)),
			"unsuitable value for variable %q: %s", name, err))
		return cty.NilVal, false
	}
	return val, true
}

// textExpression returns the expression for a text from the command line or the environment: the
// text itself if the variable is a string, a number or has no type; otherwise the text parsed as an
// expression. It is nil if there is an error.
func (d *decoder) textExpression(v *variable) hcl2.Expression {
	t := v.given.text
	switch v.typ {
	case cty.String, cty.Number, cty.DynamicPseudoType:
		return hcl2.StaticExpr(cty.StringVal(t.value), t.rng)
	}
	expr, diags := hclsyntax.ParseExpression([]byte(t.value), t.rng.Filename, hcl2.InitialPos)
	d.report(diags...)
	if diags.HasErrors() {
		return nil
	}
	return expr
}

// validate evaluates the validation blocks of a variable.
func (d *decoder) validate(name string, v *variable) {
	if _, ok := d.scopes["var"].values[name]; !ok {
		return
	}
	place := v.place
	switch {
	case v.given != nil && v.given.expr != nil:
		place = v.given.expr.Range()
	case v.given != nil:
		place = v.given.text.rng
	case v.implied != nil:
		place = v.implied.Range()
	}
	for _, c := range v.checks {
		message, ok := d.stringAttr(c, "error_message")
		condition, given := c.Attributes["condition"]
		if !ok || !given {
			continue
		}
		holds, ok := d.boolExpr(condition.Expr, "condition")
		if ok && !holds {
			d.report(errorAt(place, fmt.Sprintf("The validation is at %s.", position(condition.Expr.Range())),
				"variable %q: %s", name, message.value))
		}
	}
}

// locals evaluates the locals blocks of all files, each local after those that it refers to, and
// lets expressions refer to them.
func (d *decoder) locals(blocks []*hcl2.Block) {
	l := localsEvaluation{decoder: d, scope: newScope(), exprs: map[string]hcl2.Expression{}, done: map[string]bool{}}
	for _, b := range blocks {
		attrs, diags := b.Body.JustAttributes()
		d.report(diags...)
		for _, a := range sortedAttributes(attrs) {
			if first, dup := l.scope.declared[a.Name]; dup {
				d.report(errorAt(a.NameRange, "Locals are shared by all files that are read together. Remove one of the two.",
					"local %q is already declared at %s", a.Name, position(first)))
				continue
			}
			l.scope.declared[a.Name] = a.NameRange
			l.exprs[a.Name] = a.Expr
		}
	}
	d.open("local", l.scope)
	for _, name := range slices.Sorted(maps.Keys(l.exprs)) {
		l.evaluate(name, nil)
	}
}

type localsEvaluation struct {
	*decoder
	scope *scope
	exprs map[string]hcl2.Expression
	done  map[string]bool
}

// evaluate evaluates a local. path are the locals that led to it.
func (l *localsEvaluation) evaluate(name string, path []string) {
	if l.done[name] {
		return
	}
	if i := slices.Index(path, name); i >= 0 {
		l.report(errorAt(l.scope.declared[name], "Remove the cycle.", "local %q depends on itself: %s",
			name, strings.Join(append(path[i:], name), " needs ")))
		l.done[name] = true
		return
	}
	path = append(path, name)
	expr := l.exprs[name]
	for _, t := range expr.Variables() {
		if other, ok := member(t); ok && t.RootName() == "local" && l.exprs[other] != nil {
			l.evaluate(other, slices.Clone(path))
		}
	}
	if l.done[name] {
		return // it is part of a cycle
	}
	l.done[name] = true
	if v, ok := l.value(expr); ok {
		l.scope.values[name] = v
		l.ctx.Variables["local"] = cty.ObjectVal(l.scope.values)
	}
}

func sortedAttributes(attrs hcl2.Attributes) []*hcl2.Attribute {
	return slices.SortedFunc(maps.Values(attrs), func(a, b *hcl2.Attribute) int { return a.NameRange.Start.Byte - b.NameRange.Start.Byte })
}
