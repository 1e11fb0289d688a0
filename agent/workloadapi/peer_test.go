// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package workloadapi_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// clientOver returns a client that uses a connection.
func (f *fabricOf) clientOver(conn net.Conn) pb.SpiffeWorkloadAPIClient {
	f.t.Helper()
	c, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }))
	must.NoError(f.t, err)
	f.t.Cleanup(func() { c.Close() })
	return pb.NewSpiffeWorkloadAPIClient(c)
}

// withHeader adds the header that the standard demands.
func withHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

// fetchOver fetches an SVID over a connection.
func (f *fabricOf) fetchOver(ctx context.Context, conn net.Conn) (*pb.X509SVIDResponse, error) {
	stream, err := f.clientOver(conn).FetchX509SVID(ctx, &pb.X509SVIDRequest{})
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

// handedOut returns a connection that a process in the namespace made, and that the agent has
// accepted; end ends the process.
func (f *fabricOf) handedOut(path string) (conn net.Conn, end func()) {
	f.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must.NoError(f.t, err)
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	cmd := exec.Command("nsenter", "--net="+f.space.Path(), os.Args[0], path)
	cmd.Env, cmd.ExtraFiles, cmd.Stderr = append(os.Environ(), helperVariable+"=hand out"), []*os.File{theirs}, os.Stderr
	must.NoError(f.t, cmd.Start())
	theirs.Close()
	end = sync.OnceFunc(func() {
		ours.Close()
		must.NoError(f.t, cmd.Wait())
	})
	f.t.Cleanup(end)
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
	// The server speaks first, when it knows who has connected.
	_, _, err = unix.Recvfrom(int(file.Fd()), make([]byte, 1), unix.MSG_PEEK)
	must.NoError(f.t, err)
	conn, err = net.FileConn(file)
	must.NoError(f.t, err)
	return conn, end
}

// handOut is the process that does so: it writes the connection to descriptor 3, and ends when that
// is closed at the other end.
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
	_, _ = unix.Read(3, make([]byte, 1))
}

// manyCalls is a client that opens calls until it is refused.
func manyCalls(ctx context.Context, address string) {
	open := 0
	var leave context.CancelFunc
	for {
		c, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			panic(err)
		}
		api := pb.NewSpiffeWorkloadAPIClient(c)
		call := func(ctx context.Context) error {
			stream, err := api.FetchX509Bundles(withHeader(ctx), &pb.X509BundlesRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}
		for range 100 { // those of a connection
			one, cancel := context.WithCancel(ctx)
			if err = call(one); err != nil {
				cancel()
				break
			}
			open, leave = open+1, cancel
		}
		if err == nil {
			continue
		}
		fmt.Println(open, status.Code(err))
		leave()
		for status.Code(err) == codes.ResourceExhausted {
			time.Sleep(20 * time.Millisecond)
			err = call(ctx)
		}
		fmt.Println("then", status.Code(err))
		return
	}
}
