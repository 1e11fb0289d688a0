// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/netspace"
	"github.com/sif-project/sif/internal/testhost"
)

// TestAttachScripts runs what attaches against an agent that only takes notes: what an agent does,
// the tests of package agent and of e2e show. Names of namespaces are the machine's, so that each
// script has a prefix of its own, NAME.
func TestAttachScripts(t *testing.T) {
	testhost.RequireRoot(t)
	for _, path := range glob(t, "testdata/script/attach/*.txtar") {
		base := strings.TrimSuffix(filepath.Base(path), ".txtar")
		t.Run(base, func(t *testing.T) {
			prefix := fmt.Sprintf("siftest-%d-%s", os.Getpid(), base)
			dir, err := os.MkdirTemp("", "sif-attach-") // a socket's path is short
			must.NoError(t, err)
			t.Cleanup(func() {
				layout := netspace.Default(dir)
				for _, l := range layout.Leftovers() {
					if strings.Contains(l.Name, prefix) {
						must.NoError(t, l.Remove(context.Background()))
						t.Errorf("%s is left", l)
					}
				}
				must.NoError(t, os.RemoveAll(dir))
			})
			testscript.Run(t, testscript.Params{
				Files: []string{path}, RequireUniqueNames: true, RequireExplicitExec: true,
				Setup: func(env *testscript.Env) error {
					env.Setenv(withoutPause[0], withoutPause[1])
					env.Setenv("NAME", prefix)
					env.Setenv("SIF_RUN_DIR", dir)
					env.Setenv("SIF_WAIT", "0s")
					return nil
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "await": await},
			})
		})
	}
}

// await waits until a file exists, or does not: "await path", "! await path".
func await(ts *testscript.TestScript, neg bool, args []string) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(ts.MkAbs(args[0])); (err == nil) != neg {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("after 30 s: %s", args[0])
		}
	}
}

// notes is an agent that only takes notes. It refuses the Consul service "refused", and waits for
// the Consul service "late" as long as the caller does.
type notes struct {
	mu   sync.Mutex
	list []cnicall.Attached
}

func takeNotes() {
	socket := filepath.Join(os.Args[1], "cni.sock")
	_ = os.Remove(socket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	n := &notes{}
	_ = cnicall.Serve(ctx, l, 30*time.Second, n.handle, func() []cnicall.Attached {
		n.mu.Lock()
		defer n.mu.Unlock()
		return slices.Clone(n.list)
	})
}

func (n *notes) handle(_ context.Context, r cnicall.Request) (*current.Result, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at := cnicall.Attachment{ContainerID: r.ContainerID, IfName: r.IfName}
	same := func(a cnicall.Attached) bool { return a.Attachment == at }
	if r.Command == "DEL" {
		n.list = slices.DeleteFunc(n.list, same)
		return nil, nil
	}
	switch r.Attach.ConsulService {
	case "refused":
		return nil, types.NewError(types.ErrInternal, "not admitted to the fabric: for a reason", "")
	case "late":
		return nil, types.NewError(types.ErrTryAgainLater, "Consul service \"late\" is not registered", "")
	}
	inode, err := netspace.Inode(r.Namespace)
	if err != nil || slices.ContainsFunc(n.list, same) {
		return &current.Result{}, err
	}
	n.list = append(n.list, cnicall.Attached{
		Attached: *r.Attach, Attachment: at, Space: r.Space, Inode: inode, Endpoint: "f6f5ab7c-0000-4000-8000-000000000001",
		FabricService: fabric.Ref{Domain: "shop", Name: "db"}, IPv4: netip.MustParseAddr("100.64.0.9"), Since: time.Now(),
	})
	return &current.Result{}, nil
}

func TestDefaultName(t *testing.T) {
	for service, want := range map[string]string{
		"postgres": "postgres-7", "Web_App": "web-app-7", "__": "run-7", "-x-": "x-7", strings.Repeat("a", 40): strings.Repeat("a", 30) + "-7",
	} {
		got := defaultName(service, 7)
		must.Eq(t, want, got)
		must.NoError(t, netspace.CheckName(got))
	}
}

func TestEndpointsNamed(t *testing.T) {
	list := []api.Endpoint{
		{EndpointStatus: api.EndpointStatus{Endpoint: "4a2f0000-0000-4000-8000-000000000001", IPv4: netip.MustParseAddr("100.64.0.1"), Origin: fabric.Origin{Job: "web", Group: "proxy"}}},
		{EndpointStatus: api.EndpointStatus{Endpoint: "4a2f1111-0000-4000-8000-000000000002", IPv6: netip.MustParseAddr("fd00::2"), Origin: fabric.Origin{Attached: "4a2f", Consul: "db"}}},
		{EndpointStatus: api.EndpointStatus{Endpoint: "db000000-0000-4000-8000-000000000003", Origin: fabric.Origin{Attached: "db", Consul: "db"}}},
		{EndpointStatus: api.EndpointStatus{Endpoint: "dc000000-0000-4000-8000-000000000004", Origin: fabric.Origin{Attached: "db", Consul: "db"}}},
	}
	for name, want := range map[string]int{
		"4a2f0000-0000-4000-8000-000000000001": 1, "4a2f0": 1, "4a2": 2, "4a2f": 1, "100.64.0.1": 1, "fd00::2": 1, "db": 2, "d": 2, "": 0, "web": 0, "x": 0,
	} {
		must.Len(t, want, endpointsNamed(list, name), must.Sprint(name))
	}
}

func TestFormatEndpoints(t *testing.T) {
	text := formatEndpoints(api.EndpointList{
		Endpoints: []api.Endpoint{
			{Zone: "aws1", Node: "w1", EndpointStatus: api.EndpointStatus{Endpoint: "4a2f0000-0000-4000-8000-000000000001", Service: fabric.Ref{Domain: "shop", Name: "web"}, IPv4: netip.MustParseAddr("100.64.0.1"), InForce: true,
				Origin: fabric.Origin{Namespace: "prod", Job: "web", Group: "proxy", VM: true}}},
			{Zone: "aws1", Node: "w2", EndpointStatus: api.EndpointStatus{Endpoint: "db000000-0000-4000-8000-000000000003", Origin: fabric.Origin{Attached: "db", Consul: "postgres"}}},
		},
		Waiting: []api.NodeWaiting{{Zone: "aws1", Node: "w2", WaitingAttachment: api.WaitingAttachment{Name: "mq", ConsulService: "rabbit", Why: "it is not registered"}}},
	})
	for _, want := range []string{"4a2f0000  shop/web  aws1/w1  100.64.0.1  -     prod:web/proxy (VM)", "attached db (Consul service postgres)  no", "mq    rabbit          aws1/w2  it is not registered"} {
		must.StrContains(t, text, want)
	}
}
