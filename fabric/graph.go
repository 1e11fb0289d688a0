// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Protocol is an IP protocol number that a rule may name.
type Protocol uint8

// The protocols of rules.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// ParseProtocol parses "tcp" or "udp".
func ParseProtocol(s string) (Protocol, error) {
	switch s {
	case "tcp":
		return TCP, nil
	case "udp":
		return UDP, nil
	}
	return 0, fmt.Errorf("protocol %q is not one of \"tcp\", \"udp\"", s)
}

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return "protocol " + strconv.Itoa(int(p))
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

// PortRange is a range of destination ports, both ends included. Its text
// form is "8080" or "9000-9010".
type PortRange struct {
	From, To uint16
}

// ParsePortRange parses "8080" or "9000-9010".
func ParsePortRange(s string) (PortRange, error) {
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	f, err := parsePort(from)
	if err != nil {
		return PortRange{}, err
	}
	t, err := parsePort(to)
	if err != nil {
		return PortRange{}, err
	}
	if f > t {
		return PortRange{}, fmt.Errorf("port range %q runs backwards", s)
	}
	return PortRange{From: f, To: t}, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if errors.Is(err, strconv.ErrSyntax) {
		return 0, fmt.Errorf("%q is not a port number", s)
	}
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("port %s is outside 1-65535", s)
	}
	return uint16(n), nil
}

func (r PortRange) String() string {
	if r.From == r.To {
		return strconv.Itoa(int(r.From))
	}
	return fmt.Sprintf("%d-%d", r.From, r.To)
}

// Contains reports whether port lies in r.
func (r PortRange) Contains(port uint16) bool { return r.From <= port && port <= r.To }

// MarshalText implements encoding.TextMarshaler.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *PortRange) UnmarshalText(b []byte) error {
	v, err := ParsePortRange(string(b))
	if err != nil {
		return err
	}
	*r = v
	return nil
}

// Rule names a protocol and the destination ports that a contract opens.
type Rule struct {
	Protocol Protocol    `json:"protocol"`
	Ports    []PortRange `json:"ports"`
}

// Matches reports whether the rule opens port of protocol.
func (r Rule) Matches(protocol Protocol, port uint16) bool {
	return r.Protocol == protocol &&
		slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p.Contains(port) })
}

// Position is a place in a graph file; lines and columns count from one. The
// zero Position stands for a thing that no file declares.
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

// Graph is the declared policy of a whole fabric, by domain name.
type Graph struct {
	Domains map[string]*Domain `json:"domains"`
}

// Domain is a namespace of policy with its own owners. Services and externals
// share one space of names, because contracts refer to both in the same way.
type Domain struct {
	Name      string     `json:"name"`
	Services  []Service  `json:"services,omitempty"`
	Externals []External `json:"externals,omitempty"`
	Contracts []Contract `json:"contracts,omitempty"`
	Pos       Position   `json:"pos,omitzero"`
}

// Service is a node of the graph: an identity, bound by selectors to attested
// properties of workloads. A workload has the identity if any selector matches.
type Service struct {
	Name      string     `json:"name"`
	Selectors []Selector `json:"selectors"`
	Pos       Position   `json:"pos,omitzero"`
}

// SelectorKind says whose word a selector takes for the properties of a
// workload.
type SelectorKind string

// The kinds of selectors.
const (
	SelectNomad  SelectorKind = "nomad"  // properties of a Nomad allocation
	SelectConsul SelectorKind = "consul" // service blocks of a Nomad job version
)

// Selector matches workloads by attested properties; all that are set must
// agree. Namespace is never empty in a nomad selector ("default" unless the
// graph says otherwise).
type Selector struct {
	Kind      SelectorKind `json:"kind"`
	Namespace string       `json:"namespace,omitempty"` // nomad
	Job       string       `json:"job,omitempty"`       // nomad
	Group     string       `json:"group,omitempty"`     // nomad; empty: any group
	Service   string       `json:"service,omitempty"`   // consul
	Pos       Position     `json:"pos,omitzero"`
}

func (s Selector) String() string {
	switch s.Kind {
	case SelectNomad:
		t := fmt.Sprintf("nomad(namespace=%s, job=%s", s.Namespace, s.Job)
		if s.Group != "" {
			t += ", group=" + s.Group
		}
		return t + ")"
	default:
		return fmt.Sprintf("%s(service=%s)", s.Kind, s.Service)
	}
}

// Workload is what the scheduler attests of a workload; selectors match on it
// and on nothing that the workload says of itself.
type Workload struct {
	Namespace      string
	Job            string
	Group          string
	ConsulServices []string // names of the service blocks of the group and its tasks
}

// Matches reports whether the workload has the properties that s names.
func (s Selector) Matches(w Workload) bool {
	switch s.Kind {
	case SelectNomad:
		return s.Namespace == w.Namespace && s.Job == w.Job && (s.Group == "" || s.Group == w.Group)
	case SelectConsul:
		// Whoever may run jobs in another Nomad namespace can name a service
		// block as he likes: as with nomad selectors, no namespace means
		// "default", never any.
		return w.Namespace == cmp.Or(s.Namespace, "default") && slices.Contains(w.ConsulServices, s.Service)
	}
	return false
}

