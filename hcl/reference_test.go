// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"os"
	"testing"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/shoenig/test/must"
)

func TestReferenceIsFresh(t *testing.T) {
	for name, want := range map[string][]byte{"../docs/graph-reference.md": Reference(), "../docs/graph.schema.json": JSONSchema()} {
		have, err := os.ReadFile(name)
		must.NoError(t, err)
		must.Eq(t, string(want), string(have), must.Sprintf("%s is stale: run go generate ./hcl", name))
	}
}

// TestExamples checks that the examples of the reference are formatted and use only defined blocks
// and arguments.
func TestExamples(t *testing.T) {
	var check func(t *testing.T, body hcl2.Body, d *definition)
	check = func(t *testing.T, body hcl2.Body, d *definition) {
		if d.free != "" {
			return
		}
		content, diags := body.Content(d.schema)
		must.False(t, diags.HasErrors(), must.Sprint(diags))
		for _, b := range content.Blocks {
			for _, c := range d.blocks {
				if c.name == b.Type && (c.is == "" || c.is == b.Labels[0]) {
					check(t, b.Body, c)
				}
			}
		}
	}
	for _, d := range definitions() {
		t.Run(d.title, func(t *testing.T) {
			must.NotEq(t, "", d.doc)
			src := Source{Name: "example.sif.hcl", Data: []byte(d.example + "\n")}
			out, diags := Format(src)
			must.NoError(t, diags.Err())
			must.Eq(t, string(src.Data), string(out))
			body, hclDiags := parse(src)
			must.False(t, hclDiags.HasErrors())
			check(t, body, define(definition{blocks: []*definition{d}}))
			for _, a := range d.args {
				must.NotEq(t, "", a.doc, must.Sprint(a.name))
				must.False(t, a.required && a.implied != "", must.Sprint(a.name))
			}
		})
	}
}

func TestJSONSchema(t *testing.T) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(JSONSchema()))
	must.NoError(t, err)
	c := jsonschema.NewCompiler()
	must.NoError(t, c.AddResource("graph.schema.json", doc))
	schema, err := c.Compile("graph.schema.json")
	must.NoError(t, err)

	validate := func(data []byte) error {
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		must.NoError(t, err)
		return schema.Validate(v)
	}
	for _, path := range inputs(t, "testdata/valid/*.sif.json") {
		data, err := os.ReadFile(path)
		must.NoError(t, err)
		must.NoError(t, validate(data), must.Sprint(path))
	}
	contract := func(args string) string {
		return `{"domain": {"d": {"contract": {"c": {"originators": ["a"], "responders": ["b"]` + args + `}}}}}`
	}
	tests := map[string]struct {
		json string
		ok   bool
	}{
		"empty":               {`{}`, true},
		"no domain":           {`{"domian": {}}`, false},
		"list of domains":     {`{"domain": [{"a": {}}, {"b": [{}, {}]}]}`, true},
		"contract":            {contract(``), true},
		"unknown argument":    {contract(`, "responder": ["x"]`), false},
		"missing argument":    {`{"domain": {"d": {"contract": {"c": {"originators": ["a"]}}}}}`, false},
		"rule":                {contract(`, "rule": {"protocol": "tcp", "ports": [80, "81-90", "${var.x}"]}`), true},
		"unknown protocol":    {contract(`, "rule": {"protocol": "tpc", "ports": [80]}`), false},
		"protocol expression": {contract(`, "rule": {"protocol": "${var.p}", "ports": "${var.ports}"}`), true},
		"port too large":      {contract(`, "rule": {"protocol": "tcp", "ports": [70000]}`), false},
		"named type":          {contract(`, "rule": {"protocol": "icmp", "types": ["echo-request"]}`), true},
		"unknown type":        {contract(`, "rule": {"protocol": "icmp", "types": ["echo"]}`), false},
		"time":                {contract(`, "expires": "2027-01-31T00:00:00Z"`), true},
		"date":                {contract(`, "expires": "2027-01-31"`), false},
		"enabled":             {contract(`, "enabled": "no"`), false},
		"mode":                {`{"domain": {"d": {"mode": "audit"}}}`, true},
		"unknown mode":        {`{"domain": {"d": {"mode": "off"}}}`, false},
		"selector":            {`{"domain": {"d": {"service": {"s": {"selector": [{"node": {"zone": "z"}}]}}}}}`, true},
		"unknown selector":    {`{"domain": {"d": {"service": {"s": {"selector": {"k8s": {}}}}}}}`, false},
		"labels":              {`{"domain": {"d": {"labels": {"env": 1}}}}`, false},
		"guardrail":           {`{"guardrail": {"g": {"deny": {"from": {"env": "dev"}}}}}`, true},
		"deny typo":           {`{"guardrail": {"g": {"deny": {"form": {"env": "dev"}}}}}`, false},
		"accept":              {`{"domain": {"d": {"accept": {"a/b": {"services": ["s"]}}}}}`, true},
		"variable":            {`{"variable": {"x": {"type": "list(string)", "default": [1]}}}`, true},
		"variable typo":       {`{"variable": {"x": {"defalt": 1}}}`, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := validate([]byte(tt.json))
			if tt.ok {
				must.NoError(t, err)
			} else {
				must.Error(t, err)
			}
		})
	}
}
