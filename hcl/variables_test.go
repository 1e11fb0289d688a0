// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
)

const withVariables = `
variable "job" {
  default = "implied"
}
variable "group" {
  type    = string
  default = "implied"
}
variable "tags" {
  type    = list(string)
  default = ["implied"]
}
variable "meta" {
  type    = map(string)
  default = { a = "implied" }
  validation {
    condition     = length(var.meta) > 0
    error_message = "At least one, not ${length(var.meta)}."
  }
}
variable "on" {
  type    = bool
  default = true
}
variable "port" {
  type    = number
  default = 80
}
domain "shop" {
  service "web" {
    selector "nomad" {
      job   = var.job
      group = var.group
    }
    selector "consul" {
      service = "web"
      tags    = var.tags
      meta    = var.meta
    }
  }
  contract "c" {
    enabled     = var.on
    originators = ["web"]
    responders  = ["web"]
    rule {
      protocol = "tcp"
      ports    = [var.port]
    }
  }
}
`

func TestVariables(t *testing.T) {
	file := Source{Name: "a.hcl", Data: []byte("group = \"file\"\ntags = [\"file\", upper(\"x\")]\njob = \"file\"\n")}
	later := Source{Name: "b.json", Data: []byte(`{"group": "later", "port": "8080"}`)}
	tests := []struct {
		name string
		o    Options
		want string
	}{
		{"defaults", Options{}, "nomad(namespace=default, job=implied, group=implied) consul(namespace=default, service=web, tags=implied, meta.a=implied) true 80"},
		{"environment", Options{Environment: []string{"SIF_VAR_job=env", "SIF_VAR_tags=[\"env\"]", "SIF_VAR_other=x", "group=x", "SIF_VAR_on=false", "SIF_VAR_port"}},
			"nomad(namespace=default, job=env, group=implied) consul(namespace=default, service=web, tags=env, meta.a=implied) false 80"},
		{"files", Options{Environment: []string{"SIF_VAR_job=env"}, Files: []Source{file, later}},
			"nomad(namespace=default, job=file, group=later) consul(namespace=default, service=web, tags=file+X, meta.a=implied) true 8080"},
		{"settings", Options{Files: []Source{file}, Settings: []string{"group=first", "group=a = ${b}", `meta={ b = "x" }`, "port=443", " job = 1"}},
			"nomad(namespace=default, job= 1, group=a = ${b}) consul(namespace=default, service=web, tags=file+X, meta.b=x) true 443"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g, diags := DecodeGraph(tt.o, Source{Name: "g.sif.hcl", Data: []byte(withVariables)})
			must.NoError(t, diags.Err())
			d := g.Domains["shop"]
			s, c := d.Services[0].Selectors, d.Contracts[0]
			must.Eq(t, tt.want, fmt.Sprint(s[0], " ", s[1], " ", !c.Disabled, " ", c.Rules[0].Ports[0]))
		})
	}
}

func TestVariableMistakes(t *testing.T) {
	tests := []struct {
		name string
		o    Options
		want []string
	}{
		{"form", Options{Settings: []string{"job", "=x", "a b=1"}}, []string{
			`-var:1:1: error: -var "job" is not of the form name=value; Write for instance -var 'count=2'.`,
			`-var:1:1: error: -var "=x" is not of the form name=value; Write for instance -var 'count=2'.`,
			`-var:1:1: error: -var "a b=1" is not of the form name=value; Write for instance -var 'count=2'.`,
		}},
		{"undeclared", Options{Settings: []string{"jbo=x"}, Files: []Source{{Name: "v.hcl", Data: []byte("\nsurprise = 1\n")}}}, []string{
			`-var jbo:1:1: error: a value for an undeclared variable "jbo"; Did you mean "job"?`,
			`v.hcl:2:1: error: a value for an undeclared variable "surprise"; Declare it with variable "surprise" {}, or remove the value.`,
		}},
		{"types", Options{Settings: []string{"port=http"}, Environment: []string{"SIF_VAR_on=maybe", `SIF_VAR_meta="x"`}}, []string{
			`-var port:1:1: error: unsuitable value for variable "port": a number is required; The variable is declared as number at g.sif.hcl:25:10.`,
			`SIF_VAR_meta:1:1: error: unsuitable value for variable "meta": map of string required, but have string; The variable is declared as map(string) at g.sif.hcl:13:10.`,
			`SIF_VAR_on:1:1: error: unknown name "maybe"; Write a string as "maybe", a variable as var.maybe, or a local as local.maybe.`,
		}},
		{"syntax", Options{Settings: []string{"tags=[1,"}}, []string{
			`-var tags:1:4: error: missing expression; Expected the start of an expression, but found the end of the file.`,
		}},
		{"reference", Options{Files: []Source{{Name: "v.hcl", Data: []byte("tags = [var.job]\n")}}}, []string{
			`v.hcl:1:9: error: var.job cannot be used here; The default of a variable, and a value given to it, must not refer to variables or locals.`,
		}},
		{"validation", Options{Settings: []string{"meta={}"}}, []string{
			`-var meta:1:1: error: variable "meta": At least one, not 0; The validation is at g.sif.hcl:17:21.`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g, diags := DecodeGraph(tt.o, Source{Name: "g.sif.hcl", Data: []byte(withVariables)})
			must.Nil(t, g)
			var got []string
			for _, d := range diags {
				got = append(got, d.String())
			}
			must.Eq(t, tt.want, got)
		})
	}
}

