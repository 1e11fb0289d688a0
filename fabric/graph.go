// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Protocol is the number of an IP protocol that a rule may name.
type Protocol uint8

// The protocols that rules may name, by their IANA numbers.
const (
	ICMP   Protocol = 1
	TCP    Protocol = 6
	UDP    Protocol = 17
	ICMPv6 Protocol = 58
	SCTP   Protocol = 132
)

// Protocols are all protocols that rules may name, ordered by name.
var Protocols = []Protocol{ICMP, ICMPv6, SCTP, TCP, UDP}

// ParseProtocol parses the name of a protocol, such as "tcp".
func ParseProtocol(s string) (Protocol, error) {
	var names []string
	for _, p := range Protocols {
		if p.String() == s {
			return p, nil
		}
	}
	for _, p := range Protocols {
		names = append(names, strconv.Quote(p.String()))
	}
	return 0, fmt.Errorf("protocol %q is not one of %s", s, strings.Join(names, ", "))
}

func (p Protocol) String() string {
	switch p {
	case ICMP:
		return "icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case ICMPv6:
		return "icmpv6"
	case SCTP:
		return "sctp"
	}
	return "protocol " + strconv.Itoa(int(p))
}

// HasPorts reports whether the protocol has ports. ICMP and ICMPv6 have message types instead.
func (p Protocol) HasPorts() bool { return p != ICMP && p != ICMPv6 }

// ParsePort parses a port of the protocol or, for ICMP and ICMPv6, a message type.
func (p Protocol) ParsePort(s string) (uint16, error) {
	what, bounds := "port", AllPorts
	if !p.HasPorts() {
		what, bounds = "type", AllTypes
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || uint16(n) < bounds.From || uint16(n) > bounds.To {
		return 0, fmt.Errorf("%s %q of %s is not a number from %d to %d", what, s, p, bounds.From, bounds.To)
	}
	return uint16(n), nil
}

// MarshalText implements encoding.TextMarshaler.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Protocol) UnmarshalText(b []byte) error {
	v, err := ParseProtocol(string(b))
	if err != nil {
		return err
	}
	*p = v
	return nil
}

// PortRange is a range of destination ports, or of ICMP message types, both ends included. Its text
// form is "8080" or "9000-9010".
type PortRange struct {
	From, To uint16
}

// AllPorts are all ports, AllTypes all ICMP message types.
var (
	AllPorts = PortRange{From: 1, To: 65535}
	AllTypes = PortRange{From: 0, To: 255}
)

// ParsePortRange parses a port or a range of ports: "8080" or "9000-9010".
func ParsePortRange(s string) (PortRange, error) { return parseRange(s, "port", AllPorts) }

// ParseTypeRange parses an ICMP message type or a range of types: "8" or "0-8".
func ParseTypeRange(s string) (PortRange, error) { return parseRange(s, "type", AllTypes) }

func parseRange(s, what string, bounds PortRange) (PortRange, error) {
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	number := func(s string) (uint16, error) {
		n, err := strconv.ParseUint(s, 10, 64)
		if errors.Is(err, strconv.ErrSyntax) {
			return 0, fmt.Errorf("%q is not a %s number", s, what)
		}
		if err != nil || n < uint64(bounds.From) || n > uint64(bounds.To) {
			return 0, fmt.Errorf("%s %s is outside %s", what, s, bounds)
		}
		return uint16(n), nil
	}
	f, err := number(from)
	if err != nil {
		return PortRange{}, err
	}
	t, err := number(to)
	if err != nil {
		return PortRange{}, err
	}
	if f > t {
		return PortRange{}, fmt.Errorf("%s range %q runs backwards", what, s)
	}
	return PortRange{From: f, To: t}, nil
}

func (r PortRange) String() string {
	if r.From == r.To {
		return strconv.Itoa(int(r.From))
	}
	return fmt.Sprintf("%d-%d", r.From, r.To)
}

// Contains reports whether port is in r.
func (r PortRange) Contains(port uint16) bool { return r.From <= port && port <= r.To }

// Overlap returns the ports that r and other have in common, and whether there are any.
func (r PortRange) Overlap(other PortRange) (common PortRange, ok bool) {
	common = PortRange{From: max(r.From, other.From), To: min(r.To, other.To)}
	return common, common.From <= common.To
}

// Join returns r extended by next, and whether next begins right after r.
func (r PortRange) Join(next PortRange) (joined PortRange, ok bool) {
	if int(r.To)+1 != int(next.From) {
		return PortRange{}, false
	}
	return PortRange{From: r.From, To: next.To}, true
}

