// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/sif-project/sif/fabric"
)

// text is a string with its source range.
type text struct {
	value string
	rng   hcl2.Range
}

// stringAttr returns the string value of an attribute, if it is set and valid.
func (d *decoder) stringAttr(content *hcl2.BodyContent, name string) (text, bool) {
	attr := content.Attributes[name]
	if attr == nil {
		return text{}, false
	}
	return d.stringExpr(attr.Expr, "argument %q", name)
}

// nameAttr is stringAttr for a value that must not be empty.
func (d *decoder) nameAttr(content *hcl2.BodyContent, name string) string {
	t, ok := d.stringAttr(content, name)
	if ok && t.value == "" {
		d.report(errorAt(t.rng, "Set a value, or remove it.", "argument %q is empty", name))
	}
	return t.value
}

// stringExpr evaluates an expression that must be a string. Diagnostics name it by what, formatted
// with name.
func (d *decoder) stringExpr(expr hcl2.Expression, what, name string) (text, bool) {
	v, ok := d.value(expr)
	if !ok {
		return text{}, false
	}
	return d.stringValue(v, expr.Range(), what, name)
}

func (d *decoder) stringValue(v cty.Value, rng hcl2.Range, what, name string) (text, bool) {
	if v.IsNull() || v.Type() != cty.String {
		d.report(errorAt(rng, "Write a string in quotes.", what+" must be a string, not %s", name, kindOf(v)))
		return text{}, false
	}
	return text{value: v.AsString(), rng: rng}, true
}

// value evaluates an expression that must have a known value.
func (d *decoder) value(expr hcl2.Expression) (cty.Value, bool) {
	if v, ok := literal(expr); ok {
		return v, true
	}
	if d.ctx != nil && !d.defined(expr) {
		return cty.DynamicVal, false
	}
	v, diags := expr.Value(d.ctx)
	for _, diag := range diags {
		switch diag.Summary {
		case "Variables not allowed", "Function calls not allowed":
			diag.Detail = d.why + " " + diag.Detail
		case "Unknown variable":
			name := strings.Trim(firstQuoted.FindString(diag.Detail), `"`)
			diag.Summary, diag.Detail = fmt.Sprintf("unknown name %q", name), didYouMean(name, slices.Sorted(maps.Keys(d.scopes)))
			if diag.Detail == "" {
				diag.Detail = fmt.Sprintf("Write a string as %q, a variable as var.%s, or a local as local.%s.", name, name, name)
			}
		case "Call to unknown function":
			name := strings.Trim(firstQuoted.FindString(diag.Detail), `"`)
			if reason, leftOut := functionsLeftOut[name]; leftOut {
				diag.Summary, diag.Detail = fmt.Sprintf("there is no function %q in graphs", name), reason
			}
		}
	}
	d.report(diags...)
	return v, !diags.HasErrors() && v.IsWhollyKnown()
}

// literal returns the value of a string, number or keyword without evaluating it: most expressions
// of a large graph are one of these.
func literal(expr hcl2.Expression) (cty.Value, bool) {
	if t, ok := expr.(*hclsyntax.TemplateExpr); ok && t.IsStringLiteral() {
		expr = t.Parts[0]
	}
	if l, ok := expr.(*hclsyntax.LiteralValueExpr); ok {
		return l.Val, true
	}
	return cty.NilVal, false
}

// defined reports whether all variables and locals that an expression refers to have values. If a
// declaration is invalid, that has already been reported.
func (d *decoder) defined(expr hcl2.Expression) bool {
	ok := true
	for _, t := range expr.Variables() {
		keyword, place := t.RootName(), t.SourceRange()
		s, known := d.scopes[keyword]
		name, named := member(t)
		switch {
		case keyword != "var" && keyword != "local":
			continue // an iterator, a type or a mistake, which evaluation reports
		case !known:
			d.report(errorAt(place, d.why, "%s cannot be used here", sourceOf(t)))
		case !named:
			if len(s.values) == len(s.declared) {
				continue // the object with all of them
			}
		case s.declared[name] == hcl2.Range{}:
			remedy := didYouMean(name, slices.Sorted(maps.Keys(s.declared)))
			if remedy == "" {
				remedy = "Declare it, or correct the name."
			}
			d.report(errorAt(place, remedy, "unknown %s %q", map[string]string{"var": "variable", "local": "local"}[keyword], name))
		default:
			if _, has := s.values[name]; has {
				continue
			}
		}
		ok = false
	}
	return ok
}

