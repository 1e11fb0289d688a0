// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package schedule

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// String returns the fault as a line of text: when it begins, how long it lasts, and what it is.
func (f Fault) String() string {
	text := fmt.Sprintf("%-9s %-7s %-7s", f.At, f.For, f.Kind)
	switch f.Kind {
	case Kill, Stop, Restart:
		text += " " + f.Node + "/" + f.Daemon
	case Cut, OneWay:
		text += " " + f.Node + " " + f.Peer
	case Loss:
		text += fmt.Sprintf(" %s %s %d%%", f.Node, f.Peer, f.Percent)
	case Fill, Slow:
		text += " " + f.Node
	}
	return strings.TrimRight(text, " ")
}

// Write writes a schedule as text, a fault on each line.
func Write(w io.Writer, list []Fault) error {
	for _, f := range list {
		if _, err := fmt.Fprintln(w, f); err != nil {
			return err
		}
	}
	return nil
}

// Read reads what Write wrote. Empty lines and those that begin with # are left out.
func Read(r io.Reader) ([]Fault, error) {
	var list []Fault
	s := bufio.NewScanner(r)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f, err := parse(strings.Fields(line))
		if err != nil {
			return nil, fmt.Errorf("line %d of the schedule: %w: %q", n, err, line)
		}
		list = append(list, f)
	}
	slices.SortStableFunc(list, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	return list, s.Err()
}

func parse(words []string) (f Fault, err error) {
	if len(words) < 3 {
		return f, fmt.Errorf("expected the time of its begin, how long it lasts, and a kind of fault")
	}
	if f.At, err = time.ParseDuration(words[0]); err != nil {
		return f, err
	}
	if f.For, err = time.ParseDuration(words[1]); err != nil {
		return f, err
	}
	if f.At < 0 || f.For < 0 {
		return f, fmt.Errorf("a time is negative")
	}
	f.Kind = Kind(words[2])
	args := words[3:]
	want := map[Kind]int{Kill: 1, Stop: 1, Restart: 1, Cut: 2, OneWay: 2, Loss: 3, Fill: 1, Slow: 1, Leader: 0}
	n, known := want[f.Kind]
	switch {
	case !known:
		return f, fmt.Errorf("unknown kind of fault %q", f.Kind)
	case len(args) != n:
		return f, fmt.Errorf("%s needs %d words, not %d", f.Kind, n, len(args))
	}
	switch f.Kind {
	case Kill, Stop, Restart:
		var ok bool
		if f.Node, f.Daemon, ok = strings.Cut(args[0], "/"); !ok {
			return f, fmt.Errorf("expected node/daemon")
		}
	case Cut, OneWay, Loss:
		f.Node, f.Peer = args[0], args[1]
	case Fill, Slow:
		f.Node = args[0]
	}
	if f.Kind == Loss {
		share, ok := strings.CutSuffix(args[2], "%")
		if f.Percent, err = strconv.Atoi(share); err != nil || !ok || f.Percent < 1 || f.Percent > 100 {
			return f, fmt.Errorf("expected a share of 1%% to 100%%")
		}
	}
	return f, nil
}
