// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	hcl2 "github.com/hashicorp/hcl/v2"

	"github.com/sif-project/sif/fabric"
)

func (d *decoder) binding(b *hcl2.Block) item {
	bound := fabric.Binding{Domain: b.Labels[0], Pos: position(labelRange(b))}
	where := subject{kind: "binding", label: bound.Domain}
	content := d.content(b.Body, bindingBlock.schema, where)
	bound.Description, bound.Labels = d.description(content), d.labels(content)
	services := map[string]hcl2.Range{}
	for _, b := range content.Blocks {
		switch b.Type {
		case "service":
			bound.Services = append(bound.Services, d.boundService(b, bound.Domain, services))
		case "nomad":
			content := d.content(b.Body, boundNomadBlock.schema, where.of("a nomad block"))
			n := fabric.NomadScope{Namespace: d.namespace(content)}
			n.Jobs = d.patterns(content, "jobs", `Name at least one job, such as "shop-*", or remove the argument for all jobs of the namespace.`)
			bound.Nomad = append(bound.Nomad, n)
		case "consul":
			content := d.content(b.Body, boundConsulBlock.schema, where.of("a consul block"))
			c := fabric.ConsulScope{Namespace: d.namespace(content)}
			c.Services = d.patterns(content, "services", `Name at least one service, such as "shop-*".`)
			bound.Consul = append(bound.Consul, c)
		case "node":
			where := where.of("a node block")
			content := d.content(b.Body, boundNodeBlock.schema, where)
			if len(content.Attributes) == 0 {
				d.report(errorAt(b.DefRange, expected(boundNodeBlock.schema, where), "the block names no property, so it would cover every node"))
			}
			bound.Nodes = append(bound.Nodes, fabric.NodeScope{
				Zone: d.nameAttr(content, "zone"), Node: d.nameAttr(content, "node"),
				NodeClass: d.nameAttr(content, "node_class"), NodePool: d.nameAttr(content, "node_pool"),
			})
		case "attach":
			bound.Attach = append(bound.Attach, d.attachScope(b, bound.Domain, where.of("an attach block")))
		case "outside":
			bound.Outside = append(bound.Outside, d.outsideGrants(b, where.of("an outside block")))
		}
	}
	if len(content.Blocks) == 0 && bound.Domain != fabric.EveryDomain {
		d.report(warningAt(labelRange(b), `What it should select needs a block such as: nomad { jobs = ["shop-*"] }.`, "%s grants nothing", where))
	}
	return item{kind: b.Type, name: bound.Domain, place: labelRange(b), value: bound, diags: d.said()}
}

func (d *decoder) attachScope(b *hcl2.Block, domain string, where subject) fabric.AttachScope {
	before := len(d.diags)
	content := d.content(b.Body, boundAttachBlock.schema, where)
	a := fabric.AttachScope{
		Services: d.patterns(content, "services", `Name at least one Consul service, such as "shop-*".`),
		Zone:     d.nameAttr(content, "zone"), Node: d.nameAttr(content, "node"), NodeClass: d.nameAttr(content, "node_class"),
	}
	if domain == fabric.EveryDomain {
		d.report(errorAt(b.DefRange, "Write it in the binding of a domain.", "what a node attaches is bound to a domain of its own"))
	} else if fault, remedy := a.NodeFault(); fault != "" && len(d.diags) == before {
		d.report(errorAt(b.DefRange, sentence(remedy), "%s %s", where, fault))
	}
	return a
}

func (d *decoder) boundService(b *hcl2.Block, domain string, seen map[string]hcl2.Range) fabric.BoundService {
	s, place := fabric.BoundService{Name: b.Labels[0]}, labelRange(b)
	switch first, dup := seen[s.Name]; {
	case fabric.CheckName(s.Name) != nil:
		d.report(errorAt(place, "Name a service or an external of the domain.", "%s", fabric.CheckName(s.Name)))
	case dup:
		d.report(errorAt(place, "Merge the two blocks.", "service %q already has a block at %s", s.Name, position(first)))
	case domain == fabric.EveryDomain:
		d.report(errorAt(place, "Write it in the binding of a domain.", "service %q is of no single domain", s.Name))
	}
	seen[s.Name] = place
	content := d.content(b.Body, boundServiceBlock.schema, subject{kind: "service", label: s.Name})
	s.Labels = d.labels(content)
	if attr := content.Attributes["labels"]; attr != nil && s.Labels != nil && len(s.Labels) == 0 {
		d.emptyList(attr, "Set at least one label, or remove the block.", "argument %q has no labels", "labels")
	}
	return s
}

func (d *decoder) namespace(content *hcl2.BodyContent) string {
	if content.Attributes["namespace"] == nil {
		return fabric.DefaultNamespace
	}
	return d.nameAttr(content, "namespace")
}

// patterns decodes a list that must not be empty if it is there.
func (d *decoder) patterns(content *hcl2.BodyContent, name, remedy string) []string {
	list := d.stringList(content, name)
	if attr := content.Attributes[name]; attr != nil && list != nil && len(list) == 0 {
		d.emptyList(attr, remedy, "argument %q lists nothing", name)
	}
	return values(list)
}

func (d *decoder) outsideGrants(b *hcl2.Block, where subject) fabric.OutsideGrants {
	var o fabric.OutsideGrants
	before := len(d.diags)
	content := d.content(b.Body, outsideBlock.schema, where)
	if attr := content.Attributes["prefixes"]; attr != nil {
		o.Prefixes = d.prefixes(content, attr, where.String())
	}
	if attr := content.Attributes["names"]; attr != nil {
		o.Names = d.names(content, attr, fabric.GrantedNameFault, where.String())
	}
	ports := func(name string) []fabric.PortRange {
		attr := content.Attributes[name]
		if attr == nil {
			return nil
		}
		return d.portList(attr, fabric.TCP, "ports", `List ports, such as 8080 or "9000-9010".`, where.String())
	}
	o.Ports, o.NodePorts = ports("ports"), ports("node_ports")
	for _, p := range o.NodePorts {
		if fault, remedy := fabric.NodePortFault(p); fault != "" {
			d.report(errorAt(content.Attributes["node_ports"].Expr.Range(), sentence(remedy), "%s", fault))
		}
	}
	if len(content.Attributes) == 0 && len(d.diags) == before {
		d.report(errorAt(b.DefRange, expected(outsideBlock.schema, where), "%s grants nothing", where))
	}
	return o
}
