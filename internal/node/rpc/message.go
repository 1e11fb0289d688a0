// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package rpc

import (
	"net/netip"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/states"
)

// Methods of the protocol. Their params and replies are the types of the same name.
const (
	MethodConnect  = "connect"  // agent to engine of its zone: a connectivity request
	MethodForward  = "forward"  // engine to engine: a connectivity request of the sender's zone
	MethodWant     = "want"     // engine to engine: of which services the sender wants requests
	MethodAnnounce = "announce" // engine to agent: requests of counterparts
	MethodWithdraw = "withdraw" // these endpoints have ended
	MethodSync     = "sync"     // compare what the sender has for the receiver with what that has
	MethodRecall   = "recall"   // engine to engine: requests of the sender's zone that it has lost
	MethodResolve  = "resolve"  // agent to engine of its zone: an outside name, asked for by a service
	MethodHold     = "hold"     // agent to engine of its zone: outside names that are in use
	MethodStates   = "states"   // between engines, and between engine and agent: states of processors
	MethodMeet     = "meet"     // agent to agent of its zone: what no engine tells

	MethodRevocations = "revocations" // between all daemons: the signed list of what was removed or revoked
)

// ConnectParams requests an endpoint's connectivity from an engine.
type ConnectParams struct {
	Request fabric.Request `json:"request"`
}

// ConnectReply is sent when the endpoint's connectivity is in force, or after a time limit. The
// counterparts were announced before.
type ConnectReply struct {
	Pending []string `json:"pending,omitempty"` // "zone/node: reason", for nodes where it is not in force yet
}

// ForwardParams forwards a request to the engine of another zone.
type ForwardParams struct {
	Request fabric.Request `json:"request"`
}

// ForwardReply is the other zone's part of a ConnectReply. To an engine that has not said what it
// wants, it has the requests of the receiver's endpoints that are counterparts of the new one.
type ForwardReply struct {
	Counterparts []fabric.Request `json:"counterparts,omitempty"`
	Pending      []string         `json:"pending,omitempty"`
}

// WantParams say of which services the sender wants the receiver's requests, as a change of what it
// said last. An engine that has said nothing, of an older version, gets all.
type WantParams struct {
	// Before is the digest of what it said last; zero: this says all that it wants.
	Before fabric.Hash `json:"before,omitzero"`
	// Everything says that it wants the requests of all services.
	Everything bool         `json:"everything,omitempty"`
	Add        []fabric.Ref `json:"add,omitempty"`
	Remove     []fabric.Ref `json:"remove,omitempty"`
}

// WantReply is sent when the sender has got the requests of the services that it wants newly.
type WantReply struct {
	// Other says that the receiver did not take the change, because what it knows is not what the
	// change is of.
	Other bool `json:"other,omitempty"`
}

// AnnounceParams contains the requests of counterparts of the receiver's endpoints.
type AnnounceParams struct {
	Requests []fabric.Request `json:"requests"`
}

// AnnounceReply is sent when the announced counterparts are programmed.
type AnnounceReply struct {
	Refused map[string]string `json:"refused,omitempty"` // endpoint to reason
}

// WithdrawParams names endpoints that have ended. The receiver accepts it only for endpoints of the
// sender: those of its node from an agent, to engines as to other agents, those of its zone from an
// engine, and those that it announced from the own engine.
type WithdrawParams struct {
	Endpoints []string `json:"endpoints"`
}

// SyncParams lists all endpoints for which the sender speaks to the receiver: an agent those of its
// node; an engine those of its zone that the engine of another zone wants, and to an agent those
// that it has announced. It repairs what either side missed or lost. The list itself ends nothing:
// the sender withdraws what it knows to have ended.
type SyncParams struct {
	// Endpoints says when the admission of each endpoint was issued.
	Endpoints map[string]time.Time `json:"endpoints"`
	// Others are endpoints of the sender's zone that live and that the receiver does not want. Only
	// engines send it.
	Others []string `json:"others,omitempty"`
	// Wants is the digest of the services that the sender said that it wants. Only engines send it.
	Wants fabric.Hash `json:"wants,omitzero"`
	// Owners are the nodes of the sender's zone that have listed their endpoints to the sender
	// since they connected. Only engines send it.
	Owners []fabric.NodeID `json:"owners,omitempty"`
}

// SyncReply is how the receiver differs from the list.
type SyncReply struct {
	// Missing are endpoints that the receiver lacks, or of which it has an earlier admission.
	Missing []string `json:"missing,omitempty"`
	// Unlisted are endpoints that the receiver has from the sender and that are not in the list.
	Unlisted []Held `json:"unlisted,omitempty"`
	// Exit says that the receiver's switch leads packets to the outside. Only engines answer it, to
	// agents of their zone.
	Exit bool `json:"exit,omitempty"`
	// Far says that the receiver has an address and a route to the outside besides. An exit without
	// is chosen only if no other of the zone has them.
	Far bool `json:"far,omitempty"`
	// OtherWants says that the receiver knows other wants of the sender than the digest.
	OtherWants bool `json:"otherWants,omitempty"`
}

