// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"strings"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// maxListed is the largest number of endpoints or connections that a plan lists.
const maxListed = 20

// planText formats a plan for people.
func planText(p api.Plan) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Against revision %d:\n", p.Sequence)
	switch {
	case !p.Changed:
		b.WriteString("\nNothing to change.")
		return b.String()
	case p.Delta.Empty():
		b.WriteString("\nReachability does not change; only descriptions or positions in files differ.")
		return b.String()
	}
	b.WriteString(deltaText(p.Delta))
	if len(p.Touched) > 0 {
		fmt.Fprintf(&b, "\nAffects %s:\n", count(len(p.Touched), "live endpoint"))
		for i, t := range p.Touched {
			if i == maxListed {
				fmt.Fprintf(&b, "    and %d more\n", len(p.Touched)-maxListed)
				break
			}
			fmt.Fprintf(&b, "    %s of %s on %s%s\n", t.Endpoint, t.Service, t.Node, map[string]string{
				"selectors": " (when its admission is renewed)", "removed": " (its service is removed)",
				"binding": " (its admission may not be renewed: bindings do not let it in any more)",
			}[t.Effect])
		}
	}
	if len(p.Cut) > 0 {
		b.WriteString("\nDrops connections that nodes reported:\n")
		for i, f := range p.Cut {
			if i == maxListed {
				fmt.Fprintf(&b, "    and %d more\n", len(p.Cut)-maxListed)
				break
			}
			fmt.Fprintf(&b, "    %s to %s on %s/%d: %s, on %s\n", f.From, f.To, f.Protocol, f.Port, count(int(f.Count), "connection"), f.Node)
		}
	}
	for _, w := range p.Warnings {
		b.WriteString("\nWarning: " + w + "\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// deltaText formats the difference between two graphs for people.
func deltaText(d fabric.Delta) string {
	var b strings.Builder
	section := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		b.WriteString("\n")
		if title != "" {
			b.WriteString(title + "\n")
		}
		for _, l := range lines {
			b.WriteString("  " + l + "\n")
		}
	}
	var lines []string
	moved := map[fabric.Ref]bool{}
	for _, c := range d.Reach {
		lines = append(lines, reachText(c))
		for _, why := range c.Because {
			moved[why.Contract] = true
		}
	}
	section("", lines)

	lines = nil
	for _, c := range d.Contracts {
		if !moved[c.Contract] {
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s contract %s is %s %s", sign(c.Change), c.Contract, changed(c.Change, c.What), at(c.Pos))))
		}
	}
	section("Contracts without effect on reachability:", lines)

	lines = nil
	for _, w := range d.Waiting {
		for _, service := range w.For {
			lines = append(lines, fmt.Sprintf("! contract %s waits until domain %q accepts it for %s", w.Contract, service.Domain, service))
		}
	}
	for _, r := range d.Accepted {
		lines = append(lines, fmt.Sprintf("+ contract %s no longer waits: all domains accept it", r))
	}
	section("Consent:", lines)

	lines = nil
	title := "Services:"
	for _, n := range d.Nodes {
		what := "service"
		if n.External {
			what, title = "external", "Services and externals:"
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s is %s %s", sign(n.Change), what, n.Name, changed(n.Change, n.What), at(n.Pos))))
		for _, a := range n.Gained {
			lines = append(lines, fmt.Sprintf("  + %s is %s too", n.Name, a))
		}
		for _, a := range n.Lost {
			lines = append(lines, fmt.Sprintf("  - %s is no longer %s", n.Name, a))
		}
	}
	section(title, lines)

	lines = nil
	for _, m := range d.Modes {
		if m.Is == fabric.ModeAudit {
			lines = append(lines, fmt.Sprintf("! domain %s enters audit mode: no flow between its services is dropped", m.Domain))
		} else {
			lines = append(lines, fmt.Sprintf("! domain %s leaves audit mode: flows that no contract allows are dropped", m.Domain))
		}
	}
	for _, x := range d.Silences {
		if x.Silent {
			lines = append(lines, fmt.Sprintf("! workloads of domain %s are no longer told that a flow is refused", x.Domain))
		} else {
			lines = append(lines, fmt.Sprintf("! workloads of domain %s are told that a flow is refused", x.Domain))
		}
	}
	for _, g := range d.Guardrails {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s guardrail %s is %s %s", sign(g.Change), g.Name, g.Change, at(g.Pos))))
	}
	section("Modes and guardrails:", lines)
	section("Bindings:", bindingLines(d))
	section("Links between zones:", linkLines(d.Links))
	return b.String()
}

// linkLines says how links change.
func linkLines(changes []fabric.LinkChange) []string {
	var lines []string
	for _, l := range changes {
		name := fmt.Sprintf("link %s", l.Name)
		if l.Name == "" {
			name = "the link of all zones that a graph without link blocks implies"
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s is %s %s", sign(l.Change), name, changed(l.Change, l.What), at(l.Pos))))
	}
	return lines
}

// bindingLines says what bindings grant and withdraw.
func bindingLines(d fabric.Delta) []string {
	var lines []string
	for _, b := range d.Bindings {
		name := fmt.Sprintf("binding %q", b.Domain)
		whose := fmt.Sprintf("domain %s", b.Domain)
		if b.Domain == fabric.EveryDomain {
			whose = "each domain without a binding of its own"
		}
		if b.Domain == fabric.EveryDomain && b.Pos.File == "" && b.Change != fabric.Altered {
			name = "the binding of all domains that a graph without bindings implies"
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s is %s %s", sign(b.Change), name, b.Change, at(b.Pos))))
		for _, what := range b.Gained {
			lines = append(lines, fmt.Sprintf("  + %s %s", whose, what))
		}
		for _, what := range b.Lost {
			lines = append(lines, fmt.Sprintf("  - %s %s", whose, what))
		}
	}
	for _, e := range d.Excess {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("! without effect: %s %s", e.Why, at(e.Pos))))
	}
	return lines
}

// partyText names one end of a change; an external with what it is.
func partyText(r fabric.Ref, c fabric.ReachChange) string {
	if r == c.Outside {
		return fmt.Sprintf("external %s (%s)", r, c.OutsideIs)
	}
	return r.String()
}

// reachText formats how reachability between two services changes.
func reachText(c fabric.ReachChange) string {
	rules := make([]string, len(c.Rules))
	for i, r := range c.Rules {
		rules[i] = r.String()
	}
	on := strings.Join(rules, " ")
	from, to := partyText(c.From, c), partyText(c.To, c)
	var text string
	switch [2]fabric.Standing{c.Was, c.Is} {
	case [2]fabric.Standing{fabric.StandsDropped, fabric.StandsAllowed}:
		text = fmt.Sprintf("+ %s gains %s on %s", from, to, on)
	case [2]fabric.Standing{fabric.StandsDropped, fabric.StandsAudit}:
		text = fmt.Sprintf("+ %s gains %s on %s, in audit mode", from, to, on)
	case [2]fabric.Standing{fabric.StandsAudit, fabric.StandsAllowed}:
		text = fmt.Sprintf("+ %s may reach %s on %s, which passed in audit mode only", from, to, on)
	case [2]fabric.Standing{fabric.StandsAllowed, fabric.StandsAudit}:
		text = fmt.Sprintf("- %s reaches %s on %s in audit mode only", from, to, on)
	case [2]fabric.Standing{fabric.StandsAudit, fabric.StandsDropped}:
		text = fmt.Sprintf("- %s loses %s on %s, which passed in audit mode", from, to, on)
	default:
		text = fmt.Sprintf("- %s loses %s on %s", from, to, on)
	}
	var causes []string
	for _, w := range c.Because {
		cause := "contract " + w.Contract.String()
		if w.Contract.Domain == c.From.Domain || w.Contract.Domain == c.To.Domain {
			cause = "contract " + w.Contract.Name
		}
		if w.Contract.Name == fabric.AuditContract {
			cause = "audit mode of domain " + w.Contract.Domain
		}
		if w.Pos.File != "" {
			cause += ", " + w.Pos.String()
		}
		causes = append(causes, cause)
	}
	return text + " (" + strings.Join(causes, "; ") + ")"
}

func sign(a fabric.Alteration) string {
	switch a {
	case fabric.Added:
		return "+"
	case fabric.Removed:
		return "-"
	}
	return "~"
}

func changed(a fabric.Alteration, what []string) string {
	if len(what) == 0 {
		return string(a)
	}
	return string(a) + " (" + strings.Join(what, ", ") + ")"
}

func at(pos fabric.Position) string {
	if pos.File == "" {
		return ""
	}
	return "at " + pos.String()
}
