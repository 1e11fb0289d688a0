// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"maps"
	"slices"

	"github.com/sif-project/sif/fabric"
)

// What the language of graphs consists of. docs/graph-reference.md and
// docs/graph.schema.json are generated from it.

var (
	descriptionArg = argument{name: "description", kind: kindString, doc: "What it is for, for people."}
	labelsArg      = argument{name: "labels", kind: kindLabels, doc: "Free names and values that people and guardrails go by. The keys `domain` and `name` are taken: they always are the names of the domain and of the service."}
)

var ruleBlock = define(definition{
	name: "rule",
	doc:  "A protocol and what of it is meant: destination ports, or types of ICMP messages.",
	example: `rule {
  name     = "web"
  protocol = "tcp"
  ports    = [80, "8000-8099"]
}
rule {
  protocol = "icmp"
  types    = ["echo-request"]
}`,
	args: []argument{
		{name: "name", kind: kindString, doc: "A name for people, unlike those of the block's other rules."},
		{name: "protocol", kind: kindString, required: true, values: protocolNames(), doc: "The IP protocol."},
		{name: "ports", kind: kindPorts, doc: "Destination ports from 1 to 65535, such as `8080`, or ranges, such as `\"9000-9010\"`. Required for tcp, udp and sctp."},
		{name: "types", kind: kindTypes, doc: "Types of messages from 0 to 255, ranges of them, or names, such as `\"echo-request\"`. Required for icmp and icmpv6. Answers to an echo request belong to its flow and need no rule."},
	},
})

var pathBlock = define(definition{
	name: "path", once: true,
	doc: "Constrains the links between zones that the flows of the contract take, by labels of the links.",
	example: `path {
  require = ["encrypted"]
  prefer  = ["low-cost"]
}`,
	args: []argument{
		{name: "require", kind: kindStrings, doc: "Labels that each link must have."},
		{name: "prefer", kind: kindStrings, doc: "Labels that are looked for before the cost."},
	},
})

var selectorBlocks = []*definition{
	define(definition{
		name: "selector", label: "kind", is: string(fabric.SelectNomad), title: `selector "nomad"`,
		doc: "Matches allocations by what Nomad says of them. All arguments that are set must agree.",
		example: `selector "nomad" {
  namespace = "prod"
  job       = "shop"
  group     = "web"
}`,
		args: []argument{
			{name: "job", kind: kindString, required: true, doc: "ID of the job."},
			{name: "group", kind: kindString, implied: "any", doc: "Task group of the job."},
			{name: "namespace", kind: kindString, implied: `"default"`, doc: "Nomad namespace; never any."},
			{name: "region", kind: kindString, implied: "any", doc: "Nomad region."},
			{name: "datacenter", kind: kindString, implied: "any", doc: "Datacenter of the Nomad node."},
			{name: "node_class", kind: kindString, implied: "any", doc: "Class of the Nomad node."},
			{name: "node_pool", kind: kindString, implied: "any", doc: "Pool of the Nomad node."},
		},
	}),
	define(definition{
		name: "selector", label: "kind", is: string(fabric.SelectConsul), title: `selector "consul"`,
		doc: "Matches allocations by the service blocks of their job version, as Nomad reports them. All arguments that are set must agree, the tags and meta with one and the same service block.",
		example: `selector "consul" {
  service = "news-gw"
  tags    = ["v2"]
  meta    = { tier = "edge" }
}`,
		args: []argument{
			{name: "service", kind: kindString, required: true, doc: "Name of the service."},
			{name: "tags", kind: kindStrings, implied: "any", doc: "Tags, all of which the service has."},
			{name: "meta", kind: kindLabels, implied: "any", doc: "Keys and values, all of which the service has in its meta."},
			{name: "namespace", kind: kindString, implied: `"default"`, doc: "Nomad namespace of the job; never any."},
			{name: "datacenter", kind: kindString, implied: "any", doc: "Datacenter of the node."},
		},
	}),
	define(definition{
		name: "selector", label: "kind", is: string(fabric.SelectNode), title: `selector "node"`,
		doc: "Matches every workload on nodes of the fabric. At least one argument is needed; all that are set must agree.",
		example: `selector "node" {
  zone       = "aws"
  node_class = "batch"
}`,
		args: []argument{
			{name: "zone", kind: kindString, implied: "any", doc: "Zone of the fabric."},
			{name: "node", kind: kindString, implied: "any", doc: "Node of the fabric."},
			{name: "node_class", kind: kindString, implied: "any", doc: "Class of the Nomad node."},
			{name: "node_pool", kind: kindString, implied: "any", doc: "Pool of the Nomad node."},
		},
	}),
}

