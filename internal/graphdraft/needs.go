// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package graphdraft

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"text/template/parse"

	nomadapi "github.com/hashicorp/nomad/api"
)

// need is a service that a group calls, by its name in a catalog.
type need struct {
	name     string
	provider string // "consul" or "nomad"
	mesh     bool   // through Consul's proxies
	why      string // where the job says so
}

// needs returns what a group says that it calls, in the order of the job, each once.
func needs(job *nomadapi.Job, group *nomadapi.TaskGroup) []need {
	var list []need
	add := func(n need) {
		if !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	services := slices.Clone(group.Services)
	for _, t := range group.Tasks {
		services = append(services, t.Services...)
	}
	for _, s := range services {
		if s.Connect == nil || s.Connect.SidecarService == nil || s.Connect.SidecarService.Proxy == nil {
			continue
		}
		for _, u := range s.Connect.SidecarService.Proxy.Upstreams {
			add(need{u.DestinationName, "consul", true, fmt.Sprintf("an upstream of its service %q", s.Name)})
		}
	}
	for _, t := range group.Tasks {
		for _, tmpl := range t.Templates {
			if tmpl.EmbeddedTmpl == nil {
				continue
			}
			where := fmt.Sprintf("a template of task %q", t.Name)
			for _, n := range named(*tmpl.EmbeddedTmpl, text(tmpl.LeftDelim), text(tmpl.RightDelim)) {
				n.why = where
				add(n)
			}
			for _, name := range consulNames(*tmpl.EmbeddedTmpl) {
				add(need{name, "consul", false, where})
			}
		}
		for _, key := range slices.Sorted(maps.Keys(t.Env)) {
			for _, name := range consulNames(t.Env[key]) {
				add(need{name, "consul", false, fmt.Sprintf("the variable %s of task %q", key, t.Name)})
			}
		}
	}
	return list
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// consulName is a service as Consul's DNS names it, with its tag and datacenter if they are given.
var consulName = regexp.MustCompile(`\b(?:[\w-]+\.)?([\w-]+)\.service(?:\.[\w-]+)?\.consul\b`)

func consulNames(text string) (list []string) {
	for _, m := range consulName.FindAllStringSubmatch(text, -1) {
		list = append(list, m[1])
	}
	return list
}

// functions of consul-template that name a service, with the catalog.
var functions = map[string]string{"service": "consul", "connect": "consul", "nomadService": "nomad"}

// named returns the services that a template asks for. What cannot be parsed asks for none.
func named(tmpl, left, right string) []need {
	tree := parse.New("template")
	tree.Mode = parse.SkipFuncCheck
	trees := map[string]*parse.Tree{}
	if _, err := tree.Parse(tmpl, left, right, trees); err != nil {
		return nil
	}
	var list []need
	var visit func(parse.Node)
	branch := func(b *parse.BranchNode) {
		visit(b.Pipe)
		visit(b.List)
		if b.ElseList != nil {
			visit(b.ElseList)
		}
	}
	visit = func(n parse.Node) {
		switch n := n.(type) {
		case *parse.ListNode:
			for _, each := range n.Nodes {
				visit(each)
			}
		case *parse.ActionNode:
			visit(n.Pipe)
		case *parse.IfNode:
			branch(&n.BranchNode)
		case *parse.RangeNode:
			branch(&n.BranchNode)
		case *parse.WithNode:
			branch(&n.BranchNode)
		case *parse.TemplateNode:
			if n.Pipe != nil {
				visit(n.Pipe)
			}
		case *parse.PipeNode:
			for _, c := range n.Cmds {
				visit(c)
			}
		case *parse.CommandNode:
			if f, is := n.Args[0].(*parse.IdentifierNode); is && functions[f.Ident] != "" {
				if name, known := asked(f.Ident, n.Args[1:]); known {
					list = append(list, need{name: name, provider: functions[f.Ident], mesh: f.Ident == "connect"})
				}
			}
			for _, a := range n.Args {
				visit(a)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(trees)) {
		visit(trees[name].Root)
	}
	return list
}

// query is how consul-template names a service: "tag.name@datacenter~near|filter".
var query = regexp.MustCompile(`^(?:.*\.)?([\w-]+)(?:@[^~|]*)?(?:~[^|]*)?(?:\|.*)?$`)

// asked returns the service that a call names: the first string of service and connect, which may
// be followed by filters, and the last of nomadService, which may be preceded by a number and a
// key.
func asked(function string, args []parse.Node) (name string, known bool) {
	for _, a := range args {
		s, is := a.(*parse.StringNode)
		if !is {
			continue
		}
		name, known = s.Text, true
		if function != "nomadService" {
			break
		}
	}
	m := query.FindStringSubmatch(strings.TrimSpace(name))
	if !known || m == nil {
		return "", false
	}
	return m[1], true
}
