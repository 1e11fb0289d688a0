// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// object is something that a fabric needs in a server: a mount, a policy, a role.
type object struct {
	server Server
	kind   string // "policy", "PKI role"
	name   string
	option string // of sif setup, that gives it another name; "-prefix" for most

	// want returns what it must be, as it is shown and compared. It may depend on earlier objects.
	want func(ctx context.Context) (fields, error)
	// read returns what it is; nil if there is none.
	read func(ctx context.Context) (*found, error)
	// write creates it, or changes the one that was found.
	write func(ctx context.Context, want fields, have *found) error
	// remove deletes it; nil if it goes with another one.
	remove func(ctx context.Context, have *found) error
}

// fields are the parts of an object that matter, in JSON types.
type fields map[string]any

// found is an object as a server has it.
type found struct {
	fields fields
	owner  string // the fabric; "" if it belongs to something else
	id     string // where a server knows it by more than its name
}

// Server is a server in which objects are.
type Server string

// The servers.
const (
	Vault  Server = "Vault"
	Consul Server = "Consul"
	Nomad  Server = "Nomad"
)

// State says what is to be done with an object.
type State string

// States of objects.
const (
	Well    State = "well"    // it is as it must be
	Create  State = "create"  // it is missing
	Change  State = "change"  // it differs
	Foreign State = "foreign" // another fabric, or somebody else, has one of that name
	Delete  State = "delete"  // it is there, and is to go
	Absent  State = "absent"  // it is not there, and is not to be
)

// Item is an object and what is to be done with it.
type Item struct {
	Server      Server       `json:"server"`
	Kind        string       `json:"kind"`
	Name        string       `json:"name"`
	State       State        `json:"state"`
	Differences []Difference `json:"differences,omitempty"`
	Hint        string       `json:"hint,omitempty"` // of a foreign one: what to do

	object object
	want   fields
	have   *found
}

// Difference is a part of an object that is not as it must be.
type Difference struct {
	Field string `json:"field"`
	Have  any    `json:"have,omitempty"`
	Want  any    `json:"want,omitempty"`
}

// String names the object as messages do: `Consul policy "sif-node"`.
func (i Item) String() string { return fmt.Sprintf("%s %s %q", i.Server, i.Kind, i.Name) }

// inspect compares an object with what it must be.
func (o object) inspect(ctx context.Context, fabric string) (Item, error) {
	item := Item{Server: o.server, Kind: o.kind, Name: o.name, object: o}
	var err error
	if item.have, err = o.read(ctx); err != nil {
		return item, fmt.Errorf("read %s: %w", item, err)
	}
	if item.have != nil && item.have.owner != fabric {
		item.State = Foreign
		whose := "it is not one of a fabric's"
		if item.have.owner != "" {
			whose = fmt.Sprintf("it belongs to fabric %q", item.have.owner)
		}
		item.Hint = fmt.Sprintf("%s: use another name (%s)", whose, o.option)
		return item, nil
	}
	if item.want, err = o.want(ctx); err != nil {
		return item, fmt.Errorf("%s: %w", item, err)
	}
	item.compare()
	return item, nil
}

func (i *Item) compare() {
	var have fields
	i.State = Create
	if i.have != nil {
		i.State, have = Well, i.have.fields
	}
	var names []string
	for name := range i.want {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		want, got := canonical(i.want[name]), canonical(have[name])
		if reflect.DeepEqual(want, got) {
			continue
		}
		i.Differences = append(i.Differences, Difference{Field: name, Have: got, Want: want})
		if i.have != nil {
			i.State = Change
		}
	}
}

// canonical returns a value as JSON has it, so that values of different origin can be compared.
func canonical(v any) any {
	text, err := json.Marshal(v)
	if err != nil {
		return v
	}
	var out any
	if json.Unmarshal(text, &out) != nil {
		return v
	}
	if s, ok := out.(string); ok {
		return strings.TrimSpace(s)
	}
	return out
}

// Report is the outcome of looking at all objects.
type Report struct {
	Items    []Item   `json:"objects"`
	Warnings []string `json:"warnings,omitempty"`
}

// Count returns how many objects have one of the states.
func (r Report) Count(states ...State) (n int) {
	for _, i := range r.Items {
		if slices.Contains(states, i.State) {
			n++
		}
	}
	return n
}

// refuseForeign returns an error that names each object of that name that is not this fabric's.
func (r Report) refuseForeign() error {
	var errs []error
	for _, i := range r.Items {
		if i.State == Foreign {
			errs = append(errs, fmt.Errorf("%s exists already, and %s", i, i.Hint))
		}
	}
	return errors.Join(errs...)
}

func inspectAll(ctx context.Context, fabric string, objects []object) ([]Item, error) {
	var items []Item
	for _, o := range objects {
		item, err := o.inspect(ctx, fabric)
		if err != nil {
			return items, err
		}
		items = append(items, item)
	}
	return items, nil
}

// applyAll writes what is missing or differs, in order. told is called after each object.
func applyAll(ctx context.Context, fabric string, objects []object, told func(Item)) error {
	for _, o := range objects {
		item, err := o.inspect(ctx, fabric) // again: it may depend on what was just written
		if err != nil {
			return err
		}
		switch item.State {
		case Well:
			continue
		case Foreign:
			return fmt.Errorf("%s exists already, and %s", item, item.Hint)
		}
		if err := o.write(ctx, item.want, item.have); err != nil {
			return fmt.Errorf("write %s: %w", item, err)
		}
		if _, err := o.read(ctx); err != nil { // later ones depend on what is there
			return fmt.Errorf("read %s: %w", item, err)
		}
		told(item)
	}
	return nil
}

// removeAll deletes the objects of the fabric that exist, in reverse order. told is called after
// each.
func removeAll(ctx context.Context, items []Item, told func(Item)) error {
	for _, item := range slices.Backward(items) {
		if item.State != Delete {
			continue
		}
		if item.object.remove != nil {
			if err := item.object.remove(ctx, item.have); err != nil {
				return fmt.Errorf("delete %s: %w", item, err)
			}
		}
		told(item)
	}
	return nil
}

// owned is the description of an object of a fabric.
func owned(fabric, what string) string { return "SIF fabric " + fabric + ": " + what }

// ownerOf returns the fabric whose object has a description, or "".
func ownerOf(description string) string {
	rest, ours := strings.CutPrefix(strings.TrimSpace(description), "SIF fabric ")
	if !ours {
		return ""
	}
	fabric, _, _ := strings.Cut(rest, ":")
	return fabric
}