// SplitPorts cuts the ports from the first to the last of the ranges, gaps included, wherever a
// range begins or ends, so that all ports of a piece are in the same ranges. The pieces are in
// order.
func SplitPorts(ranges []PortRange) []PortRange {
	var starts []int
	for _, r := range ranges {
		starts = append(starts, int(r.From), int(r.To)+1)
	}
	slices.Sort(starts)
	starts = slices.Compact(starts)
	var pieces []PortRange
	for i := 0; i+1 < len(starts); i++ {
		pieces = append(pieces, PortRange{From: uint16(starts[i]), To: uint16(starts[i+1] - 1)})
	}
	return pieces
}

// MarshalText implements encoding.TextMarshaler.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *PortRange) UnmarshalText(b []byte) error {
	v, err := parseRange(string(b), "port", PortRange{From: 0, To: 65535})
	if err != nil {
		return err
	}
	*r = v
	return nil
}

// Rule is a protocol with the destination ports that a contract opens or, for ICMP and ICMPv6, the
// message types.
type Rule struct {
	Name     string      `json:"name,omitempty"`
	Protocol Protocol    `json:"protocol"`
	Ports    []PortRange `json:"ports"`
}

// String returns the rule in the form "tcp/80,9000-9010".
func (r Rule) String() string { return r.Protocol.String() + "/" + r.PortsText() }

// PortsText returns the ports in the form "80,9000-9010".
func (r Rule) PortsText() string {
	ports := make([]string, len(r.Ports))
	for i, p := range r.Ports {
		ports[i] = p.String()
	}
	return strings.Join(ports, ",")
}

// Matches reports whether the rule opens port of protocol.
func (r Rule) Matches(protocol Protocol, port uint16) bool {
	return r.Protocol == protocol &&
		slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p.Contains(port) })
}

// ByProtocol returns what rules open as one rule for each protocol, in the order of their numbers,
// whose ranges are in order and as few as possible. The rules have no names.
func ByProtocol(rules []Rule) []Rule {
	ranges := map[Protocol][]PortRange{}
	for _, r := range rules {
		ranges[r.Protocol] = append(ranges[r.Protocol], r.Ports...)
	}
	var merged []Rule
	for _, protocol := range slices.Sorted(maps.Keys(ranges)) {
		merged = append(merged, Rule{Protocol: protocol, Ports: MergePorts(ranges[protocol])})
	}
	return merged
}

