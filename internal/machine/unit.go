// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/wellknown"
)

// Units returns the units of a machine's daemons, in the order in which they start.
func Units(g join.Grant) []string {
	var list []string
	for _, d := range Daemons(g) {
		if d != "controller" && !slices.Contains(list, linkUnit) {
			list = append(list, linkUnit)
		}
		list = append(list, unitOf(d))
	}
	return list
}

const linkUnit = "sif-link.service"

// AllUnits are the units of all kinds of machines, in the order in which they stop.
func AllUnits() []string {
	return []string{unitOf("agent"), unitOf("engine"), linkUnit, unitOf("controller")}
}

func unitOf(daemon string) string { return "sif-" + daemon + ".service" }

func daemonOf(unit string) string {
	return strings.TrimSuffix(strings.TrimPrefix(unit, "sif-"), ".service")
}

// Commands returns the commands by which the daemons of the machine are started by hand, in order.
func Commands(j Joined) []string {
	l := j.Layout
	var list []string
	for _, u := range Units(j.Grant) {
		if u == linkUnit {
			list = append(list, fmt.Sprintf("sif link -run-dir=%s -data-dir=%s", filepath.Join(l.RunDir, wellknown.LinkDir), filepath.Join(l.DataDir, wellknown.LinkDir)))
			continue
		}
		daemon := daemonOf(u)
		list = append(list, fmt.Sprintf("sif %s -config=%s", daemon, l.ConfigFile(daemon)))
	}
	return list
}

// ErrNoSystemd says that systemd does not run this machine.
var ErrNoSystemd = errors.New("systemd does not run this machine: start the daemons yourself, with -no-start")

// HasSystemd reports whether systemd runs the machine, as sd_booted(3) does.
func HasSystemd() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// Systemctl runs systemctl, and returns what it printed.
func Systemctl(ctx context.Context, args ...string) (string, error) {
	if !HasSystemd() {
		return "", ErrNoSystemd
	}
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, text)
	}
	return text, nil
}

// Installed returns an error if a unit does not exist.
func Installed(ctx context.Context, units []string) error {
	for _, u := range units {
		out, err := Systemctl(ctx, "show", "--property=LoadState", "--value", u)
		if err != nil {
			return err
		}
		if out != "loaded" {
			return fmt.Errorf("the unit %s is not installed (%s): install the package sif, or use -no-start", u, out)
		}
	}
	return nil
}

// Start enables and starts units. One that runs is started again, because its configuration may
// have changed.
func Start(ctx context.Context, unit string) error {
	if _, err := Systemctl(ctx, "enable", unit); err != nil {
		return err
	}
	_, err := Systemctl(ctx, "restart", unit)
	return err
}

// State returns the state of a unit, such as "active" or "failed".
func State(ctx context.Context, unit string) string {
	out, err := Systemctl(ctx, "is-active", unit)
	if err != nil && out == "" {
		return "unknown"
	}
	return out
}

// Journal returns the last lines of a unit's log.
func Journal(ctx context.Context, unit string) string {
	out, err := exec.CommandContext(ctx, "journalctl", "--unit="+unit, "--lines=5", "--output=cat", "--no-pager").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
