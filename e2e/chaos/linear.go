// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// register is the history of what was asked of the graph and of its pointer, and what the answers
// were. Whether some order of it explains all answers is Porcupine's to say.
type register struct {
	began time.Time
	mu    sync.Mutex
	calls []porcupine.Operation
}

type kind int

const (
	kindApply    kind = iota // of the domain
	kindRollback             // of both domains
	kindOther                // apply of the other domain
	kindRead
)

type input struct {
	kind
	content
}

// output is what an answer said.
type output struct {
	void     bool // nothing was read, or changed
	unknown  bool // there was no answer: it may have been done, at any time since
	sequence uint64
	content                // Read
	age      time.Duration // Read: the answer may be as old as that, and says so
}

// state is the pointer in force and what it leads to.
type state struct {
	sequence uint64
	content
}

// begin notes that a call was made. The function that it returns notes its answer; a call without
// one may have been heard at any time since.
func (r *register) begin(in input) func(output) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := len(r.calls)
	r.calls = append(r.calls, porcupine.Operation{
		ClientId: i, Input: in, Output: output{unknown: true}, Call: int64(time.Since(r.began)), Return: math.MaxInt64,
	})
	return func(out output) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.calls[i].Output, r.calls[i].Return = out, int64(time.Since(r.began))
		r.calls[i].Call -= int64(out.age)
	}
}

// model is a graph with a pointer whose sequence grows by one with each change.
func model(first state) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return first },
		Step: func(before, in, out any) (bool, any) {
			s, i, o := before.(state), in.(input), out.(output)
			if o.void {
				return true, s
			}
			next := s
			switch i.kind {
			case kindRead:
				return o.unknown || o.sequence == s.sequence && o.content == s.content, s
			case kindApply:
				next.mask, next.edition = i.mask, i.edition
			case kindRollback:
				next.content = i.content
			case kindOther:
				next.other = i.other
			}
			if next.content != s.content { // what changes nothing does not move the pointer
				next.sequence++
			}
			return o.unknown || o.sequence == next.sequence, next
		},
		DescribeOperation: func(in, out any) string {
			i, o := in.(input), out.(output)
			name := map[kind]string{kindApply: "apply", kindRollback: "roll back", kindOther: "apply other", kindRead: "read"}[i.kind]
			switch {
			case o.unknown:
				return fmt.Sprintf("%s %s: no answer", name, i.content)
			case i.kind == kindRead:
				return fmt.Sprintf("read: sequence %d, %s", o.sequence, o.content)
			}
			return fmt.Sprintf("%s %s: sequence %d", name, i.content, o.sequence)
		},
		DescribeState: func(s any) string { return fmt.Sprintf("sequence %d, %s", s.(state).sequence, s.(state).content) },
	}
}

// Searching for an order takes at most this long. What is not decided by then is said.
const search = 30 * time.Second

// check returns an error if no order of the calls explains the answers. The file, if it is not
// empty, then has a picture of the calls.
func (r *register) check(first state, file string) (calls int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []porcupine.Operation
	for _, c := range r.calls {
		if o := c.Output.(output); !o.void && !(o.unknown && c.Input.(input).kind == kindRead) {
			list = append(list, c)
		}
	}
	m := model(first)
	result, info := porcupine.CheckOperationsVerbose(m, list, search)
	if result == porcupine.Ok {
		return len(list), nil
	}
	if file != "" {
		if err := porcupine.VisualizePath(m, info, file); err != nil {
			return len(list), fmt.Errorf("draw the history: %w", err)
		}
	}
	if result == porcupine.Unknown {
		return len(list), fmt.Errorf("whether an order of %d calls explains their answers was not found out within %s", len(list), search)
	}
	return len(list), fmt.Errorf("no order of %d calls explains their answers%s", len(list), longest(m, info))
}

// longest describes where the longest order that could be made ends.
func longest(m porcupine.Model, info porcupine.LinearizationInfo) string {
	var best []porcupine.Operation
	for _, partition := range info.PartialLinearizationsOperations() {
		for _, p := range partition {
			if len(p) > len(best) {
				best = p
			}
		}
	}
	text := fmt.Sprintf("; the longest order of some has %d and ends with:", len(best))
	for _, c := range best[max(0, len(best)-5):] {
		text += "\n    " + m.DescribeOperation(c.Input, c.Output)
	}
	return text
}