// MergePorts returns the same ports in the fewest ranges, in order. It sorts ranges.
func MergePorts(ranges []PortRange) []PortRange {
	slices.SortFunc(ranges, func(a, b PortRange) int { return int(a.From) - int(b.From) })
	var merged []PortRange
	for _, r := range ranges {
		if n := len(merged); n > 0 && int(r.From) <= int(merged[n-1].To)+1 {
			merged[n-1].To = max(merged[n-1].To, r.To)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// Position is a place in a graph file. Lines and columns start at 1. The zero Position means that
// the thing was not declared in a file.
type Position struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

func (p Position) String() string {
	if p.File == "" {
		return "-"
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Graph is the declared policy of a whole fabric: domains by name, and what operators say about all
// of them: guardrails, bindings and links.
type Graph struct {
	Domains    map[string]*Domain `json:"domains"`
	Guardrails []Guardrail        `json:"guardrails,omitempty"`
	Bindings   []Binding          `json:"bindings,omitempty"`
	Links      []LinkRule         `json:"links,omitempty"`
}

// Mode says what happens to flows that a domain or contract covers. In audit mode they pass, and
// are reported as flows that would otherwise have been dropped.
type Mode string

// The modes.
const (
	ModeEnforce Mode = ""
	ModeAudit   Mode = "audit"
)

// Labels are free-form keys and values for people and guardrails.
type Labels map[string]string

// Domain is a namespace of policy with its own owners. Services and externals share one namespace,
// because contracts refer to both in the same way.
//
// In audit mode every flow between services of the domain passes; those that no contract allows are
// reported.
type Domain struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	Labels      Labels `json:"labels,omitempty"`
	Mode        Mode   `json:"mode,omitempty"`
	// Silent is set if workloads are not told that their flows are refused.
	Silent    bool       `json:"silent,omitempty"`
	Services  []Service  `json:"services,omitempty"`
	Externals []External `json:"externals,omitempty"`
	Contracts []Contract `json:"contracts,omitempty"`
	Accepts   []Accept   `json:"accepts,omitempty"`
	Pos       Position   `json:"pos,omitzero"`
}

// Accept is a domain's consent to a contract of another domain that names its services.
type Accept struct {
	Contract Ref      `json:"contract"`
	Services []string `json:"services,omitempty"` // of this domain; empty: any
	Pos      Position `json:"pos,omitzero"`
}

// Service is a node of the graph: an identity, bound by selectors to attested properties of
// workloads. A workload has the identity if any selector matches it.
type Service struct {
	Name        string     `json:"name"`
	Description string     `json:"description,omitempty"`
	Labels      Labels     `json:"labels,omitempty"`
	Selectors   []Selector `json:"selectors"`
	Pos         Position   `json:"pos,omitzero"`
}

// External is a set of addresses outside the fabric that takes part in contracts: those of
// prefixes, of DNS names and of Consul services, or the workload's own node. As an originator it
// has prefixes only.
type External struct {
	Name        string           `json:"name"`
	Description string           `json:"description,omitempty"`
	Labels      Labels           `json:"labels,omitempty"`
	Prefixes    []netip.Prefix   `json:"prefixes,omitempty"`
	Names       []string         `json:"names,omitempty"` // patterns of MatchName
	Consul      *ConsulInstances `json:"consul,omitempty"`
	Node        bool             `json:"node,omitempty"` // what listens for workloads on their own node
	Exit        Exit             `json:"exit,omitempty"`
	Pos         Position         `json:"pos,omitzero"`
}

// Contract is an edge of the graph: its originators may open flows to its responders on the ports
// of its rules.
//
// In audit mode its flows pass and are reported. That mode is for contracts that are on trial or
// about to be removed.
type Contract struct {
	Name        string    `json:"name"`
	Description string    `json:"description,omitempty"`
	Labels      Labels    `json:"labels,omitempty"`
	Disabled    bool      `json:"disabled,omitempty"`
	Mode        Mode      `json:"mode,omitempty"`
	Expires     time.Time `json:"expires,omitzero"` // every layer stops allowing its flows at this time
	Originators []Ref     `json:"originators"`
	Responders  []Ref     `json:"responders"`
	Rules       []Rule    `json:"rules"`
	Path        Path      `json:"path,omitzero"`
	Pos         Position  `json:"pos,omitzero"`
}

// InForce reports whether the contract is enabled and unexpired at now. Consent of other domains is
// not considered.
func (c Contract) InForce(now time.Time) bool {
	return !c.Disabled && (c.Expires.IsZero() || now.Before(c.Expires))
}

// Path constrains, by labels, the links between zones that a contract's flows may take: each link
// has all required labels; then links with an avoided label and links without a preferred one are
// taken only if no other way is there; then the cost decides.
type Path struct {
	Require []string `json:"require,omitempty"`
	Prefer  []string `json:"prefer,omitempty"`
	Avoid   []string `json:"avoid,omitempty"`
}

// LabelsOf returns the labels of a service or external: the labels of its domain, overridden by its
// own, overridden by those of its binding, and "domain" and "name", which no one can declare.
func (g *Graph) LabelsOf(r Ref) Labels {
	labels := Labels{}
	if d := g.Domains[r.Domain]; d != nil {
		maps.Copy(labels, d.Labels)
	}
	switch svc, ext := g.node(r); {
	case svc != nil:
		maps.Copy(labels, svc.Labels)
	case ext != nil:
		maps.Copy(labels, ext.Labels)
	}
	b := newIndex(g).binding(r.Domain)
	maps.Copy(labels, b.Labels)
	for _, s := range b.Services {
		if s.Name == r.Name {
			maps.Copy(labels, s.Labels)
		}
	}
	labels["domain"], labels["name"] = r.Domain, r.Name
	return labels
}

// node returns the service or external of that name; both are nil if there is none.
func (g *Graph) node(r Ref) (svc *Service, ext *External) {
	d := g.Domains[r.Domain]
	if d == nil {
		return nil, nil
	}
	for i := range d.Services {
		if d.Services[i].Name == r.Name {
			return &d.Services[i], nil
		}
	}
	for i := range d.Externals {
		if d.Externals[i].Name == r.Name {
			return nil, &d.Externals[i]
		}
	}
	return nil, nil
}

func (g *Graph) sortedDomains() []*Domain {
	domains := make([]*Domain, 0, len(g.Domains))
	for _, d := range g.Domains {
		domains = append(domains, d)
	}
	slices.SortFunc(domains, func(a, b *Domain) int { return cmp.Compare(a.Name, b.Name) })
	return domains
}
