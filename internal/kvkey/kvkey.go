// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package kvkey lists every key that the fabric has in Consul KV, and how each is written and read.
// It does not know what the values mean.
package kvkey

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/sif-project/sif/fabric"
)

// Root is the prefix of all keys but those of Audit. Values that an older version cannot read need
// another root.
const Root = "sif/v1/"

// Single keys.
const (
	Current     = Root + "current"     // the signed pointer to the revision in force
	Collected   = Root + "collected"   // changed by every transaction that removes objects
	Leader      = Root + "leader"      // the lock of the leading controller, and its address
	Revocations = Root + "revocations" // the signed list of removed nodes
)

// Prefixes of keys. The comments give the rest of the key and the value.
const (
	Objects     = Root + "obj/"        // <SHA-256>: an immutable object of a revision
	Nodes       = Root + "node/"       // <zone>/<node>: a fabric.NodeRecord
	Pools       = Root + "pool/"       // <number>: a signed fabric.Pool, the node to which the pools of that number belong
	Bindings    = Root + "binding/"    // <zone>/<node>: a signed fabric.NomadNode
	Controllers = Root + "controller/" // <ID>: where a controller answers
	Admissions  = Root + "admission/"  // <zone>/<node>/<endpoint>: a signed admission and the addresses that rest after it
)

// Object is the key of an object, by the hash of its content.
type Object fabric.Hash

func (k Object) String() string { return Objects + fabric.Hash(k).String() }

// ParseObject parses the key of an object.
func ParseObject(key string) (Object, error) {
	rest, err := after(Objects, key)
	if err != nil {
		return Object{}, err
	}
	var h fabric.Hash
	if err := h.UnmarshalText([]byte(rest)); err != nil {
		return Object{}, err
	}
	return Object(h), nil
}

// Node is the key of a node's record.
type Node fabric.NodeID

func (k Node) String() string { return Nodes + fabric.NodeID(k).String() }

// ParseNode parses the key of a node's record.
func ParseNode(key string) (Node, error) {
	rest, err := after(Nodes, key)
	if err != nil {
		return Node{}, err
	}
	id, err := fabric.ParseNodeID(rest)
	return Node(id), err
}

// Pool is the key of a pair of address pools, by its number.
type Pool int

func (k Pool) String() string { return Pools + strconv.Itoa(int(k)) }

// ParsePool parses the key of a pair of address pools.
func ParsePool(key string) (Pool, error) {
	rest, err := after(Pools, key)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(rest)
	if err != nil {
		return 0, fmt.Errorf("%q is not the number of a pool", rest)
	}
	return Pool(n), nil
}

// Binding is the key under which a node is bound to its Nomad node.
type Binding fabric.NodeID

func (k Binding) String() string { return Bindings + fabric.NodeID(k).String() }

// ParseBinding parses the key under which a node is bound to its Nomad node.
func ParseBinding(key string) (Binding, error) {
	rest, err := after(Bindings, key)
	if err != nil {
		return Binding{}, err
	}
	id, err := fabric.ParseNodeID(rest)
	return Binding(id), err
}

// Audit is the prefix of the audit logs. It is not under Root, which every node may read.
const Audit = "sif/audit/v1/"

// AuditLog is the prefix of the segments of a controller's audit log: <number of the first record>.
func AuditLog(id string) string { return Audit + id + "/log/" }

// AuditSegment is the key of the segment that begins with a record.
func AuditSegment(id string, first uint64) string { return AuditLog(id) + fmt.Sprintf("%020d", first) }

// AuditHead is the key of the signed head of a controller's audit log.
func AuditHead(id string) string { return Audit + id + "/head" }

// AuditNote is the key of the head of a controller's audit log when the controller last changed
// something, which is written by the same transaction.
func AuditNote(id string) string { return Audit + id + "/note" }

// ParseAuditSegment parses the key of a segment.
func ParseAuditSegment(key string) (id string, first uint64, err error) {
	rest, err := after(Audit, key)
	if err != nil {
		return "", 0, err
	}
	id, number, ok := strings.Cut(rest, "/log/")
	if ok {
		first, err = strconv.ParseUint(number, 10, 64)
	}
	if !ok || err != nil || first == 0 {
		return "", 0, fmt.Errorf("%q is not the key of a segment of an audit log", key)
	}
	return id, first, CheckController(id)
}

// ParseAuditHead parses the key of a signed head, or of one that was noted.
func ParseAuditHead(key string) (id string, err error) {
	rest, err := after(Audit, key)
	if err != nil {
		return "", err
	}
	id, what, _ := strings.Cut(rest, "/")
	if what != "head" && what != "note" {
		return "", fmt.Errorf("%q is not the key of the head of an audit log", key)
	}
	return id, CheckController(id)
}

// Controller is the key of a controller's record, by its ID.
type Controller string

func (k Controller) String() string { return Controllers + string(k) }

// ParseController parses the key of a controller's record.
func ParseController(key string) (Controller, error) {
	rest, err := after(Controllers, key)
	if err != nil {
		return "", err
	}
	return Controller(rest), CheckController(rest)
}

// CheckController returns an error if a controller cannot have this ID.
func CheckController(id string) error {
	if len(id) != 16 || strings.Trim(id, "0123456789abcdef") != "" {
		return fmt.Errorf("%q is not the ID of a controller, which has 16 hexadecimal digits", id)
	}
	return nil
}

// Admission is the key of an endpoint's admission.
type Admission struct {
	Node     fabric.NodeID
	Endpoint string
}

func (k Admission) String() string { return Admissions + k.Node.String() + "/" + k.Endpoint }

// ParseAdmission parses the key of an endpoint's admission.
func ParseAdmission(key string) (Admission, error) {
	rest, err := after(Admissions, key)
	if err != nil {
		return Admission{}, err
	}
	slash := strings.LastIndexByte(rest, '/')
	if slash < 0 || slash == len(rest)-1 {
		return Admission{}, fmt.Errorf("%q is not of the form <zone>/<node>/<endpoint>", rest)
	}
	node, err := fabric.ParseNodeID(rest[:slash])
	if err != nil {
		return Admission{}, err
	}
	return Admission{Node: node, Endpoint: rest[slash+1:]}, nil
}

func after(prefix, key string) (string, error) {
	rest, ok := strings.CutPrefix(key, prefix)
	if !ok {
		return "", fmt.Errorf("%q is not a key under %s", key, prefix)
	}
	return rest, nil
}
