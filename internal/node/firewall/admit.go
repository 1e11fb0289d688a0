// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/sif-project/sif/internal/wellknown"
)

// A packet must pass all tables: what the own one accepts, another one may still drop. Docker sets
// the policy of iptables' FORWARD chain to DROP; hardened hosts do so with INPUT. In the tables of
// iptables the node therefore inserts rules of its own, as other networks do. Into other tables,
// which have owners that would not expect it, it does not write; it names the chain and the remedy.

// admitComment marks the rules that Admit inserts.
const admitComment = "sif-fabric"

// toolTimeout bounds a call of iptables.
const toolTimeout = 5 * time.Second

// anyOfOurs matches, as iptables and nft write it, every interface of the fabric.
const (
	anyOfOurs    = wellknown.InterfacePrefix + "+"
	anyOfOursNft = wellknown.InterfacePrefix + "*"
)

// iptables is one of the two implementations, for one address family.
type iptables struct {
	family nftables.TableFamily // of nf_tables; unspecified for the older implementation
	tables string               // the file that lists its tables; empty for nf_tables
	names  []string             // of the program, in order of preference
	says   string               // what the program's version contains
}

var allIptables = []iptables{
	{nftables.TableFamilyIPv4, "", []string{"iptables-nft", "iptables"}, "nf_tables"},
	{nftables.TableFamilyIPv6, "", []string{"ip6tables-nft", "ip6tables"}, "nf_tables"},
	{nftables.TableFamilyUnspecified, "/proc/thread-self/net/ip_tables_names", []string{"iptables-legacy", "iptables"}, "legacy"},
	{nftables.TableFamilyUnspecified, "/proc/thread-self/net/ip6_tables_names", []string{"ip6tables-legacy", "ip6tables"}, "legacy"},
}

// program returns the program of an implementation, or "" if it is not installed.
func (f *Firewall) program(i iptables) string {
	for _, name := range i.names {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if _, known := f.versions[path]; !known {
			text, err := run(path, "--version")
			if err != nil {
				continue
			}
			f.versions[path] = text
		}
		if strings.Contains(f.versions[path], i.says) {
			return path
		}
	}
	return ""
}

// present reports whether the implementation has a table "filter". One that has none drops nothing,
// and listing it would make it.
func (i iptables) present(chains []*nftables.Chain) bool {
	if i.tables != "" {
		text, err := os.ReadFile(i.tables)
		return err == nil && slices.Contains(strings.Fields(string(text)), "filter")
	}
	return slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return i.owns(c) })
}

// owns reports whether a chain of nf_tables is a base chain of the implementation.
func (i iptables) owns(c *nftables.Chain) bool {
	return c.Table.Family == i.family && c.Table.Name == "filter" && slices.Contains([]string{"INPUT", "FORWARD", "OUTPUT"}, c.Name)
}

// Obstacle is a chain of another table that drops what the fabric forwards.
type Obstacle struct {
	Subject, Detail string // a sentence
	Remedy          string // commands
}

func (o Obstacle) String() string { return o.Subject + " " + o.Detail + ": " + o.Remedy }

// Admit inserts what the chains of iptables need to let the fabric's packets pass, and returns what
// was missing, and what stands against the fabric elsewhere. It makes no tables or chains.
func (f *Firewall) Admit() (repaired []string, obstacles []Obstacle, err error) {
	return f.others(true)
}

// Look returns what Admit would insert, and what stands against the fabric. It changes nothing.
func (f *Firewall) Look() (missing []string, obstacles []Obstacle, err error) { return f.others(false) }

