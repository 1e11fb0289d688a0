// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"

	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/wellknown"
)

// proof is what one end of a connection proved to the other (jobs/demo).
type proof struct{ ID, Serial string }

// provenAnswer is the part of getaway-svc's answer that weather-gw gave.
type provenAnswer struct {
	Weather struct {
		Caller, Server *proof
		Error          string
	} `json:"weather"`
}

// proofs asks getaway-svc without a pause, which asks weather-gw by mutual TLS in a connection
// of its own each time.
type proofs struct {
	asking          sync.Mutex
	mu              sync.Mutex
	made            int
	callers, server map[string]bool // serial numbers of certificates
	failures        []error
	stop            func()
}

func openProofs(t *testing.T, svc workload, callerID, serverID string) *proofs {
	t.Helper()
	x := &proofs{callers: map[string]bool{}, server: map[string]bool{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			x.asking.Lock()
			x.note(provenOnce(svc, callerID, serverID))
			x.asking.Unlock()
			time.Sleep(50 * time.Millisecond)
		}
	}()
	x.stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(x.stop)
	return x
}

func provenOnce(svc workload, callerID, serverID string) (provenAnswer, error) {
	reply, err := ask[provenAnswer](svc.netns, "http://"+addressOf(svc, 8080).String()+"/getaway?place=lisbon", nil)
	w := reply.Data.Weather
	switch {
	case err != nil:
	case w.Error != "" || w.Caller == nil || w.Server == nil:
		err = fmt.Errorf("no answer by mutual TLS: %+v", w)
	case w.Caller.ID != callerID || w.Server.ID != serverID:
		err = fmt.Errorf("the two proved to be %s and %s, expected %s and %s", w.Caller.ID, w.Server.ID, callerID, serverID)
	}
	return reply.Data, err
}

func (x *proofs) note(e provenAnswer, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.made++
	if err != nil {
		x.failures = append(x.failures, fmt.Errorf("%s: %w", time.Now().Format(time.TimeOnly), err))
		return
	}
	x.callers[e.Weather.Caller.Serial], x.server[e.Weather.Server.Serial] = true, true
}

// begin forgets what failed so far, and waits for what is under way.
func (x *proofs) begin() {
	x.asking.Lock()
	defer x.asking.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.failures = nil
}

// seen returns how many certificates each end has shown, and what failed.
func (x *proofs) seen() (made, callers, servers int, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.made, len(x.callers), len(x.server), errors.Join(x.failures...)
}

// TestWorkloadAPI has two programs, which know nothing of the fabric but go-spiffe, prove to each
// other who they are across zones, through rotations and a killed agent. Who is in no workload, or
// claims to be in one, gets nothing.
func TestWorkloadAPI(t *testing.T) {
	vault, err := world.Vault(world.Secrets.VaultRoot)
	must.NoError(t, err)
	// Certificates that live as short as they can, so that the test sees several.
	role := wellknown.PKIMount + "/roles/" + setup.RoleApplication
	before, err := vault.Logical().Read(role)
	must.NoError(t, err)
	life := func(ttl any) {
		_, err := vault.Logical().JSONMergePatch(context.Background(), role, map[string]any{"ttl": ttl, "max_ttl": ttl})
		must.NoError(t, err)
	}
	life("60s")
	t.Cleanup(func() { life(before.Data["ttl"]) })

	r := world.sif(t, "graph", "apply", "-message="+t.Name(), filepath.Join(world.root, "jobs/identity"))
	must.Zero(t, r.code, must.Sprint(r.stderr))
	t.Cleanup(func() { world.sif(t, "graph", "apply", "-remove-domain=identity-app") })
	world.purgeAtEnd(t, "default", "identity")
	r = world.sif(t, "job", "run", filepath.Join(world.root, "jobs/identity/identity.nomad.hcl"))
	must.Zero(t, r.code, must.Sprint(r.stdout, r.stderr))
	svc, weather := world.workload(t, "identity-app/getaway-svc", "aws1"), world.workload(t, "identity-app/weather-gw", "gcp1")
	id := func(w workload) string { return "spiffe://" + world.Topology.TrustDomain + w.service.SPIFFE() }

	eventually(t, time.Minute, func() error { // the name is known when the health is
		_, err := provenOnce(svc, id(svc), id(weather))
		return err
	})
	x := openProofs(t, svc, id(svc), id(weather))
	rotated := func(times int) {
		t.Helper()
		_, c, s, _ := x.seen()
		eventually(t, 5*time.Minute, func() error {
			made, callers, servers, err := x.seen()
			if err != nil {
				t.Fatalf("of %d requests some failed:\n%v", made, err)
			}
			if callers < c+times || servers < s+times {
				return fmt.Errorf("after %d requests one end has shown %d certificates, and the other %d", made, callers, servers)
			}
			return nil
		})
	}
	rotated(2)
	for _, w := range []workload{svc, weather} {
		must.NoError(t, world.Signal(w.node, "agent", syscall.SIGKILL))
		must.NoError(t, world.Start(w.node, "agent"))
	}
	// Each connection asks for the name, which the agent answers: while it is away, a question
	// waits for the resolver's next attempt. What it has answered again counts.
	world.allWell(t, time.Minute)
	eventually(t, time.Minute, func() error {
		_, err := provenOnce(svc, id(svc), id(weather))
		return err
	})
	x.begin()
	rotated(2)
	x.stop()
	made, callers, servers, err := x.seen()
	must.NoError(t, err)
	t.Logf("%d connections by mutual TLS, with %d and %d certificates, none failed", made, callers, servers)

	t.Run("nobody else", func(t *testing.T) { testNobodyElse(t, svc) })
	t.Run("a caller that proves nothing", func(t *testing.T) {
		conn, err := dial(svc.netns, addressOf(weather, 9003), 5*time.Second)
		must.NoError(t, err)
		c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		defer c.Close()
		_, err = fmt.Fprint(c, "GET /weather?place=lisbon HTTP/1.0\r\n\r\n")
		must.NoError(t, err)
		answer := make([]byte, 1000)
		n, _ := c.Read(answer)
		must.StrContains(t, string(answer[:n]), "403")
	})
	t.Run("files", func(t *testing.T) { testCertFiles(t, svc, id(svc)) })
	world.allWell(t, time.Minute)
}

