// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package firewall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/sif-project/sif/internal/leftover"
)

// Leftovers returns what the firewall is on this node: its table, and its rules in the chains of
// iptables. The rules go first in the table's place: alone they let packets pass.
func Leftovers() ([]leftover.Leftover, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("look for the node's firewall: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("look for the node's firewall: list the chains of nftables: %w", err)
	}
	f := New(Config{})
	var list []leftover.Leftover
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
			list = append(list, leftover.Leftover{Kind: "iptables rule", Name: program + " -A " + rule, Remove: func(context.Context) error {
				return withdraw(program, rule)
			}})
		}
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return list, errors.Join(append(errs, fmt.Errorf("list the tables of nftables: %w", err))...)
	}
	if slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName }) {
		list = append(list, leftover.Leftover{Kind: "nftables table", Name: "inet " + tableName, Remove: func(context.Context) error {
			return f.removeTable()
		}})
	}
	return list, errors.Join(errs...)
}

// admitted returns the rules that Admit inserted with a program, as it prints them.
func admitted(program string) (rules []string, err error) {
	text, err := run(program, "-w", "-S")
	for line := range strings.Lines(text) {
		if rule, is := strings.CutPrefix(strings.TrimSpace(line), "-A "); is && strings.Contains(rule, "--comment "+admitComment+" ") {
			rules = append(rules, rule)
		}
	}
	return rules, err
}

// withdraw removes a rule that Admit inserted.
func withdraw(program, rule string) error {
	_, err := run(program, append([]string{"-w", "-D"}, strings.Fields(rule)...)...)
	return err
}