func (f *Firewall) others(insert bool) (missing []string, obstacles []Obstacle, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn, err := nftables.New()
	if err != nil {
		return nil, nil, fmt.Errorf("look at other firewalls: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, nil, fmt.Errorf("look at other firewalls: list the chains of nftables: %w", err)
	}
	var errs []error
	managed := map[nftables.TableFamily]bool{}
	for _, i := range allIptables {
		if !i.present(chains) {
			continue
		}
		program := f.program(i)
		if program == "" {
			continue
		}
		if i.tables == "" {
			managed[i.family] = true
		}
		rules, err := f.admitIn(program, insert)
		missing = append(missing, rules...)
		errs = append(errs, err)
	}
	for _, c := range chains {
		ours := c.Table.Name == tableName && c.Table.Family == nftables.TableFamilyINet
		known := slices.ContainsFunc(allIptables, func(i iptables) bool { return managed[i.family] && i.owns(c) })
		if ours || known {
			continue
		}
		if obstacle, is := f.judge(conn, chains, c); is {
			obstacles = append(obstacles, obstacle)
		}
	}
	return missing, obstacles, errors.Join(errs...)
}

// wanted returns the rules that a chain of iptables must have, as `iptables -S` prints them,
// without comment and target.
func (f *Firewall) wanted(chain string) []string {
	side, port := "-i", "--dport"
	if chain == "OUTPUT" {
		side, port = "-o", "--sport"
	}
	list := []string{side + " " + anyOfOurs}
	if chain == "FORWARD" {
		return append(list, "-o "+anyOfOurs)
	}
	if f.config.Underlay == "" {
		return list
	}
	open := f.open()
	for _, link := range open.links {
		list = append(list, fmt.Sprintf("%s %s -p udp -m udp %s %d", side, f.config.Underlay, port, link))
	}
	if open.engine != 0 {
		list = append(list, fmt.Sprintf("%s %s -p tcp -m tcp %s %d", side, f.config.Underlay, port, open.engine))
	}
	return list
}

// admitIn returns the missing rules of one program's chains, and inserts them if it is told to.
func (f *Firewall) admitIn(program string, insert bool) (missing []string, err error) {
	text, err := run(program, "-w", "-S")
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for _, chain := range []string{"INPUT", "FORWARD", "OUTPUT"} {
		end := slices.IndexFunc(lines, func(l string) bool {
			return strings.HasPrefix(l, "-A "+chain+" -j DROP") || strings.HasPrefix(l, "-A "+chain+" -j REJECT")
		})
		if end < 0 && !slices.Contains(lines, "-P "+chain+" DROP") {
			continue // it does not drop by itself what it does not know
		}
		if end < 0 {
			end = len(lines)
		}
		for _, rule := range f.wanted(chain) {
			rule += " -m comment --comment " + admitComment + " -j ACCEPT"
			if slices.Contains(lines[:end], "-A "+chain+" "+rule) {
				continue
			}
			if insert {
				if _, err := run(program, append([]string{"-w", "-I", chain, "1"}, strings.Fields(rule)...)...); err != nil {
					return missing, err
				}
			}
			missing = append(missing, fmt.Sprintf("%s -I %s %s", program, chain, rule))
		}
	}
	return missing, nil
}

// withdraw removes all rules that Admit inserted.
func (f *Firewall) withdraw(conn *nftables.Conn) error {
	chains, err := conn.ListChains()
	if err != nil {
		return fmt.Errorf("list the chains of nftables: %w", err)
	}
	var errs []error
	for _, i := range allIptables {
		program := ""
		if i.present(chains) {
			program = f.program(i)
		}
		if program == "" {
			continue
		}
		rules, err := admitted(program)
		errs = append(errs, err)
		for _, rule := range rules {
			errs = append(errs, withdraw(program, rule))
		}
	}
	return errors.Join(errs...)
}

func run(program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}

// judge reports whether a chain of another table drops what the fabric forwards, and why.
func (f *Firewall) judge(conn *nftables.Conn, chains []*nftables.Chain, c *nftables.Chain) (Obstacle, bool) {
	if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Table.Family == nftables.TableFamilyBridge || c.Table.Family == nftables.TableFamilyNetdev {
		return Obstacle{}, false
	}
	why := ""
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		why = "has the policy drop"
	}
	for _, other := range chains {
		if other.Table.Name != c.Table.Name || other.Table.Family != c.Table.Family {
			continue
		}
		rules, err := conn.GetRules(c.Table, other)
		if err != nil {
			continue // it has expressions that we do not know
		}
		for _, r := range rules {
			switch {
			case mentionsUs(r.Exprs):
				return Obstacle{}, false // its owner knows of the fabric
			case other.Name == c.Name && dropsAll(r.Exprs):
				why = "ends by dropping everything"
			}
		}
	}
	if why == "" {
		return Obstacle{}, false
	}
	family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}[c.Table.Family]
	remedy := fmt.Sprintf("nft 'insert rule %[1]s %[2]s %[3]s iifname \"%[4]s\" accept; insert rule %[1]s %[2]s %[3]s oifname \"%[4]s\" accept'",
		family, c.Table.Name, c.Name, anyOfOursNft)
	if c.Table.Name == "firewalld" {
		remedy = "firewall-cmd --permanent --zone=trusted --add-interface=" + anyOfOurs + " && firewall-cmd --reload"
	}
	return Obstacle{
		fmt.Sprintf("nftables chain %s %s %s", family, c.Table.Name, c.Name),
		why + ", and no rule of that table names the fabric's interfaces, so endpoints of this node cannot be reached", remedy,
	}, true
}

// mentionsUs reports whether a rule compares an interface with the names of the fabric's.
func mentionsUs(exprs []expr.Any) bool {
	for i, e := range exprs {
		meta, is := e.(*expr.Meta)
		if !is || meta.Key != expr.MetaKeyIIFNAME && meta.Key != expr.MetaKeyOIFNAME || i+1 == len(exprs) {
			continue
		}
		if is, ok := exprs[i+1].(*expr.Cmp); ok && bytes.HasPrefix(is.Data, []byte(wellknown.InterfacePrefix)) {
			return true
		}
	}
	return false
}

// dropsAll reports whether a rule drops every packet.
func dropsAll(exprs []expr.Any) bool {
	drops := false
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			drops = true
		case *expr.Verdict:
			drops = drops || e.Kind == expr.VerdictDrop
		default:
			return false
		}
	}
	return drops
}