var serviceBlock = define(definition{
	name: "service", label: "name",
	doc: "A node of the graph: an identity that workloads have if any of its selectors matches them.",
	example: `service "web" {
  description = "What customers see"
  labels      = { tier = "edge" }
  selector "nomad" {
    job   = "shop"
    group = "web"
  }
}`,
	args:   []argument{descriptionArg, labelsArg},
	blocks: selectorBlocks,
})

var externalBlock = define(definition{
	name: "external", label: "name",
	doc: "Addresses outside the fabric that take part in contracts, as originators or as responders. It shares one space of names with services.",
	example: `external "office" {
  prefixes = ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"]
}`,
	args: []argument{
		descriptionArg, labelsArg,
		{name: "prefixes", kind: kindStrings, required: true, doc: "IPv4 and IPv6 prefixes. An address stands for itself alone."},
	},
})

var contractBlock = define(definition{
	name: "contract", label: "name",
	doc: "An edge of the graph: its originators may open flows to its responders on the ports of its rules. What no contract allows is dropped. A contract that names a service of another domain, written `domain/service`, waits until that domain accepts it.",
	example: `contract "storefront" {
  originators = ["web", "partners/portal"]
  responders  = ["api"]
  expires     = "2027-01-31T00:00:00Z"
  rule {
    protocol = "tcp"
    ports    = [8080]
  }
}`,
	args: []argument{
		descriptionArg, labelsArg,
		{name: "originators", kind: kindStrings, required: true, doc: "Services and externals that may open flows."},
		{name: "responders", kind: kindStrings, required: true, doc: "Services and externals that take them. Flows to externals are part of the graph, but not enforced yet: they are dropped."},
		{name: "enabled", kind: kindBool, implied: "true", doc: "Whether the contract allows anything."},
		modeArg("`audit`: its flows pass, and are reported as what would have been dropped without it."),
		{name: "expires", kind: kindTime, implied: "never", doc: "When the contract ends by itself, in every layer, in RFC 3339, such as `\"2027-01-31T00:00:00Z\"`."},
	},
	blocks: []*definition{ruleBlock, pathBlock},
})

var acceptBlock = define(definition{
	name: "accept", label: "contract",
	doc: "Consents to a contract of another domain that names services of this one. The label is `domain/contract`.",
	example: `accept "partners/portal" {
  services = ["api"]
}`,
	args: []argument{
		{name: "services", kind: kindStrings, implied: "all that the contract names", doc: "Services of this domain that the contract may name."},
	},
})

var domainBlock = define(definition{
	name: "domain", label: "name",
	doc: "A namespace of policy with its own owners. It may be spread over several files, with one block in each.",
	example: `domain "shop" {
  description = "The shop"
  labels      = { env = "prod" }
}`,
	args: []argument{
		descriptionArg, labelsArg,
		modeArg("`audit`: every flow between services of the domain passes; those that no contract allows are reported."),
	},
	blocks: []*definition{serviceBlock, externalBlock, contractBlock, acceptBlock},
})

