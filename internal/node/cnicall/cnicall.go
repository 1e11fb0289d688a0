// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package cnicall carries a CNI call from the plugin to the node's agent over a unix socket, with
// the workload's network namespace as an open file descriptor. The agent does not need a path, so
// the runtime may have created the namespace in another mount namespace. The package knows the
// socket and the messages, not what a call does.
//
// A call is one JSON request, with the descriptor as ancillary data, and one JSON reply. Then the
// connection is closed.
package cnicall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/sif-project/sif/fabric"
)

// maxMessage bounds a request or reply, in bytes. GC of a node with the largest pool names 4,093
// attachments.
const maxMessage = 8 << 20

// Request is a CNI call. Only ADD and CHECK have a namespace.
type Request struct {
	Command     string `json:"command"` // ADD, DEL, CHECK, GC or STATUS, or LIST, see List
	ContainerID string `json:"containerId,omitempty"`
	IfName      string `json:"ifName,omitempty"`
	Allocation  string `json:"allocation,omitempty"` // NOMAD_ALLOC_ID
	VM          bool   `json:"vm,omitempty"`         // ADD: the workload is a virtual machine
	// Attach is what a workload outside Nomad is, for ADD, and Space where its namespace is.
	Attach  *fabric.Attached `json:"attach,omitempty"`
	Space   Space            `json:"space,omitzero"`
	Process *Process         `json:"process,omitempty"` // of the node, that has the endpoint
	Ports   []PortMapping    `json:"ports,omitempty"`
	Valid   []Attachment     `json:"valid,omitempty"` // GC: the attachments that still exist

	// Patience is how long the caller waits for the answer. ADD uses it for what is coming up.
	Patience time.Duration `json:"patience,omitempty"`

	// Network is the name of the network, and Runtime that of the program that called the plugin.
	// GC concerns only what was added with the same two.
	Network string `json:"network,omitempty"`
	Runtime string `json:"runtime,omitempty"`

	Expected *Expected `json:"expected,omitempty"` // CHECK

	// Namespace is the workload's network namespace, or nil.
	Namespace *os.File `json:"-"`

	// Again says that the agent itself makes the interface again that somebody removed.
	Again bool `json:"-"`
}

// Expected is what the runtime knows of an attachment from the result of ADD, as far as it does.
type Expected struct {
	MAC       string       `json:"mac,omitempty"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// Codes of errors beyond those of CNI.
const (
	CodeRefused uint = 100 // the controller does not admit the workload
	CodeTaken   uint = 101 // the container has an interface of that name already
	CodeChanged uint = 102 // CHECK: what is there is not what ADD gave
)

// Attachment names an interface of a container.
type Attachment struct {
	ContainerID string `json:"containerId"`
	IfName      string `json:"ifName"`
}

// PortMapping is the "portMappings" capability of the CNI conventions.
type PortMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"` // "tcp" or "udp"
	HostIP        string `json:"hostIP,omitempty"`
}

// Reply answers a call. Result is set only for ADD, Attached only for LIST, and not together with
// Error.
type Reply struct {
	Result   *current.Result `json:"result,omitempty"`
	Attached []Attached      `json:"attached,omitempty"`
	Error    *types.Error    `json:"error,omitempty"`
}

// ErrNoAgent is what Call returns if no agent answered.
var ErrNoAgent = errors.New("no agent answered")

// noAgent is ErrNoAgent as the runtime expects errors.
type noAgent struct{ cause *types.Error }

func (e noAgent) Error() string        { return e.cause.Error() }
func (e noAgent) Unwrap() error        { return e.cause }
func (e noAgent) Is(target error) bool { return target == ErrNoAgent }

// Call sends a request to the agent that listens on socket. Its errors contain a *types.Error, as
// the runtime expects them.
func Call(ctx context.Context, socket string, r Request) (*current.Result, error) {
	reply, err := call(ctx, socket, r)
	return reply.Result, err
}