// member returns the name after the first dot of a traversal.
func member(t hcl2.Traversal) (string, bool) {
	if len(t) < 2 {
		return "", false
	}
	switch step := t[1].(type) {
	case hcl2.TraverseAttr:
		return step.Name, true
	case hcl2.TraverseIndex:
		if step.Key.Type() == cty.String {
			return step.Key.AsString(), true
		}
	}
	return "", false
}

func sourceOf(t hcl2.Traversal) string {
	if name, ok := member(t); ok {
		return t.RootName() + "." + name
	}
	return t.RootName()
}

// boolAttr returns the value of an attribute, or implied if it is not set or invalid.
func (d *decoder) boolAttr(content *hcl2.BodyContent, name string, implied bool) bool {
	attr := content.Attributes[name]
	if attr == nil {
		return implied
	}
	v, ok := d.boolExpr(attr.Expr, name)
	if !ok {
		return implied
	}
	return v
}

func (d *decoder) boolExpr(expr hcl2.Expression, name string) (value, ok bool) {
	v, ok := d.value(expr)
	if !ok {
		return false, false
	}
	if v.IsNull() || v.Type() != cty.Bool {
		d.report(errorAt(expr.Range(), "Write true or false, without quotes.", "argument %q must be true or false, not %s", name, kindOf(v)))
		return false, false
	}
	return v.True(), true
}

// element is an element of a list with its source range.
type element struct {
	value cty.Value
	rng   hcl2.Range
}

// members returns the expressions of a list literal. It does not split a list from the content of a
// dynamic block, because its elements could not be evaluated without the block's iterator.
func members(expr hcl2.Expression) ([]hcl2.Expression, bool) {
	if isDynamic(expr) {
		return nil, false
	}
	exprs, diags := hcl2.ExprList(expr)
	return exprs, !diags.HasErrors()
}

func isDynamic(expr hcl2.Expression) bool {
	_, wrapped := expr.(interface{ UnwrapExpression() hcl2.Expression })
	return wrapped
}

func isEmptyList(attr *hcl2.Attribute) bool {
	exprs, ok := members(attr.Expr)
	return ok && len(exprs) == 0
}

// list returns the elements of the list that an attribute is set to; nil if errors leave none. A
// single value instead of a list is an error that shows how to write a list.
func (d *decoder) list(attr *hcl2.Attribute) []element {
	if exprs, ok := members(attr.Expr); ok {
		list := make([]element, 0, len(exprs))
		for _, e := range exprs {
			if v, ok := d.value(e); ok {
				list = append(list, element{value: v, rng: e.Range()})
			}
		}
		if len(list) == 0 && len(exprs) > 0 {
			return nil
		}
		return list
	}
	// Not a list literal: its elements have no source ranges of their own.
	v, ok := d.value(attr.Expr)
	if !ok {
		return nil
	}
	if v.IsNull() || !(v.Type().IsTupleType() || v.Type().IsListType() || v.Type().IsSetType()) {
		d.report(errorAt(attr.Expr.Range(), fmt.Sprintf("Write it in brackets: %s = [...].", attr.Name),
			"argument %q must be a list, not %s", attr.Name, kindOf(v)))
		return nil
	}
	list := []element{}
	for it := v.ElementIterator(); it.Next(); {
		_, member := it.Element()
		list = append(list, element{value: member, rng: attr.Expr.Range()})
	}
	return list
}

// stringMap returns the map of strings that an attribute is set to, and the source ranges of the
// keys.
func (d *decoder) stringMap(content *hcl2.BodyContent, name string) (map[string]string, map[string]hcl2.Range) {
	attr := content.Attributes[name]
	if attr == nil {
		return nil, nil
	}
	m, places := map[string]string{}, map[string]hcl2.Range{}
	add := func(key text, v cty.Value, rng hcl2.Range) {
		value, ok := d.stringValue(v, rng, "the value of %q", key.value)
		first, dup := places[key.value]
		switch {
		case !ok:
		case key.value == "" || value.value == "":
			d.report(errorAt(rng, "Set both, or remove it.", "%q of %q has an empty key or value", key.value, name))
		case dup:
			d.report(errorAt(key.rng, "Remove one of the two.", "%q is already set at %s", key.value, position(first)))
		default:
			m[key.value], places[key.value] = value.value, key.rng
		}
	}
	if pairs, diags := hcl2.ExprMap(attr.Expr); !diags.HasErrors() && !isDynamic(attr.Expr) {
		for _, p := range pairs {
			key, ok := d.stringExpr(p.Key, "a key of %q", name)
			v, known := d.value(p.Value)
			if ok && known {
				add(key, v, p.Value.Range())
			}
		}
		if len(m) == 0 && len(pairs) > 0 {
			return nil, nil
		}
		return m, places
	}
	v, ok := d.value(attr.Expr)
	if !ok {
		return nil, nil
	}
	if v.IsNull() || !(v.Type().IsObjectType() || v.Type().IsMapType()) {
		d.report(errorAt(attr.Expr.Range(), fmt.Sprintf("Write it in braces: %s = { key = \"value\" }.", name),
			"argument %q must be a map, not %s", name, kindOf(v)))
		return nil, nil
	}
	for it := v.ElementIterator(); it.Next(); {
		key, v := it.Element()
		add(text{key.AsString(), attr.Expr.Range()}, v, attr.Expr.Range())
	}
	return m, places
}