// Select returns the services that w matches, in order.
func (g *Graph) Select(w Workload) []Ref {
	var refs []Ref
	for _, d := range g.Domains {
		for _, s := range d.Services {
			if slices.ContainsFunc(s.Selectors, func(sel Selector) bool { return sel.Matches(w) }) {
				refs = append(refs, Ref{d.Name, s.Name})
			}
		}
	}
	slices.SortFunc(refs, CompareRefs)
	return refs
}

// External stands for addresses outside the fabric that take part in contracts.
type External struct {
	Name     string         `json:"name"`
	Prefixes []netip.Prefix `json:"prefixes"`
	Pos      Position       `json:"pos,omitzero"`
}

// Contract is an edge of the graph: its originators may open flows to its
// responders on the ports of its rules.
type Contract struct {
	Name        string   `json:"name"`
	Disabled    bool     `json:"disabled,omitempty"`
	Originators []Ref    `json:"originators"`
	Responders  []Ref    `json:"responders"`
	Rules       []Rule   `json:"rules"`
	Path        Path     `json:"path,omitzero"`
	Pos         Position `json:"pos,omitzero"`
}

// Path constrains the links between zones that a contract's flows take, by
// their labels.
type Path struct {
	Require []string `json:"require,omitempty"`
	Prefer  []string `json:"prefer,omitempty"`
}

// node finds the service or external of that name.
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

// Problem is one reason why a graph cannot be applied.
type Problem struct {
	Pos     Position `json:"pos,omitzero"`
	Summary string   `json:"summary"`
	Remedy  string   `json:"remedy,omitempty"`
}

func (p Problem) String() string {
	s := p.Summary
	if p.Pos.File != "" {
		s = p.Pos.String() + ": " + s
	}
	if p.Remedy != "" {
		s += "; " + p.Remedy
	}
	return s
}

// Check returns everything that keeps g from being applied, in the order of
// the domains' names. A graph that decodes without diagnostics can still fail
// here: names that lead nowhere, or to another domain.
func (g *Graph) Check() []Problem {
	var problems []Problem
	report := func(pos Position, remedy, format string, args ...any) {
		problems = append(problems, Problem{Pos: pos, Summary: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	for _, d := range g.sortedDomains() {
		if err := CheckName(d.Name); err != nil {
			report(d.Pos, "", "domain: %v", err)
		}
		if d.Name == ReservedDomain {
			report(d.Pos, "choose another name", "domain %q is reserved for the identities of nodes", d.Name)
		}
		seen := map[string]Position{}
		declare := func(kind, name string, pos Position) {
			if err := CheckName(name); err != nil {
				report(pos, "", "%s: %v", kind, err)
			}
			if first, dup := seen[name]; dup {
				report(pos, "rename one of the two", "%s %q: the name is already taken at %s", kind, name, first)
				return
			}
			seen[name] = pos
		}
		for _, s := range d.Services {
			declare("service", s.Name, s.Pos)
		}
		for _, e := range d.Externals {
			declare("external", e.Name, e.Pos)
			if len(e.Prefixes) == 0 {
				report(e.Pos, "list at least one prefix", "external %q has no prefixes", e.Name)
			}
		}
		seen = map[string]Position{}
		for _, c := range d.Contracts {
			declare("contract", c.Name, c.Pos)
			g.checkContract(c, d.Name, report)
		}
	}
	return problems
}

func (g *Graph) checkContract(c Contract, domain string, report func(Position, string, string, ...any)) {
	if len(c.Rules) == 0 {
		report(c.Pos, "add a rule block", "contract %q has no rules, so it would allow nothing", c.Name)
	}
	for _, r := range c.Rules {
		if len(r.Ports) == 0 {
			report(c.Pos, "list its ports", "a rule of contract %q names no ports", c.Name)
		}
	}
	side := func(role string, refs []Ref) {
		if len(refs) == 0 {
			report(c.Pos, "name at least one service", "contract %q has no %s", c.Name, role)
		}
		for _, r := range refs {
			svc, ext := g.node(r)
			switch {
			case r.Domain != domain:
				report(c.Pos, "name services of this domain only", "contract %q names %s of another domain, which this version does not support", c.Name, r)
			case svc == nil && ext == nil:
				report(c.Pos, g.suggest(r), "contract %q names an unknown service %q among its %s", c.Name, r.Name, role)
			case ext != nil && role == "responders":
				report(c.Pos, "externals may only originate in this version", "contract %q has external %q among its responders", c.Name, r.Name)
			}
		}
	}
	side("originators", c.Originators)
	side("responders", c.Responders)
}

// suggest proposes the declared name that is nearest to an unknown one.
func (g *Graph) suggest(r Ref) string {
	best, distance := "", 3
	if d := g.Domains[r.Domain]; d != nil {
		try := func(name string) {
			if n := editDistance(r.Name, name); n < distance {
				best, distance = name, n
			}
		}
		for _, s := range d.Services {
			try(s.Name)
		}
		for _, e := range d.Externals {
			try(e.Name)
		}
	}
	if best == "" {
		return fmt.Sprintf("declare service %q or correct the name", r.Name)
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// editDistance is the Levenshtein distance of a and b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

func (g *Graph) sortedDomains() []*Domain {
	domains := make([]*Domain, 0, len(g.Domains))
	for _, d := range g.Domains {
		domains = append(domains, d)
	}
	slices.SortFunc(domains, func(a, b *Domain) int { return cmp.Compare(a.Name, b.Name) })
	return domains
}
