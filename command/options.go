// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/mitchellh/go-wordwrap"
	"github.com/posener/complete"
)

// helpWidth is the width of help texts, in columns.
const helpWidth = 80

// newOptions returns a section of options under its title. The usage of an option names its value
// in backquotes, as package flag has it: help and completion follow from that.
func newOptions(title string) *flag.FlagSet { return flag.NewFlagSet(title, flag.ContinueOnError) }

// mergeOptions returns the options of all sections.
func mergeOptions(sections []*flag.FlagSet) *flag.FlagSet {
	all := newOptions("")
	all.SetOutput(io.Discard) // errors of Parse are for the caller to show
	for _, s := range sections {
		s.VisitAll(func(f *flag.Flag) { all.Var(f.Value, f.Name, f.Usage) })
	}
	return all
}

// helpOfOptions is the help of all sections, in their order.
func helpOfOptions(sections []*flag.FlagSet) string {
	var b strings.Builder
	for _, s := range sections {
		fmt.Fprintf(&b, "\n\n%s:", s.Name())
		s.VisitAll(func(f *flag.Flag) {
			value, usage := unquoteUsage(f)
			if value != "" {
				value = "=<" + value + ">"
			}
			const indent = "    "
			text := wordwrap.WrapString(usage, uint(helpWidth-len(indent)))
			fmt.Fprintf(&b, "\n\n  -%s%s\n%s%s", f.Name, value, indent, strings.ReplaceAll(text, "\n", "\n"+indent))
		})
	}
	return b.String()
}

// predictOptions completes the options of all sections.
func predictOptions(sections []*flag.FlagSet) complete.Flags {
	flags := complete.Flags{}
	for _, s := range sections {
		s.VisitAll(func(f *flag.Flag) { flags["-"+f.Name] = predictValue(f) })
	}
	return flags
}

// predictValue completes the value of an option by the name of the value.
func predictValue(f *flag.Flag) complete.Predictor {
	switch value, _ := unquoteUsage(f); {
	case value == "":
		return complete.PredictNothing
	case value == "bool":
		return complete.PredictSet("true", "false")
	case value == "path":
		return complete.PredictFiles("*")
	case strings.Contains(value, "|"):
		return complete.PredictSet(strings.Split(value, "|")...)
	}
	return complete.PredictAnything
}

// unquoteUsage returns the name of an option's value, and the usage. A switch that is on by default
// takes "bool", other switches take no value.
func unquoteUsage(f *flag.Flag) (value, usage string) {
	value, usage = flag.UnquoteUsage(f)
	if value == "" && f.DefValue == "true" {
		value = "bool"
	}
	return value, usage
}

// optionalUint parses an option into a number that stays nil unless the option is given.
func optionalUint(p **uint64) func(string) error {
	*p = nil
	return func(s string) error {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not a number", s)
		}
		*p = &n
		return nil
	}
}

// stringList is an option that may be given several times.
type stringList []string

func (l *stringList) String() string { return strings.Join(*l, " ") }

// Set implements flag.Value.
func (l *stringList) Set(s string) error {
	*l = append(*l, s)
	return nil
}