// stringList returns the strings of a list attribute; nil if it is not set or errors leave none.
// Empty and duplicate strings are errors.
func (d *decoder) stringList(content *hcl2.BodyContent, name string) []text {
	attr := content.Attributes[name]
	if attr == nil {
		return nil
	}
	elements := d.list(attr)
	if elements == nil {
		return nil
	}
	list := []text{}
	seen := map[string]hcl2.Range{}
	for _, e := range elements {
		t, ok := d.stringValue(e.value, e.rng, "an element of %q", name)
		if !ok {
			continue
		}
		if t.value == "" {
			d.report(errorAt(t.rng, "Set a value, or remove it.", "an element of %q is empty", name))
			continue
		}
		if first, dup := seen[t.value]; dup {
			d.report(errorAt(t.rng, "Remove one of the two.", "%q is already listed at %s", t.value, position(first)))
			continue
		}
		seen[t.value] = t.rng
		list = append(list, t)
	}
	return list
}

// firstQuoted matches the name in a diagnostic of the HCL library.
var firstQuoted = regexp.MustCompile(`"[^"]*"`)

// subject names a block in diagnostics: a prefix, the type and the label.
type subject struct{ before, kind, label string }

func (s subject) String() string {
	if s.label == "" {
		return s.before + s.kind
	}
	return fmt.Sprintf("%s%s %q", s.before, s.kind, s.label)
}

// of names a part of s.
func (s subject) of(what string) subject { return subject{what + " of " + s.before, s.kind, s.label} }

// content decodes a body by its schema. For an argument or block that the schema lacks, the error
// suggests the nearest name, or lists what is expected.
func (d *decoder) content(body hcl2.Body, schema *hcl2.BodySchema, where subject) *hcl2.BodyContent {
	content, diags := body.Content(schema)
	for _, diag := range diags {
		name := firstQuoted.FindString(diag.Detail)
		kind := ""
		switch diag.Summary {
		case "Unsupported argument":
			kind = "argument"
		case "Unsupported block type":
			kind = "block"
		case "Extraneous JSON object property":
			kind = "property"
		case "Extraneous label for rule":
			diag.Summary, diag.Detail = "a rule block takes no label", "Write the name inside the block: name = \"...\"."
		case "Missing required argument":
			diag.Summary = fmt.Sprintf("missing argument %s", name)
			diag.Detail = fmt.Sprintf("Set it in %s.", where)
		}
		if kind != "" {
			diag.Summary = fmt.Sprintf("unknown %s %s", kind, name)
			if _, suggestion, ok := strings.Cut(diag.Detail, "Did you mean"); ok {
				diag.Detail = "Did you mean" + suggestion
			} else {
				diag.Detail = expected(schema, where)
			}
		}
	}
	d.report(diags...)
	return content
}

func expected(schema *hcl2.BodySchema, where subject) string {
	var names []string
	for _, a := range schema.Attributes {
		names = append(names, a.Name)
	}
	for _, b := range schema.Blocks {
		names = append(names, b.Type+" block")
	}
	if len(names) == 0 {
		return fmt.Sprintf("Nothing is expected in %s.", where)
	}
	return fmt.Sprintf("Expected in %s: %s.", where, strings.Join(names, ", "))
}

// kindOf describes the type of a value.
func kindOf(v cty.Value) string {
	switch {
	case v.IsNull():
		return "null"
	case v.Type() == cty.String, v.Type() == cty.Number:
		return "a " + v.Type().FriendlyName()
	case v.Type() == cty.Bool:
		return "true or false"
	case v.Type().IsTupleType(), v.Type().IsListType(), v.Type().IsSetType():
		return "a list"
	default:
		return "an object"
	}
}

// didYouMean returns a sentence that suggests the nearest of names, or "" if none is near.
func didYouMean(name string, names []string) string {
	if near := fabric.Nearest(name, names); near != "" {
		return fmt.Sprintf("Did you mean %q?", near)
	}
	return ""
}
