// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// unit is what the lab, which has no systemd, reads of a unit file.
type unit struct {
	name, dir, node string // node: ConditionHost
	env             []string
	before, start   []string // ExecStartPre and ExecStart
}

// readUnit reads a unit file with one command each.
func readUnit(file string) (unit, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return unit{}, err
	}
	u := unit{name: strings.TrimSuffix(filepath.Base(file), ".service"), dir: filepath.Dir(file)}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "ConditionHost":
			u.node = value
		case "Environment":
			u.env = append(u.env, value)
		case "ExecStartPre":
			u.before = strings.Fields(value)
		case "ExecStart":
			u.start = strings.Fields(value)
		}
	}
	if u.node == "" || len(u.start) == 0 {
		return unit{}, fmt.Errorf("unit %s has no ConditionHost or no ExecStart", file)
	}
	return u, nil
}

// here returns a command of a unit with the lab's programs and the files beside the unit.
func (l *Lab) here(u unit, args []string) []string {
	args = slices.Clone(args)
	for i, a := range args {
		beside := filepath.Join(u.dir, filepath.Base(a))
		switch {
		case a == "consul":
			args[i] = filepath.Join(l.Bin, "servers", "consul") // where make setup puts it
			if found := l.servers["consul"]; found != "" {
				args[i] = found
			}
		case a == "sif" || a == "/usr/local/bin/sif-demo":
			args[i] = filepath.Join(l.Bin, filepath.Base(a))
		case filepath.IsAbs(a) && exists(beside):
			args[i] = beside
		}
	}
	// The lab's programs may lie where only root can read them.
	return slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, "-user=") })
}

// RunUnit does on a node what systemd does with a unit that attaches its program to the fabric, and
// waits until it is attached under the unit's name. It does not restart the program.
func (l *Lab) RunUnit(ctx context.Context, file string) error {
	u, err := readUnit(file)
	if err != nil {
		return err
	}
	if l.Topology.Node(u.node) == nil {
		return fmt.Errorf("unit %s is for node %s, which the lab does not have", file, u.node)
	}
	env := append(slices.Clone(u.env), "SIF_RUN_DIR="+l.SIFRunDir(u.node))
	run := func(ctx context.Context, args ...string) (string, error) {
		cmd, err := l.Command(ctx, u.node, args[0], args[1:]...)
		if err != nil {
			return "", err
		}
		cmd.Env = append(cmd.Env, append(env, "CONSUL_HTTP_ADDR=http://127.0.0.1:8500", "CONSUL_HTTP_TOKEN="+l.Secrets.ConsulManagement)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
		return string(out), err
	}
	if len(u.before) > 0 {
		if _, err := run(ctx, l.here(u, u.before)...); err != nil {
			return fmt.Errorf("unit %s: %w", u.name, err)
		}
	}
	p := &Process{Node: u.node, Name: u.name, Args: l.here(u, u.start), Env: env}
	if err := l.launch(ctx, p, time.Minute, func(ctx context.Context) error {
		list, err := run(ctx, filepath.Join(l.Bin, "sif"), "endpoint", "list", "-local")
		if err == nil && !strings.Contains(list, u.name) {
			err = fmt.Errorf("it is not attached: %s", list)
		}
		return err
	}); err != nil {
		return err
	}
	l.progress.line("%s: unit %s is attached", u.node, u.name)
	return nil
}

// StopUnit ends what RunUnit started, and its registration in Consul.
func (l *Lab) StopUnit(ctx context.Context, file string) error {
	u, err := readUnit(file)
	if err != nil {
		return err
	}
	if !l.Alive(u.node, u.name) {
		return nil
	}
	if err := l.Stop(ctx, u.node, u.name); err != nil {
		return err
	}
	agent, err := l.ConsulAgent(u.node, l.Secrets.ConsulManagement)
	if err != nil {
		return err
	}
	return agent.Agent().ServiceDeregister(u.name)
}
