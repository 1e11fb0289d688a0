// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package workloadapi_test

import (
	"context"
	"net"
	"os"
	"os/exec"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// fetchOver fetches an SVID over a connection, with the header that the standard demands or not.
func fetchOver(ctx context.Context, conn net.Conn, header bool) (*pb.X509SVIDResponse, error) {
	c, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if header {
		ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	}
	stream, err := pb.NewSpiffeWorkloadAPIClient(c).FetchX509SVID(ctx, &pb.X509SVIDRequest{})
	if err != nil {
		return nil, err
	}
	return stream.Recv()
}

// connectInside makes a connection in the namespace, by this process, which is outside.
func (f *fabricOf) connectInside(path string) (conn net.Conn) {
	f.t.Helper()
	must.NoError(f.t, f.space.Do(func(ns.NetNS) (err error) {
		conn, err = net.Dial("unix", path)
		return err
	}))
	return conn
}

// handedOut returns a connection that a process in the namespace made before it ended.
func (f *fabricOf) handedOut(path string) net.Conn {
	f.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must.NoError(f.t, err)
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	cmd := exec.Command("nsenter", "--net="+f.space.Path(), os.Args[0], path)
	cmd.Env, cmd.ExtraFiles, cmd.Stderr = append(os.Environ(), helperVariable+"=hand out"), []*os.File{theirs}, os.Stderr
	must.NoError(f.t, cmd.Run())
	theirs.Close()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(ours.Fd()), make([]byte, 1), oob, 0)
	must.NoError(f.t, err)
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	must.NoError(f.t, err)
	must.Len(f.t, 1, messages)
	fds, err := unix.ParseUnixRights(&messages[0])
	must.NoError(f.t, err)
	file := os.NewFile(uintptr(fds[0]), "connection")
	defer file.Close()
	conn, err := net.FileConn(file)
	must.NoError(f.t, err)
	return conn
}

// handOut is the process that does so: it writes the connection to descriptor 3.
func handOut(path string) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		panic(err)
	}
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		panic(err)
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(file.Fd())), nil, 0); err != nil {
		panic(err)
	}
}