// TestSharedVariables declares variables and locals in one file and uses them in others, of either
// syntax.
func TestSharedVariables(t *testing.T) {
	sources := []Source{
		{Name: "a.sif.json", Data: []byte(`{"domain": {"a": {"service": {"web": {"selector": {"nomad": {"job": "${local.job}-${var.env}"}}}}}}}`)},
		{Name: "b.sif.hcl", Data: []byte("variable \"env\" {\n  default = \"prod\"\n}\nlocals {\n  job = lower(local.name)\n}\n")},
		{Name: "c.sif.json", Data: []byte(`{"locals": {"name": "WEB"}}`)},
	}
	for range sources {
		g, diags := DecodeGraph(at, sources...)
		must.NoError(t, diags.Err())
		must.Eq(t, "web-prod", g.Domains["a"].Services[0].Selectors[0].Job)
		sources = slices.Concat(sources[1:], sources[:1])
	}
	_, diags := DecodeGraph(at, sources[0], sources[1], sources[2], Source{Name: "d.sif.json", Data: []byte(`{"variable": {"env": {}}}`)})
	must.StrContains(t, diags.Error(), `d.sif.json:1:15: error: variable "env" is already declared at b.sif.hcl:1:10`)
}

// TestFunctions calls every function once, so that each is known to work.
func TestFunctions(t *testing.T) {
	calls := map[string]string{
		"abs": `abs(-1)`, "base64decode": `base64decode("YQ==")`, "base64encode": `base64encode("a")`, "can": `can(local.x)`, "ceil": `ceil(1.2)`,
		"chomp": `chomp("a\n")`, "chunklist": `chunklist([1, 2], 1)`, "cidrhost": `cidrhost("10.0.0.0/8", 1)`, "cidrnetmask": `cidrnetmask("10.0.0.0/8")`,
		"cidrsubnet": `cidrsubnet("10.0.0.0/8", 8, 1)`, "cidrsubnets": `cidrsubnets("10.0.0.0/8", 8)`, "coalesce": `coalesce(null, "a")`,
		"coalescelist": `coalescelist([], [1])`, "compact": `compact(["", "a"])`, "concat": `concat([1], [2])`, "contains": `contains([1], 1)`,
		"convert": `convert(1, string)`, "csvdecode": `csvdecode("a,b\n1,2")`, "distinct": `distinct([1, 1])`, "element": `element([1], 0)`,
		"flatten": `flatten([[1]])`, "floor": `floor(1.5)`, "format": `format("%d", 1)`, "formatdate": `formatdate("YYYY", "2027-01-01T00:00:00Z")`,
		"formatlist": `formatlist("%d", [1])`, "indent": `indent(2, "a")`, "index": `index([1], 0)`, "join": `join(",", ["a"])`, "jsondecode": `jsondecode("1")`,
		"jsonencode": `jsonencode([1])`, "keys": `keys({ a = 1 })`, "length": `length([1])`, "log": `log(8, 2)`, "lookup": `lookup({ a = 1 }, "a", 2)`,
		"lower": `lower("A")`, "max": `max(1, 2)`, "md5": `md5("a")`, "merge": `merge({}, { a = 1 })`, "min": `min(1, 2)`, "parseint": `parseint("ff", 16)`,
		"pow": `pow(2, 3)`, "range": `range(3)`, "regex_replace": `regex_replace("a1", "[0-9]", "b")`, "replace": `replace("a", "a", "b")`,
		"reverse": `reverse("ab")`, "setintersection": `setintersection([1], [1])`, "setproduct": `setproduct([1], [2])`, "setunion": `setunion([1], [2])`,
		"sha1": `sha1("a")`, "sha256": `sha256("a")`, "sha512": `sha512("a")`, "signum": `signum(-3)`, "slice": `slice([1, 2], 0, 1)`, "sort": `sort(["b", "a"])`,
		"split": `split(",", "a,b")`, "strlen": `strlen("a")`, "strrev": `strrev("ab")`, "substr": `substr("abc", 0, 1)`,
		"timeadd": `timeadd("2027-01-01T00:00:00Z", "1h")`, "title": `title("a")`, "trim": `trim("?a?", "?")`, "trimprefix": `trimprefix("ab", "a")`,
		"trimspace": `trimspace(" a ")`, "trimsuffix": `trimsuffix("ab", "b")`, "try": `try(local.x, 1)`, "upper": `upper("a")`,
		"urlencode": `urlencode("a b")`, "uuidv5": `uuidv5("dns", "example.com")`, "values": `values({ a = 1 })`, "zipmap": `zipmap(["a"], [1])`,
	}
	for name := range functions {
		call, ok := calls[name]
		must.True(t, ok, must.Sprintf("function %s is not tested", name))
		_, diags := DecodeGraph(at, Source{Name: "f.sif.hcl", Data: []byte("locals {\n  x = 1\n  y = " + call + "\n}\n")})
		must.NoError(t, diags.Err())
	}
	must.Eq(t, len(functions), len(calls))
	for name := range functionsLeftOut {
		_, diags := DecodeGraph(at, Source{Name: "f.sif.hcl", Data: []byte("locals {\n  y = " + name + "()\n}\n")})
		must.StrContains(t, diags.Error(), fmt.Sprintf("there is no function %q in graphs", name))
	}
}
