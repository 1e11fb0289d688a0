// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"

	"github.com/sif-project/sif/internal/limit"
)

// Caller is the process at the other end of a connection.
type Caller struct {
	// Namespace is the network namespace in which the connection was made, and in which the process
	// is. It is closed when the question about it is answered.
	Namespace *os.File
	PID       int
}

// peer is the other end of a connection. It implements credentials.AuthInfo.
//
// Two things are compared, and neither can be chosen by the process. The kernel creates our end of
// a connection in the network namespace in which the caller's socket was made
// (unix_stream_connect), and tells which one that is (SIOCGSKNS). And it tells which process
// connected: as a descriptor (SO_PEERPIDFD, Linux 6.5), or as a number, of which we open one. A
// process that changes its namespace, or the next one that has its number, has no connection that
// was made where it is.
type peer struct {
	credentials.CommonAuthInfo
	conn      syscall.RawConn
	namespace uint64 // the inode of the network namespace in which the connection was made
	pid       int
	process   *os.File // a pidfd
}

// AuthType implements credentials.AuthInfo.
func (*peer) AuthType() string { return "unix" }

// errEnded says that the process that connected is gone. Who has its connection now is unknown.
var errEnded = errors.New("the process that connected has ended: connect again")

// caller returns who is at the other end now. The caller closes its Namespace.
func (p *peer) caller() (Caller, error) {
	c := Caller{PID: p.pid}
	var made int
	var err error
	if e := p.conn.Control(func(fd uintptr) { made, err = unix.IoctlRetInt(int(fd), unix.SIOCGSKNS) }); e != nil {
		return c, fmt.Errorf("look at the connection: %w", e)
	}
	if err != nil {
		return c, fmt.Errorf("ask in which network namespace the connection was made: %w", err)
	}
	unix.CloseOnExec(made)
	c.Namespace = os.NewFile(uintptr(made), "network namespace of the connection")
	if err := p.isIn(made); err != nil {
		c.Namespace.Close()
		return c, err
	}
	return c, nil
}

// isIn returns an error unless the process lives and is in a network namespace.
func (p *peer) isIn(namespace int) error {
	var made, has unix.Stat_t
	if err := unix.Fstat(namespace, &made); err != nil {
		return fmt.Errorf("look at the network namespace of the connection: %w", err)
	}
	err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", p.pid), &has)
	// If it lives now, it has lived all the time, and the number meant no other process.
	if !p.lives() {
		return errEnded
	}
	if err != nil {
		return fmt.Errorf("look at the network namespace of process %d: %w", p.pid, err)
	}
	if made.Dev != has.Dev || made.Ino != has.Ino {
		return fmt.Errorf("process %d has left the network namespace in which it connected", p.pid)
	}
	return nil
}

// lives reports whether the process has not ended.
func (p *peer) lives() bool {
	raw, err := p.process.SyscallConn()
	if err != nil {
		return false
	}
	var ready int
	if e := raw.Control(func(fd uintptr) {
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			ready, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		}
	}); e != nil {
		return false // the connection is closed
	}
	return err == nil && ready == 0
}

// Limits of connections, by network namespace and in all.
const (
	maxConnsEach = 256
	maxConns     = 4096
)

// transport is what gRPC asks for the credentials of connections. There is no encryption: the
// socket does not leave the machine.
type transport struct {
	conns *limit.Count[uint64] // by the inode of their network namespace
}

// ServerHandshake implements credentials.TransportCredentials.
func (t transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, err := open(conn)
	if err != nil {
		return nil, nil, err
	}
	if !t.conns.Take(p.namespace) {
		p.process.Close()
		return nil, nil, fmt.Errorf("process %d: its network namespace has %d connections already, or all have %d", p.pid, maxConnsEach, maxConns)
	}
	return limit.OnClose(conn, func() {
		t.conns.Release(p.namespace)
		p.process.Close()
	}), p, nil
}

// open returns the other end of a connection.
func open(conn net.Conn) (*peer, error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("a connection of type %T is not one of a unix socket", conn)
	}
	p := &peer{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	var err error
	if p.conn, err = c.SyscallConn(); err != nil {
		return nil, fmt.Errorf("look at the connection: %w", err)
	}
	if e := p.conn.Control(func(fd uintptr) { err = p.identify(int(fd)) }); e != nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("find out which process has connected: %w", err)
	}
	return p, nil
}

// identify asks the kernel for the process, and for the namespace of the connection.
func (p *peer) identify(fd int) error {
	who, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return err
	}
	if who.Pid <= 0 {
		return errors.New("it is not a process of this machine, or the agent does not see it")
	}
	p.pid = int(who.Pid)
	made, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return fmt.Errorf("ask in which network namespace it connected: %w", err)
	}
	defer unix.Close(made)
	var namespace unix.Stat_t
	if err := unix.Fstat(made, &namespace); err != nil {
		return err
	}
	p.namespace = namespace.Ino
	process, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) {
		// A kernel before 6.5. Should the number mean another process by now, that one is not where
		// the connection was made, or it is of the same workload; or both are of the node's own
		// namespace, where nothing tells them apart.
		process, err = unix.PidfdOpen(p.pid, 0)
	}
	if err != nil {
		return errors.Join(errEnded, err)
	}
	unix.CloseOnExec(process)
	p.process = os.NewFile(uintptr(process), "process that connected")
	return nil
}

// Info implements credentials.TransportCredentials.
func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

// ClientHandshake implements credentials.TransportCredentials. No client uses it.
func (transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.ErrUnsupported
}

// Clone implements credentials.TransportCredentials.
func (t transport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName implements credentials.TransportCredentials, which has it for clients.
func (transport) OverrideServerName(string) error { return nil }