func call(ctx context.Context, socket string, r Request) (Reply, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return Reply{}, noAgent{types.NewError(types.ErrTryAgainLater, "the sif agent of this node is not running",
			fmt.Sprintf("connect to %s: %v", socket, err))}
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	reply, err := exchange(conn.(*net.UnixConn), r)
	if err != nil {
		return Reply{}, noAgent{types.NewError(types.ErrTryAgainLater, "the sif agent of this node did not answer", err.Error())}
	}
	if reply.Error != nil {
		return Reply{}, reply.Error
	}
	return reply, nil
}

func exchange(conn *net.UnixConn, r Request) (Reply, error) {
	var reply Reply
	data, err := json.Marshal(r)
	if err != nil {
		return reply, fmt.Errorf("encode the request: %w", err)
	}
	var rights []byte
	if r.Namespace != nil {
		rights = syscall.UnixRights(int(r.Namespace.Fd()))
	}
	if len(data) > maxMessage {
		return reply, fmt.Errorf("send the request: it has %d bytes, %d is the most", len(data), maxMessage)
	}
	n, _, err := conn.WriteMsgUnix(data, rights, nil) // as much as fits, with the descriptor
	if err == nil {
		_, err = conn.Write(data[n:])
	}
	if err != nil {
		return reply, fmt.Errorf("send the request: %w", err)
	}
	if err := conn.CloseWrite(); err != nil {
		return reply, fmt.Errorf("send the request: %w", err)
	}
	if err := json.NewDecoder(io.LimitReader(conn, maxMessage)).Decode(&reply); err != nil {
		return reply, fmt.Errorf("read the reply: %w", err)
	}
	return reply, nil
}

// Handler serves a call. The runtime receives a *types.Error as it is, and any other error as
// ErrInternal.
type Handler func(ctx context.Context, r Request) (*current.Result, error)

// Serve answers calls on l until ctx ends. timeout limits each call. list returns the answer of
// LIST.
func Serve(ctx context.Context, l *net.UnixListener, timeout time.Duration, h Handler, list func() []Attached) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept a CNI call: %w", err)
		case err != nil: // for example, no file descriptor is free: retry
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		go func() {
			defer conn.Close()
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			conn.SetDeadline(time.Now().Add(timeout + time.Second))
			answer(ctx, conn, h, list)
		}()
	}
}

func answer(ctx context.Context, conn *net.UnixConn, h Handler, list func() []Attached) {
	var reply Reply
	r, err := receive(conn)
	switch {
	case err != nil:
	case r.Command == commandList:
		reply.Attached = list()
	default:
		reply.Result, err = h(ctx, r)
	}
	if err != nil {
		var e *types.Error
		if !errors.As(err, &e) {
			e = types.NewError(types.ErrInternal, err.Error(), "")
		}
		reply = Reply{Error: e}
	}
	if r.Namespace != nil { // before the answer: the caller may unmount it then
		r.Namespace.Close()
	}
	_ = json.NewEncoder(conn).Encode(reply) // fails if the plugin is gone
}

// receive reads one request and the descriptor that is sent with its first byte.
func receive(conn *net.UnixConn) (Request, error) {
	var r Request
	first := make([]byte, 64<<10)
	oob := make([]byte, syscall.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(first, oob)
	if err != nil {
		return r, fmt.Errorf("read the request: %w", err)
	}
	namespace, err := descriptor(oob[:oobn])
	if err != nil {
		return r, err
	}
	rest, err := io.ReadAll(io.LimitReader(conn, maxMessage))
	if err == nil {
		err = json.Unmarshal(append(first[:n], rest...), &r)
	}
	if err != nil {
		if namespace != nil {
			namespace.Close()
		}
		return r, fmt.Errorf("read the request: %w", err)
	}
	r.Namespace = namespace
	return r, nil
}

func descriptor(oob []byte) (*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("read the namespace's descriptor: %d control messages: %w", len(messages), err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("read the namespace's descriptor: %d descriptors: %w", len(fds), err)
	}
	syscall.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "netns"), nil
}
