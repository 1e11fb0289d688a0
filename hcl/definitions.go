// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/sif-project/sif/fabric"
)

// The blocks and arguments of the graph language. docs/graph-reference.md and
// docs/graph.schema.json are generated from these definitions.

var (
	descriptionArg = argument{name: "description", kind: kindString, doc: "A description for people. It has no effect."}
	labelsArg      = argument{name: "labels", kind: kindLabels, doc: "Free-form keys and values for people and guardrails. The keys `domain` and `name` are reserved: they are always the names of the domain and of the service."}
)

var ruleBlock = define(definition{
	name: "rule",
	doc:  "A protocol with destination ports, or with ICMP message types.",
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
		{name: "name", kind: kindString, doc: "A name for people, unique among the rules of the block."},
		{name: "protocol", kind: kindString, required: true, values: protocolNames(), doc: "The IP protocol."},
		{name: "ports", kind: kindPorts, doc: "Destination ports from 1 to 65535, such as `8080`, or ranges, such as `\"9000-9010\"`. Required for tcp, udp and sctp."},
		{name: "types", kind: kindTypes, doc: "Message types from 0 to 255, ranges, or names, such as `\"echo-request\"`. Required for icmp and icmpv6. Answers to an echo request belong to its flow and need no rule."},
	},
})

var pathBlock = define(definition{
	name: "path", once: true,
	doc: "Constrains the links between zones that the flows of the contract take, by the labels of `link` blocks. Of the ways whose links have all required labels, that with the fewest links that have an avoided label is taken; of equal ones, that with the fewest links that lack a preferred label; then the cheapest; then the one with the fewest links. Flows within a zone take no link.",
	example: `path {
  require = ["encrypted"]
  prefer  = ["low-cost"]
  avoid   = ["metered"]
}`,
	args: []argument{
		{name: "require", kind: kindStrings, implied: "none", doc: "Labels that each link must have."},
		{name: "prefer", kind: kindStrings, implied: "none", doc: "Labels that are preferred over a lower cost."},
		{name: "avoid", kind: kindStrings, implied: "none", doc: "Labels of links that are taken only if there is no other way."},
	},
})