func apiAddress(w workload) string {
	return "unix://" + filepath.Join(world.WorkloadAPIDir(w.node), wellknown.WorkloadAPISocket)
}

// testNobodyElse asks from outside every workload, and on a connection that was made in the
// namespace of a workload by a process that is elsewhere.
func testNobodyElse(t *testing.T, svc workload) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(apiAddress(svc)))
	must.ErrorContains(t, err, "PermissionDenied")
	must.ErrorContains(t, err, "is in no workload of the fabric")

	path := filepath.Join(world.WorkloadAPIDir(svc.node), wellknown.WorkloadAPISocket)
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			return within(svc.netns, func() (net.Conn, error) { return net.Dial("unix", path) })
		}))
	must.NoError(t, err)
	defer conn.Close()
	api := pb.NewSpiffeWorkloadAPIClient(conn)
	_, err = api.FetchJWTSVID(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), &pb.JWTSVIDRequest{Audience: []string{"x"}})
	must.Eq(t, codes.PermissionDenied, status.Code(err), must.Sprint(err))
	must.ErrorContains(t, err, "has left the network namespace in which it connected")
	_, err = api.FetchJWTSVID(ctx, &pb.JWTSVIDRequest{Audience: []string{"x"}})
	must.Eq(t, codes.InvalidArgument, status.Code(err), must.Sprint(err))
}

// testCertFiles has sif cert write files in a workload, and openssl's rules read them.
func testCertFiles(t *testing.T, svc workload, id string) {
	dir := t.TempDir()
	cert := func(args ...string) (string, error) {
		out, err := exec.Command("nsenter", append([]string{"--net=" + svc.netns, filepath.Join(world.Bin, "sif"), "cert", "-once", "-socket=" + apiAddress(svc), "-dir=" + dir}, args...)...).CombinedOutput()
		return string(out), err
	}
	out, err := cert("-reload-command=echo $$ >" + dir + "/told")
	must.NoError(t, err, must.Sprint(out))
	must.StrContains(t, out, id)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid-key.pem"))
	must.NoError(t, err)
	must.Eq(t, []*url.URL{{Scheme: "spiffe", Host: world.Topology.TrustDomain, Path: svc.service.SPIFFE()}}, pair.Leaf.URIs)
	must.FileExists(t, filepath.Join(dir, "bundle.pem"))
	must.FileExists(t, filepath.Join(dir, "told"))
	info, err := os.Stat(filepath.Join(dir, "svid-key.pem"))
	must.NoError(t, err)
	must.Eq(t, os.FileMode(0o600), info.Mode().Perm())
	entries, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.Len(t, 6, entries, must.Sprint(entries)) // three files, the link, its directory, and what the command wrote
}
