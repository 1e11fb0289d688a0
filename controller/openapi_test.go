// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"encoding"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
)

var update = flag.Bool("update", false, "write api/openapi.json anew")

const openapiFile = "../api/openapi.json"

// object is a JSON object. encoding/json sorts its keys.
type object = map[string]any

// TestOpenAPI generates the description of the API from the routes and the types of their requests
// and replies, and compares it with api/openapi.json.
func TestOpenAPI(t *testing.T) {
	s := schemas{}
	paths := object{}
	methodPath := regexp.MustCompile(`^([A-Z]+) (/\S+)$`)
	for _, r := range (&Controller{}).routes() {
		m := methodPath.FindStringSubmatch(r.pattern)
		must.NotNil(t, m, must.Sprint(r.pattern))
		must.True(t, r.call != nil || r.caller == callerAnyone, must.Sprint(r.pattern))
		must.NotEq(t, "", r.summary, must.Sprint(r.pattern))
		must.Eq(t, r.caller == callerOperator, r.permission != "", must.Sprint(r.pattern))
		if paths[m[2]] == nil {
			paths[m[2]] = object{}
		}
		paths[m[2]].(object)[strings.ToLower(m[1])] = s.operation(t, r, m[2])
	}
	doc := object{
		"openapi": "3.1.0",
		"info": object{
			"title": "SIF controller", "version": "1",
			"license":     object{"name": "MPL-2.0", "identifier": "MPL-2.0"},
			"description": "Generated from the controller's routes and wire types: go test ./controller -run TestOpenAPI -update.",
		},
		"paths": paths,
		"components": object{
			"schemas": s,
			"securitySchemes": object{
				"consul":      object{"type": "apiKey", "in": "header", "name": api.TokenHeader, "description": "Consul ACL token, which may also be sent as \"Authorization: Bearer\". What it permits follows from the names of its policies and roles, and of its roles' policies."},
				"vault":       object{"type": "apiKey", "in": "header", "name": api.VaultTokenHeader, "description": "Vault token, instead of a Consul token. What it permits follows from the names of its policies, and of those of its entity and groups."},
				"certificate": object{"type": "mutualTLS", "description": "Certificate with the SPIFFE ID of a node."},
			},
		},
	}
	data, err := json.MarshalIndent(doc, "", "  ")
	must.NoError(t, err)
	data = append(data, '\n')
	if *update {
		must.NoError(t, os.WriteFile(openapiFile, data, 0o644))
	}
	have, err := os.ReadFile(openapiFile)
	must.NoError(t, err)
	must.Eq(t, string(have), string(data), must.Sprint("run: go test ./controller -run TestOpenAPI -update"))

	// Every reference has a target.
	for _, ref := range regexp.MustCompile(`"#/components/schemas/([^"]+)"`).FindAllSubmatch(data, -1) {
		must.MapContainsKey(t, s, string(ref[1]))
	}
}

// schemas contains the schemas of structs by the name of the type.
type schemas map[string]any

func (s schemas) operation(t *testing.T, r route, urlPath string) object {
	op := object{"summary": r.summary}
	var params []object
	for _, m := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(urlPath, -1) {
		params = append(params, object{"name": m[1], "in": "path", "required": true, "schema": object{"type": "string"}})
	}
	for _, name := range r.query {
		text, ok := parameters[name]
		must.True(t, ok, must.Sprint(name))
		params = append(params, object{"name": name, "in": "query", "description": text, "schema": object{"type": "string"}})
	}
	if params != nil {
		op["parameters"] = params
	}
	switch r.caller {
	case callerOperator:
		op["security"] = []object{{"consul": []string{}}, {"vault": []string{}}}
		op["description"] = "Needs: " + r.permission + "."
	case callerNode:
		op["security"] = []object{{"certificate": []string{}}}
	}
	content := func(v any) object {
		return object{"application/json": object{"schema": s.of(reflect.TypeOf(v))}}
	}
	if r.request != nil {
		op["requestBody"] = object{"required": true, "content": content(r.request)}
	}
	failed := object{"description": "Refused. The code says why.", "content": content(api.Error{})}
	responses := object{"default": failed}
	if r.reply == nil {
		responses["204"] = object{"description": "Done."}
	} else {
		done := object{"description": "Done.", "content": content(r.reply)}
		if slices.Contains(r.query, "index") {
			done["headers"] = object{api.IndexHeader: object{"description": "Index of this response. A later call can wait until the result is newer.", "schema": object{"type": "integer"}}}
		}
		responses["200"] = done
	}
	op["responses"] = responses
	return op
}

var textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()

// of returns the schema of a type as encoding/json encodes it.
func (s schemas) of(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[json.RawMessage]():
		return object{}
	case t == reflect.TypeFor[time.Duration]():
		return object{"type": "integer", "description": "nanoseconds"}
	case t.Kind() != reflect.Pointer && (t.Implements(textMarshaler) || reflect.PointerTo(t).Implements(textMarshaler)):
		return object{"type": "string", "description": path.Base(t.PkgPath()) + "." + t.Name()}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return s.of(t.Elem())
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Int8, reflect.Int16, reflect.Uint:
		return object{"type": "integer"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return object{"type": "string", "contentEncoding": "base64"}
		}
		return object{"type": []string{"array", "null"}, "items": s.of(t.Elem())}
	case reflect.Map:
		return object{"type": []string{"object", "null"}, "additionalProperties": s.of(t.Elem())}
	case reflect.Interface:
		return object{}
	case reflect.Struct:
		name := path.Base(t.PkgPath()) + "." + t.Name()
		if _, met := s[name]; !met {
			s[name] = nil // the type may contain itself
			properties := object{}
			required := map[string]bool{}
			s.fields(t, properties, required)
			schema := object{"type": "object", "properties": properties}
			if len(required) > 0 {
				schema["required"] = slices.Sorted(maps.Keys(required))
			}
			s[name] = schema
		}
		return object{"$ref": "#/components/schemas/" + name}
	}
	panic("no schema for " + t.String())
}

func (s schemas) fields(t reflect.Type, properties object, required map[string]bool) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			s.fields(f.Type, properties, required)
		case !f.IsExported() || name == "-":
		default:
			if name == "" {
				panic(t.String() + "." + f.Name + " has no name on the wire")
			}
			properties[name] = s.of(f.Type)
			if !strings.Contains(options, "omit") {
				required[name] = true
			}
		}
	}
}