var denyBlock = define(definition{
	name: "deny",
	doc:  "Says from where to where no contract may lead. It takes services and externals with all of the labels, those of their domain included.",
	example: `deny {
  from = { env = "dev" }
  to   = { pci = "yes" }
  rule {
    protocol = "tcp"
    ports    = ["1-65535"]
  }
}`,
	args: []argument{
		{name: "from", kind: kindLabels, implied: "everything", doc: "Labels of originators."},
		{name: "to", kind: kindLabels, implied: "everything", doc: "Labels of responders."},
	},
	blocks: []*definition{ruleBlock},
})

var guardrailBlock = define(definition{
	name: "guardrail", label: "name",
	doc: "A rule of the organisation above all domains. It never drops a packet: a graph with a contract that breaks it is refused. Without rules a deny block is about all protocols and ports.",
	example: `guardrail "no-dev-to-pci" {
  description = "Card data stays in production"
  deny {
    from = { env = "dev" }
    to   = { pci = "yes" }
  }
}`,
	args:   []argument{descriptionArg},
	blocks: []*definition{denyBlock},
})

var validationBlock = define(definition{
	name: "validation",
	doc:  "Refuses values of a variable.",
	example: `validation {
  condition     = var.port > 1023
  error_message = "The port must not be a privileged one."
}`,
	args: []argument{
		{name: "condition", kind: kindExpression, required: true, doc: "True for values that may be. It may refer to variables."},
		{name: "error_message", kind: kindString, required: true, doc: "What to say of values that may not."},
	},
})

var variableBlock = define(definition{
	name: "variable", label: "name",
	doc: "A value from outside the files, used as `var.<name>`. Variables are shared by all files that are read together. The value is that of `-var`, else of the last `-var-file` that has one, else of the environment variable `SIF_VAR_<name>`, else the default.",
	example: `variable "port" {
  type        = number
  default     = 8080
  description = "Where the API listens"
}`,
	args: []argument{
		{name: "type", kind: kindType, implied: "any", doc: "Type of the value, such as `string`, `number`, `bool` or `list(string)`. With `-var` and `SIF_VAR_*`, values of strings, numbers and variables without a type are taken as they are; others are expressions."},
		{name: "default", kind: kindExpression, implied: "none: a value must be given", doc: "Value that holds unless another is given."},
		descriptionArg,
	},
	blocks: []*definition{validationBlock},
})

var localsBlock = define(definition{
	name: "locals",
	doc:  "Names for values, used as `local.<name>` in all files that are read together. There may be several such blocks.",
	example: `locals {
  office = ["192.0.2.0/24", "2001:db8::/32"]
}`,
	free: "Any expression. It may refer to variables and other locals.",
})

var graphFile = define(definition{
	title:  "graph",
	blocks: []*definition{domainBlock, guardrailBlock, variableBlock, localsBlock},
})

func modeArg(audit string) argument {
	return argument{name: "mode", kind: kindString, values: modes, implied: `"enforce"`, doc: audit}
}

// modeEnforce is how the language writes fabric.ModeEnforce.
const modeEnforce = "enforce"

var modes = []string{string(fabric.ModeAudit), modeEnforce}

func protocolNames() []string {
	var names []string
	for _, p := range fabric.Protocols {
		names = append(names, p.String())
	}
	return names
}

// icmpTypes are the types of messages that have names, by protocol: from the
// registries of IANA, "ICMP Type Numbers" and "ICMPv6 'type' Numbers".
var icmpTypes = map[fabric.Protocol]map[string]uint16{
	fabric.ICMP: {
		"echo-reply": 0, "destination-unreachable": 3, "redirect": 5, "echo-request": 8,
		"router-advertisement": 9, "router-solicitation": 10, "time-exceeded": 11,
		"parameter-problem": 12, "timestamp-request": 13, "timestamp-reply": 14,
	},
	fabric.ICMPv6: {
		"destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4,
		"echo-request": 128, "echo-reply": 129, "router-solicitation": 133, "router-advertisement": 134,
		"neighbor-solicitation": 135, "neighbor-advertisement": 136, "redirect": 137,
	},
}

func icmpTypeNames(p fabric.Protocol) []string { return slices.Sorted(maps.Keys(icmpTypes[p])) }