// Held is an endpoint that a receiver has, and its node.
type Held struct {
	Endpoint string        `json:"endpoint"`
	Node     fabric.NodeID `json:"node"`
}

// RecallParams asks for the requests of endpoints of the sender's zone that the sender has lost.
type RecallParams struct {
	Endpoints []string `json:"endpoints"`
}

// RecallReply contains the requests that were asked for, as far as the sender has them.
type RecallReply struct {
	Requests []fabric.Request `json:"requests,omitempty"`
}

// ResolveParams asks for an outside name on behalf of a service that has an endpoint on the
// sender's node. It has no addresses: only who resolves a name says what they are.
type ResolveParams struct {
	Service fabric.Ref `json:"service"`
	Name    string     `json:"name"` // in lower case, without a final dot
	Type    uint16     `json:"type"` // of DNS records
}

// ResolveReply is sent when the addresses of the answer are in force at the engine.
type ResolveReply struct {
	Message []byte `json:"message"` // a DNS message
}

// HoldParams lists outside names that the sender has in force, with the addresses that connections
// of its endpoints use. The receiver keeps those that it holds, and adds none.
type HoldParams struct {
	Names []NameInUse `json:"names"`
}

// NameInUse is an outside name that a service has asked for, with its addresses in use.
type NameInUse struct {
	Service   fabric.Ref   `json:"service"`
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// HoldReply lists those of the names of which the receiver holds no address. If it is an exit, the
// sender asks it for them again.
type HoldReply struct {
	Missing []NameInUse `json:"missing,omitempty"`
}

// StatesParams has states of processors that the receiver may lack, the sender's own or those of
// others. With Numbers, the sender asks besides for what it lacks itself.
type StatesParams struct {
	States []states.Signed `json:"states,omitempty"`
	// Numbers are those of the newest states that the sender has.
	Numbers map[fabric.NodeID]uint64 `json:"numbers,omitempty"`
}

// StatesReply is sent when the states are in force at the receiver.
type StatesReply struct {
	Newer   []states.Signed `json:"newer,omitempty"`   // than the numbers; some of them, if they are many
	Lacking []fabric.NodeID `json:"lacking,omitempty"` // processors of which the sender has newer states
}

// MeetParams tell another agent of the zone of endpoints of the sender's node, for what no engine
// of the zone can tell. An agent speaks only for its own node.
type MeetParams struct {
	// Requests are those of endpoints of the sender's node.
	Requests []fabric.Request `json:"requests,omitempty"`
	// Roll, if there is one, has the receiver compare all that the two have of each other.
	Roll *Roll `json:"roll,omitempty"`
}

// Roll is what two agents compare. It ends nothing: who has an endpoint says what has ended.
type Roll struct {
	// Endpoints are all of the sender's node.
	Endpoints map[string]Listed `json:"endpoints"`
	// Held says of which endpoints of the receiver's node the sender has which admission, by when
	// it was issued.
	Held map[string]time.Time `json:"held,omitempty"`
}

// Listed is an endpoint in a Roll. The receiver believes the identity as far as to ask for the
// request.
type Listed struct {
	Issued   time.Time       `json:"issued"`
	Identity fabric.Identity `json:"identity"`
}

// MeetReply is sent when the requests are programmed.
type MeetReply struct {
	// Counterparts are requests of endpoints of the receiver's node that are counterparts of those
	// in the params, without those that the sender has already.
	Counterparts []fabric.Request  `json:"counterparts,omitempty"`
	Refused      map[string]string `json:"refused,omitempty"` // endpoint to reason
	// Missing are endpoints of the roll that the receiver needs and lacks.
	Missing []string `json:"missing,omitempty"`
	// Unlisted are endpoints of the sender's node that the receiver has and the roll has not.
	Unlisted []string `json:"unlisted,omitempty"`
	// Ended are endpoints that the sender has and that are not on the receiver's node any more.
	Ended []string `json:"ended,omitempty"`
}

// RevocationsParams says which signed list of removals and revocations (fabric.Revocations) the
// sender has. With List, it is there. It is believed for its signature, whoever sends it.
type RevocationsParams struct {
	Has  fabric.ListID  `json:"has"`
	List *fabric.Signed `json:"list,omitempty"`
}

// RevocationsReply says which list the receiver has, after it took the sender's. With List, the
// sender's is not newer, and it is there.
type RevocationsReply struct {
	Has  fabric.ListID  `json:"has"`
	List *fabric.Signed `json:"list,omitempty"`
}