var selectorBlocks = []*definition{
	define(definition{
		name: "selector", label: "kind", is: string(fabric.SelectNomad), title: `selector "nomad"`,
		doc: "Matches allocations by their properties in Nomad. All arguments that are set must match.",
		example: `selector "nomad" {
  namespace = "prod"
  job       = "shop"
  group     = "web"
}`,
		args: []argument{
			{name: "job", kind: kindString, required: true, doc: "ID of the job."},
			{name: "group", kind: kindString, implied: "any", doc: "Task group of the job."},
			{name: "namespace", kind: kindString, implied: `"default"`, doc: "Nomad namespace. A selector matches in one namespace only."},
			{name: "region", kind: kindString, implied: "any", doc: "Nomad region."},
			{name: "datacenter", kind: kindString, implied: "any", doc: "Datacenter of the Nomad node."},
			{name: "node_class", kind: kindString, implied: "any", doc: "Class of the Nomad node."},
			{name: "node_pool", kind: kindString, implied: "any", doc: "Pool of the Nomad node."},
		},
	}),
	define(definition{
		name: "selector", label: "kind", is: string(fabric.SelectConsul), title: `selector "consul"`,
		doc: "Matches allocations by the service blocks of their job version, as Nomad reports them, and what nodes attach by its registration with the node's Consul agent, if an `attach` block of the domain's binding names it. All arguments that are set must match; tags and meta must match the same service block or registration.",
		example: `selector "consul" {
  service = "news-gw"
  tags    = ["v2"]
  meta    = { tier = "edge" }
}`,
		args: []argument{
			{name: "service", kind: kindString, required: true, doc: "Name of the service."},
			{name: "tags", kind: kindStrings, implied: "any", doc: "Tags, all of which the service must have."},
			{name: "meta", kind: kindLabels, implied: "any", doc: "Keys and values, all of which the meta of the service must contain."},
			{name: "namespace", kind: kindString, implied: `"default"`, doc: "Nomad namespace of the job. A selector matches in one namespace only. What is attached has none: only selectors of namespace `default` match it."},
			{name: "datacenter", kind: kindString, implied: "any", doc: "Datacenter of the Nomad node; of what is attached, Consul's."},
		},
	}),
	define(definition{
		name: "selector", label: "kind", is: string(fabric.SelectNode), title: `selector "node"`,
		doc: "Matches every workload on nodes of the fabric; what nodes attach only if an `attach` block of the domain's binding names it. At least one argument is required; all that are set must match.",
		example: `selector "node" {
  zone       = "aws"
  node_class = "batch"
}`,
		args: nodeArguments,
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

var externalConsulBlock = define(definition{
	name: "consul", once: true, id: "external-consul", title: "consul in an external",
	doc: "The instances of a Consul service that are registered outside the fabric, as they come and go.",
	example: `consul {
  service    = "postgres"
  datacenter = "dc1"
  within     = ["10.20.0.0/16"]
}`,
	args: []argument{
		{name: "service", kind: kindString, required: true, doc: "Name of the service in the Consul catalog."},
		{name: "datacenter", kind: kindString, implied: "that of the node's Consul agent", doc: "Consul datacenter."},
		{name: "within", kind: kindStrings, required: true, doc: "IPv4 and IPv6 prefixes, or single addresses. An instance with another address does not count: whoever may write the catalog could add any."},
	},
})

var externalNodeBlock = define(definition{
	name: "node", once: true, id: "external-node", title: "node in an external",
	doc:     "The workload's own node, at 169.254.1.1 and fe80::1: what listens there for workloads, such as the agents of Consul and of telemetry. A port is open only if the node's configuration exposes it (`expose`). Port 53 is the node's DNS server and needs no contract.",
	example: `node {}`,
})

var externalBlock = define(definition{
	name: "external", label: "name",
	doc: "Addresses outside the fabric that take part in contracts. As a responder it has prefixes, DNS names or instances of a Consul service, or any of them together, or it is the workload's own node. As an originator it has prefixes and nothing else. Externals and services of a domain share one namespace.",
	example: `external "payments" {
  names    = ["api.example.com", "*.cdn.example.com"]
  prefixes = ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"]
}
external "postgres" {
  consul {
    service = "postgres"
    within  = ["10.20.0.0/16"]
  }
}
external "telemetry" {
  node {}
}`,
	args: []argument{
		descriptionArg, labelsArg,
		{name: "prefixes", kind: kindStrings, implied: "none", doc: "IPv4 and IPv6 prefixes, or single addresses. Some addresses are reserved: they are reached only if a binding lists just them, whatever wider prefixes say."},
		{name: "names", kind: kindStrings, implied: "none", doc: "DNS names, in lower case and without a final dot. `\"*.example.com\"` stands for all names that end in `.example.com`. The workloads that a contract lets reach the external can resolve these names, and no other names outside the fabric."},
		{name: "exit", kind: kindString, implied: "that of the workload's zone", values: []string{string(fabric.ExitNode)}, doc: "Where flows leave the fabric: `node` for the workload's own node. Otherwise it is a processor of the zone, or the node if the zone has no switch."},
	},
	blocks: []*definition{externalConsulBlock, externalNodeBlock},
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
		{name: "responders", kind: kindStrings, required: true, doc: "Services and externals that accept them. Externals accept tcp, udp, and echo requests of icmp and icmpv6; what is on the workload's own node accepts tcp and udp."},
		{name: "enabled", kind: kindBool, implied: "true", doc: "Whether the contract allows anything."},
		modeArg("`audit`: its flows pass, and are reported as flows that would be dropped without the contract."),
		{name: "expires", kind: kindTime, implied: "never", doc: "When the contract stops allowing flows: a time in the format of RFC 3339, such as `\"2027-01-31T00:00:00Z\"`."},
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
		{name: "reject", kind: kindBool, implied: "true", doc: "Whether workloads of the domain are told at once that a flow of theirs is refused: by a TCP reset, or by an ICMP error. `false`: it is dropped in silence."},
	},
	blocks: []*definition{serviceBlock, externalBlock, contractBlock, acceptBlock},
})

var denyBlock = define(definition{
	name: "deny",
	doc:  "Forbids contracts from services and externals that match `from` to those that match `to`. They match if they have all of the labels; labels of their domain count.",
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
	doc: "A rule of the organisation that applies to all domains. It never drops a packet: a graph with a contract that breaches it is refused. A deny block without rules covers all protocols and ports.",
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

var boundServiceBlock = define(definition{
	name: "service", label: "name", id: "binding-service", title: "service in a binding",
	doc: "Labels of one service or external of the domain, besides those of the domain. They win over those of the domain.",
	example: `service "cards" {
  labels = { pci = "yes" }
}`,
	args: []argument{{name: "labels", kind: kindLabels, required: true, doc: "Keys and values. The keys `domain` and `name` are reserved."}},
})

var boundNomadBlock = define(definition{
	name: "nomad",
	doc:  "Lets the domain select workloads of jobs in a Nomad namespace. In all strings, `*` stands for any characters, also none.",
	example: `nomad {
  namespace = "prod"
  jobs      = ["shop", "shop-*"]
}`,
	args: []argument{
		{name: "namespace", kind: kindString, implied: `"default"`, doc: "Nomad namespace."},
		{name: "jobs", kind: kindStrings, implied: "all jobs of the namespace", doc: "IDs of jobs."},
	},
})

var boundConsulBlock = define(definition{
	name: "consul",
	doc:  "Lets the domain select workloads whose job has a service block of one of these names. Whoever may run a job in the namespace can write such a block. In all strings, `*` stands for any characters, also none.",
	example: `consul {
  namespace = "prod"
  services  = ["news-gw"]
}`,
	args: []argument{
		{name: "namespace", kind: kindString, implied: `"default"`, doc: "Nomad namespace of the job."},
		{name: "services", kind: kindStrings, required: true, doc: "Names of service blocks."},
	},
})

var boundNodeBlock = define(definition{
	name: "node",
	doc:  "Lets the domain select every workload on nodes, whatever its job. At least one argument is required; all that are set must match. In all strings, `*` stands for any characters, also none.",
	example: `node {
  zone = "aws1"
  node = "batch-*"
}`,
	args: nodeArguments,
})

var boundAttachBlock = define(definition{
	name: "attach",
	doc:  "Lets nodes attach workloads outside Nomad to the domain: a selector of kind `consul` matches them as it matches a service block. `node` or `node_class` must be set, to more than `*`; all that are set must match. Nothing else lets such a workload in, not even `binding \"*\"`, in which this block cannot be: whoever may write Consul's catalog could register any service there. In all strings, `*` stands for any characters, also none.",
	example: `attach {
  services = ["db"]
  zone     = "aws1"
  node     = "db-*"
}`,
	args: []argument{
		{name: "services", kind: kindStrings, required: true, doc: "Names of Consul services, registered with the node's own Consul agent."},
		{name: "zone", kind: kindString, implied: "any", doc: "Zone of the fabric."},
		{name: "node", kind: kindString, implied: "any", doc: "Node of the fabric, as its certificate says."},
		{name: "node_class", kind: kindString, implied: "any", doc: "Class of the Nomad node to which the node is bound. The Nomad client chooses it: use `node` where a stolen node must not."},
	},
})

// nodeArguments are the properties of nodes by which selectors and bindings choose them.
var nodeArguments = []argument{
	{name: "zone", kind: kindString, implied: "any", doc: "Zone of the fabric."},
	{name: "node", kind: kindString, implied: "any", doc: "Node of the fabric."},
	{name: "node_class", kind: kindString, implied: "any", doc: "Class of the Nomad node."},
	{name: "node_pool", kind: kindString, implied: "any", doc: "Pool of the Nomad node."},
}

var outsideBlock = define(definition{
	name: "outside",
	doc:  "Lets the domain use addresses and names outside the fabric, and ports of nodes. At least one argument is required.",
	example: `outside {
  prefixes   = ["192.0.2.0/24", "2001:db8::/32"]
  names      = ["api.example.com", "*.example.org"]
  ports      = [8080, "9000-9010"]
  node_ports = [8125, 4317]
}`,
	args: []argument{
		{name: "prefixes", kind: kindStrings, implied: "none", doc: "IPv4 and IPv6 prefixes, or single addresses, in which the prefixes of the domain's externals must lie. Reserved addresses are reached only if they are listed here as single addresses or as prefixes within a reserved one."},
		{name: "names", kind: kindStrings, implied: "none", doc: "DNS names that the domain's externals may have. `\"*.example.com\"` grants all names that end in `.example.com`, `\"*\"` all names."},
		{name: "ports", kind: kindPorts, implied: "none", doc: "Ports of nodes that jobs of the domain may publish as `static` ports."},
		{name: "node_ports", kind: kindPorts, implied: "none", doc: "Ports that workloads of the domain may reach on their own nodes, by externals with a `node` block."},
	},
})

var bindingBlock = define(definition{
	name: "binding", label: "domain",
	doc: "What a domain may select and use. Like a guardrail, only operators of the fabric change it. The label is the name of a domain, or `*` for all domains that have no binding of their own. What a binding does not list is not granted. `*` differs: it limits workloads (`nomad`, `consul`, `node`), `prefixes`, `names`, `ports` and `node_ports` only if it lists some. Without any binding in the graph, everything is granted; with one, a domain without a binding is granted nothing. A workload that a domain's own binding covers is bound to that domain, and other domains can select it only if their own bindings cover it too.",
	example: `binding "shop" {
  description = "Team Shop"
  labels      = { env = "prod" }
  nomad {
    namespace = "prod"
    jobs      = ["shop", "shop-*"]
  }
  outside {
    prefixes = ["192.0.2.0/24"]
    ports    = [8080]
  }
}`,
	args: []argument{
		descriptionArg,
		{name: "labels", kind: kindLabels, doc: "Labels of the domain and of everything in it, for guardrails. The domain itself can set no other values for them. In a graph with bindings, labels that guardrails name can be set in bindings only. The keys `domain` and `name` are reserved."},
	},
	blocks: []*definition{boundNomadBlock, boundConsulBlock, boundNodeBlock, boundAttachBlock, outsideBlock, boundServiceBlock},
})

var linkBlock = define(definition{
	name: "link", label: "name",
	doc: "Links the processors of two zones, or two single processors, by an encrypted tunnel between each two of them. Like a guardrail, only operators of the fabric change it. Without any link block in the graph, each two processors of different zones are linked, without labels and at the default cost. With one, only what link blocks join is linked: zones without a link of their own are reached through the processors of others.",
	example: `link "aws-gcp-private" {
  between   = ["aws1", "gcp1"]
  labels    = ["encrypted", "low-cost"]
  cost      = 10
  endpoints = "private"
}
link "everywhere" {
  between = ["*", "*"]
  labels  = ["metered"]
}`,
	args: []argument{
		descriptionArg,
		{name: "between", kind: kindStrings, required: true, doc: "The two ends, in different zones: each the name of a zone for all its processors, a processor as `\"zone/node\"`, or `\"*\"` for the processors of every zone."},
		{name: "labels", kind: kindStrings, implied: "none", doc: "Labels of the link, for the `path` of contracts."},
		{name: "cost", kind: kindNumber, bounds: [2]int{0, math.MaxUint16}, implied: strconv.Itoa(fabric.DefaultLinkCost), doc: "What a packet over the link costs. Of the ways that fit equally well, that with the lowest sum is taken."},
		{name: "endpoints", kind: kindString, implied: strconv.Quote(fabric.DefaultEndpoints), doc: "By which addresses the processors reach each other: a name from `underlay.addresses` of their configurations. `default` is the address of each node in the underlay."},
		{name: "mtu", kind: kindNumber, bounds: [2]int{fabric.MinLinkMTU, fabric.MaxLinkMTU}, implied: "`link.mtu` of the processors", doc: "The largest packet in the link, in bytes."},
		{name: "enabled", kind: kindBool, implied: "true", doc: "Whether the link is there. A link that is disabled keeps its labels and cost for later."},
	},
})

var validationBlock = define(definition{
	name: "validation",
	doc:  "Rejects invalid values of a variable.",
	example: `validation {
  condition     = var.port > 1023
  error_message = "The port must not be a privileged one."
}`,
	args: []argument{
		{name: "condition", kind: kindExpression, required: true, doc: "Must be true for a valid value. It may refer to variables."},
		{name: "error_message", kind: kindString, required: true, doc: "The error message for an invalid value."},
	},
})

var variableBlock = define(definition{
	name: "variable", label: "name",
	doc: "A value from outside the files, used as `var.<name>`. Variables are shared by all files that are read together. The value comes from `-var`, else from the last `-var-file` that sets it, else from the environment variable `SIF_VAR_<name>`, else from the default.",
	example: `variable "port" {
  type        = number
  default     = 8080
  description = "Where the API listens"
}`,
	args: []argument{
		{name: "type", kind: kindType, implied: "any", doc: "Type of the value, such as `string`, `number`, `bool` or `list(string)`. Values from `-var` and `SIF_VAR_*` are taken literally if the type is string, number or not set; otherwise they are parsed as expressions."},
		{name: "default", kind: kindExpression, implied: "none: a value must be given", doc: "The value if no other is given."},
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
	blocks: []*definition{domainBlock, guardrailBlock, bindingBlock, linkBlock, variableBlock, localsBlock},
})

func modeArg(audit string) argument {
	return argument{name: "mode", kind: kindString, values: modes, implied: `"enforce"`, doc: audit}
}

// modeEnforce is fabric.ModeEnforce as written in a graph.
const modeEnforce = "enforce"

var modes = []string{string(fabric.ModeAudit), modeEnforce}

func protocolNames() []string {
	var names []string
	for _, p := range fabric.Protocols {
		names = append(names, p.String())
	}
	return names
}

// icmpTypes are the named message types by protocol, from the IANA registries "ICMP Type Numbers"
// and "ICMPv6 'type' Numbers".
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
