// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/machine"
	"github.com/sif-project/sif/internal/node/host"
)

// units looks at systemd and the units of the machine's kinds.
func (p *patient) units(ctx context.Context) []host.Finding {
	if !machine.HasSystemd() {
		return []host.Finding{{Check: "units", Subject: "systemd", Result: host.Warning, Detail: "does not run this machine", Remedy: "supervise each daemon otherwise"}}
	}
	var findings []host.Finding
	for _, name := range machine.Units(join.Grant{Kinds: p.kinds}) {
		f := host.Finding{Check: "units", Subject: "the unit " + name, Result: host.Well}
		out, err := machine.Systemctl(ctx, "show", "--property=LoadState,ActiveState,UnitFileState", name)
		if err != nil {
			findings = append(findings, skipped(f.Check, f.Subject, "could not be looked at: "+err.Error(), ""))
			continue
		}
		state := map[string]string{}
		for line := range strings.Lines(out) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			state[key] = value
		}
		findings = append(findings, judgeUnit(f, name, state, p.needed(name)))
	}
	return findings
}

// needed reports whether a unit must run. The links' process has nothing to do with devices of the
// kernel.
func (p *patient) needed(unit string) bool {
	return p.joined && slices.ContainsFunc(daemons, func(d daemonOf) bool { return d.unit == unit })
}

func judgeUnit(f host.Finding, name string, state map[string]string, needed bool) host.Finding {
	switch {
	case state["LoadState"] == "not-found":
		f.Result, f.Detail, f.Remedy = host.Warning, "does not exist, so systemd does not start the daemon", "install the package sif, or supervise the daemon otherwise"
	case state["LoadState"] == "masked":
		f.Result, f.Detail, f.Remedy = host.Wrong, "is masked", "systemctl unmask "+name
	case needed && state["ActiveState"] != "active":
		f.Result, f.Detail, f.Remedy = host.Wrong, "is "+state["ActiveState"], fmt.Sprintf("journalctl -u %[1]s; systemctl start %[1]s", name)
	case needed && state["UnitFileState"] == "disabled":
		f.Result, f.Detail, f.Remedy = host.Warning, "runs, and will not be started at the next boot", "systemctl enable "+name
	default:
		f.Detail = "is " + state["ActiveState"]
	}
	return f
}
