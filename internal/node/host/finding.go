// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package host looks at the machine that a node runs on: whether it has what a node needs, and what
// of it stands against the fabric. `sif doctor` asks before a machine joins, the daemons ask from
// time to time.
//
// It knows Linux. It must not know policy, other nodes, nor the servers that the fabric uses. It
// changes nothing: what it tries, it tries in a network namespace that ends with the trial.
package host

import "fmt"

// Result says how a check ended.
type Result string

// Results.
const (
	Well    = Result("well")
	Warning = Result("warning") // the fabric works, but see the detail
	Wrong   = Result("error")   // the fabric does not work before the remedy
	Skipped = Result("skipped") // it could not be looked at; the detail says why
)

// Finding is the result of a check of one subject.
type Finding struct {
	Check   string `json:"check"`   // such as "ports"
	Subject string `json:"subject"` // such as "UDP port 8442"
	Result  Result `json:"result"`
	Detail  string `json:"detail"` // continues the sentence that begins with the subject
	Remedy  string `json:"remedy"` // what to do, a command where there is one; empty if there is nothing to do
}

// String is a sentence with the remedy.
func (f Finding) String() string {
	text := f.Subject + " " + f.Detail
	if f.Remedy != "" {
		text += ": " + f.Remedy
	}
	return text
}

// Wrongs returns the errors among findings, one sentence each.
func Wrongs(findings []Finding) []string {
	var list []string
	for _, f := range findings {
		if f.Result == Wrong {
			list = append(list, f.String())
		}
	}
	return list
}

// failed is the finding of a check that could not be done.
func failed(check, subject string, err error) Finding {
	return Finding{check, subject, Skipped, fmt.Sprintf("could not be looked at: %v", err), "run the command as root"}
}
