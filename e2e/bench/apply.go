// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sif-project/sif/e2e/lab"
	model "github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/trust/revision"
)

const applies = 20

// enforcement measures how long it takes from a change of the graph until the nodes enforce it.
type enforcement struct {
	decided  []time.Duration // since the time in the pointer, which is before it is signed and stored
	returned []time.Duration // since the command returned; negative if the node was faster
	command  []time.Duration // duration of the command
}

// enforced changes the graph several times and waits for every node each time.
func (f *fabric) enforced(ctx context.Context) (enforcement, error) {
	var e enforcement
	consul, err := f.Consul(f.Secrets.ConsulManagement)
	if err != nil {
		return e, err
	}
	for i := range applies {
		began := time.Now()
		sequence, err := f.applyGraph(ctx, i+1)
		if err != nil {
			return e, err
		}
		ended := time.Now()
		e.command = append(e.command, ended.Sub(began))
		signed, _, err := revision.ReadCurrent(ctx, consul)
		if err != nil {
			return e, err
		}
		var pointer model.Pointer
		if err := json.Unmarshal(signed.Payload, &pointer); err != nil {
			return e, fmt.Errorf("read the pointer: %w", err)
		}
		for _, n := range f.Topology.Nodes(lab.Processor, lab.Workload) {
			at, err := f.enforcedAt(ctx, n, sequence)
			if err != nil {
				return e, err
			}
			e.decided = append(e.decided, at.Sub(pointer.Time))
			e.returned = append(e.returned, at.Sub(ended))
		}
	}
	return e, nil
}

// enforcedAt waits until a node logs that it enforces a revision.
func (f *fabric) enforcedAt(ctx context.Context, n *lab.Node, sequence uint64) (time.Time, error) {
	daemon := "agent"
	if n.Kind == lab.Processor {
		daemon = "engine"
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		lines, err := f.logged(n.Name, daemon, ": revision enforced: ")
		if err != nil {
			return time.Time{}, err
		}
		for _, l := range lines {
			if got, err := strconv.ParseUint(l.fields[logkey.Revision], 10, 64); err == nil && got >= sequence {
				return l.at, nil
			}
		}
		if ctx.Err() != nil {
			return time.Time{}, ctx.Err()
		}
	}
	return time.Time{}, fmt.Errorf("%s does not enforce revision %d after 10 s", n.Name, sequence)
}

// line is a line of a daemon's log.
type line struct {
	at     time.Time
	fields map[string]string
}

// field matches a key and its value in a line of a log. A value with blanks is quoted.
var field = regexp.MustCompile(`(\w+)=("[^"]*"|\S+)`)

// logged returns the lines of a daemon's log that contain text.
func (f *fabric) logged(node, daemon, text string) ([]line, error) {
	data, err := os.ReadFile(f.LogFile(node, daemon))
	if err != nil {
		return nil, err
	}
	var list []line
	for l := range strings.Lines(string(data)) {
		if !strings.Contains(l, text) || !strings.HasSuffix(l, "\n") {
			continue
		}
		parsed := line{fields: map[string]string{}}
		at, rest, _ := strings.Cut(l, " ")
		if parsed.at, err = time.Parse(time.RFC3339, at); err != nil {
			return nil, fmt.Errorf("read the log of %s: %w", node, err)
		}
		for _, m := range field.FindAllStringSubmatch(rest, -1) {
			parsed.fields[m[1]] = strings.Trim(m[2], `"`)
		}
		list = append(list, parsed)
	}
	return list, nil
}
