// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package firewallcall carries the calls of `sif node firewall` to the daemon of the machine that
// has the node's own firewall, over a unix socket in its run directory. It knows the socket and the
// messages, not what a call does.
package firewallcall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/sif-project/sif/api"
)

// socketName is the name of the socket in the run directory.
const socketName = "firewall.sock"

// maxMessage bounds a message, in bytes, and timeout a call.
const (
	maxMessage = 4 << 20
	timeout    = 30 * time.Second
)

// Action is what a call asks for.
type Action string

const (
	Status  Action = "status"
	Enforce Action = "enforce" // for a time
	Confirm Action = "confirm" // that the time has no end
	Report  Action = "report"
)

// Connection is the TCP connection over which somebody is logged in.
type Connection struct {
	Client netip.AddrPort `json:"client"`
	Server netip.AddrPort `json:"server"`
}

// Request is a call.
type Request struct {
	Action Action `json:"action"`
	// Connection is that of the caller's session, if it has one: Confirm is refused over one that
	// is older than the change.
	Connection *Connection `json:"connection,omitempty"`
}

type reply struct {
	Status api.FirewallStatus `json:"status"`
	Error  string             `json:"error,omitempty"`
}

// Call sends a request to the daemon with this run directory, and returns the state afterwards.
func Call(ctx context.Context, runDir string, r Request) (api.FirewallStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	socket := filepath.Join(runDir, socketName)
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return api.FirewallStatus{}, fmt.Errorf("no daemon answers at %s: is sif agent or sif engine running on this machine, and are you root? %w", socket, err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	var got reply
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return got.Status, fmt.Errorf("send the call: %w", err)
	}
	if err := json.NewDecoder(io.LimitReader(conn, maxMessage)).Decode(&got); err != nil {
		return got.Status, fmt.Errorf("read the answer: %w", err)
	}
	if got.Error != "" {
		return got.Status, errors.New(got.Error)
	}
	return got.Status, nil
}

// Handler does what a call asks for.
type Handler func(Request) (api.FirewallStatus, error)

// Serve answers calls until ctx ends.
func Serve(ctx context.Context, runDir string, h Handler) error {
	socket := filepath.Join(runDir, socketName)
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the firewall's socket of an earlier daemon: %w", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen for calls about the firewall: %w", err)
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	if err := os.Chmod(socket, 0o600); err != nil {
		return fmt.Errorf("set the permissions of the firewall's socket: %w", err)
	}
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept a call about the firewall: %w", err)
		}
		go answer(conn, h)
	}
}

func answer(conn net.Conn, h Handler) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(timeout))
	var r Request
	var out reply
	err := json.NewDecoder(io.LimitReader(conn, maxMessage)).Decode(&r)
	if err == nil {
		out.Status, err = h(r)
	}
	if err != nil {
		out.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(out) // a caller that has gone needs no answer
}
