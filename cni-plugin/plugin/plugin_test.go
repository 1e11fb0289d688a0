// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package plugin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/google/go-cmp/cmp"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/testhost"
)

// bin is the directory of the plugin and of one that precedes it in a chain.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if bin, err = os.MkdirTemp("", "sif-cni"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(bin)
		if out, err := exec.Command("go", "build", "-o", filepath.Join(bin, "sif"), "..").CombinedOutput(); err != nil {
			panic(string(out))
		}
		// It answers like the loopback plugin.
		first := `#!/bin/sh
cat >/dev/null
[ "$CNI_COMMAND" = ADD ] || exit 0
printf '{"cniVersion":"1.0.0","interfaces":[{"name":"lo","mac":"00:00:00:00:00:00","sandbox":"%s"}],"ips":[{"address":"127.0.0.1/8","interface":0}],"dns":{"nameservers":["192.0.2.53"]}}' "$CNI_NETNS"
`
		if err := os.WriteFile(filepath.Join(bin, "first"), []byte(first), 0o755); err != nil {
			panic(err)
		}
		return m.Run()
	}())
}

// agent is the other end of the socket.
type agent struct {
	socket string
	answer func(cnicall.Request) (*current.Result, error)

	mu    sync.Mutex
	calls []cnicall.Request
	inode uint64 // of the last namespace received

	patience         time.Duration // of the last caller
	network, runtime string        // likewise
}

func newAgent(t *testing.T) *agent {
	a := &agent{socket: filepath.Join(t.TempDir(), "cni.sock")}
	a.answer = func(cnicall.Request) (*current.Result, error) { return nil, nil }
	return a
}

func (a *agent) serve(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.socket})
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- cnicall.Serve(ctx, l, 10*time.Second, a.handle, nil) }()
	t.Cleanup(func() { cancel(); must.NoError(t, <-done) })
}

func (a *agent) handle(_ context.Context, r cnicall.Request) (*current.Result, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inode = 0
	if r.Namespace != nil {
		var st unix.Stat_t
		if err := unix.Fstat(int(r.Namespace.Fd()), &st); err != nil {
			return nil, err
		}
		a.inode = st.Ino
	}
	a.patience = r.Patience
	kept := r
	kept.Namespace, kept.Patience, kept.Network, kept.Runtime = nil, 0, "", ""
	a.network, a.runtime = r.Network, r.Runtime
	a.calls = append(a.calls, kept)
	return a.answer(r)
}

func (a *agent) last() cnicall.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls[len(a.calls)-1]
}

// attached answers ADD like the real agent.
func attached(cnicall.Request) (*current.Result, error) {
	_, v4, _ := net.ParseCIDR("100.64.1.2/32")
	_, v6, _ := net.ParseCIDR("fd5f::2/128")
	return &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: "sif0123456789a", Mac: "02:00:00:00:00:01"},
			{Name: "eth0", Mac: "02:00:00:00:00:02", Sandbox: "netns"},
		},
		IPs: []*current.IPConfig{
			{Interface: current.Int(1), Address: *v4, Gateway: net.ParseIP("169.254.1.1")},
			{Interface: current.Int(1), Address: *v6, Gateway: net.ParseIP("fe80::1")},
		},
		DNS: types.DNS{Nameservers: []string{"169.254.1.1"}},
	}, nil
}

func namespace(t *testing.T) (ns.NetNS, uint64) {
	testhost.RequireRoot(t)
	n, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, n.Close())
		must.NoError(t, testutils.UnmountNS(n))
	})
	var st unix.Stat_t
	must.NoError(t, unix.Stat(n.Path(), &st))
	return n, st.Ino
}

// nomadPort has the JSON form of Nomad's port mappings.
type nomadPort struct {
	HostPort, ContainerPort int32
	Protocol, HostIP        string
}

func list(t *testing.T, version, socket string, chained bool) *libcni.NetworkConfigList {
	plugins := []map[string]any{{"type": "sif", "socket": socket, "timeout": "5s", "capabilities": map[string]bool{"portMappings": true}}}
	if chained {
		plugins = append([]map[string]any{{"type": "first"}}, plugins...)
	}
	data, err := json.Marshal(map[string]any{"cniVersion": version, "name": "sif", "plugins": plugins})
	must.NoError(t, err)
	l, err := libcni.NetworkConfFromBytes(data)
	must.NoError(t, err)
	return l
}

// Makes the calls of an attachment's life as Nomad does: through libcni, with arguments to ADD and
// none to DEL.
func TestThroughLibCNI(t *testing.T) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		for _, chained := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s chained=%t", version, chained), func(t *testing.T) {
				space, inode := namespace(t)
				a := newAgent(t)
				a.serve(t)
				ctx := context.Background()
				cni := libcni.NewCNIConfigWithCacheDir([]string{bin}, t.TempDir(), nil)
				conf := list(t, version, a.socket, chained)
				rt := &libcni.RuntimeConf{
					ContainerID: "5e8bd7c6-alloc", NetNS: space.Path(), IfName: "eth0",
					Args:           [][2]string{{"IgnoreUnknown", "true"}, {"NOMAD_JOB_ID", "web"}, {"NOMAD_ALLOC_ID", "5e8bd7c6"}, {"SIF_VM", "true"}, {"x", "y"}},
					CapabilityArgs: map[string]any{"portMappings": []nomadPort{{8080, 80, "tcp", "192.0.2.1"}}},
				}

				a.answer = attached
				res, err := cni.AddNetworkList(ctx, conf, rt)
				must.NoError(t, err)
				must.Eq(t, cnicall.Request{
					Command: "ADD", ContainerID: "5e8bd7c6-alloc", IfName: "eth0", Allocation: "5e8bd7c6", VM: true,
					Ports: []cnicall.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp", HostIP: "192.0.2.1"}},
				}, a.last())
				must.Eq(t, inode, a.inode)
				must.Eq(t, version, res.Version())
				got, err := current.GetResult(res)
				must.NoError(t, err)
				checkResult(t, got, space.Path(), chained)

				a.answer = func(cnicall.Request) (*current.Result, error) { return nil, nil }
				if version == "0.3.1" {
					must.ErrorContains(t, cni.CheckNetworkList(ctx, conf, rt), "does not support the CHECK command")
					return
				}
				must.NoError(t, cni.CheckNetworkList(ctx, conf, rt))
				must.Eq(t, cnicall.Request{
					Command: "CHECK", ContainerID: "5e8bd7c6-alloc", IfName: "eth0",
					Expected: &cnicall.Expected{MAC: "02:00:00:00:00:02", Addresses: []netip.Addr{netip.MustParseAddr("100.64.1.2"), netip.MustParseAddr("fd5f::2")}},
				}, a.last(), must.Cmp(cmp.Comparer(func(a, b netip.Addr) bool { return a == b })))
				must.Eq(t, []string{"sif", "plugin.test"}, []string{a.network, a.runtime})
				must.Eq(t, inode, a.inode)

				bare := &libcni.RuntimeConf{ContainerID: rt.ContainerID, NetNS: rt.NetNS, IfName: rt.IfName}
				must.NoError(t, cni.DelNetworkList(ctx, conf, bare))
				must.Eq(t, cnicall.Request{Command: "DEL", ContainerID: "5e8bd7c6-alloc", IfName: "eth0"}, a.last())

				if version == "1.1.0" {
					must.NoError(t, cni.GetStatusNetworkList(ctx, conf))
					must.Eq(t, "STATUS", a.last().Command)
					args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "c2", IfName: "eth0"}}}
					must.NoError(t, cni.GCNetworkList(ctx, conf, args))
					must.Eq(t, cnicall.Request{Command: "GC", Valid: []cnicall.Attachment{{ContainerID: "c2", IfName: "eth0"}}}, a.last())
				}
			})
		}
	}
}

func checkResult(t *testing.T, got *current.Result, sandbox string, chained bool) {
	t.Helper()
	want, _ := attached(cnicall.Request{})
	want.Interfaces[1].Sandbox = sandbox
	if chained {
		_, lo, _ := net.ParseCIDR("127.0.0.1/8")
		lo.IP = net.ParseIP("127.0.0.1")
		want.Interfaces = append([]*current.Interface{{Name: "lo", Mac: "00:00:00:00:00:00", Sandbox: sandbox}}, want.Interfaces...)
		for _, ip := range want.IPs {
			*ip.Interface++
		}
		want.IPs = append([]*current.IPConfig{{Interface: current.Int(0), Address: *lo}}, want.IPs...)
	}
	if len(got.Routes) == 0 { // old versions make an empty list of it
		got.Routes = nil
	}
	addresses := cmp.Comparer(func(a, b net.IP) bool { return a.Equal(b) })
	must.Eq(t, want, got, must.Cmp(addresses))
}

// run starts the plugin as a runtime does.
func run(t *testing.T, stdin string, env ...string) (stdout, stderr string, code int) {
	t.Helper()
	c := exec.Command(filepath.Join(bin, "sif"))
	c.Env = append([]string{"CNI_PATH=" + bin}, env...)
	c.Stdin = strings.NewReader(stdin)
	var o, e bytes.Buffer
	c.Stdout, c.Stderr = &o, &e
	c.Run()
	return o.String(), e.String(), c.ProcessState.ExitCode()
}

func call(command, netns string) []string {
	env := []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=" + netns}
	if command == "ADD" {
		env = append(env, "CNI_ARGS=NOMAD_ALLOC_ID=a1")
	}
	return env
}

func conf(socket, timeout string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"sif","type":"sif","socket":%q,"timeout":%q}`, socket, timeout)
}

func TestFingerprint(t *testing.T) {
	_, stderr, code := run(t, "")
	must.Eq(t, 0, code)
	must.RegexMatch(t, regexp.MustCompile(`^CNI sif plugin v\d+\.\d+\.\d+\S*\n`), stderr)
	stdout, _, code := run(t, `{"cniVersion":"1.1.0"}`, "CNI_COMMAND=VERSION")
	must.Eq(t, 0, code)
	must.Eq(t, `{"cniVersion":"1.1.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}`+"\n", stdout)
}

func TestDelWithoutAgent(t *testing.T) {
	stdout, stderr, code := run(t, conf(filepath.Join(t.TempDir(), "none.sock"), ""), call("DEL", "")...)
	must.Eq(t, 0, code)
	must.Eq(t, "", stdout)
	must.StrContains(t, stderr, "container c1 is left for the agent to clean up")
}

func TestErrors(t *testing.T) {
	space, _ := namespace(t)
	a := newAgent(t)
	a.answer = func(r cnicall.Request) (*current.Result, error) {
		if r.Command == "STATUS" {
			return nil, types.NewError(types.ErrTryAgainLater, "no engine", "")
		}
		return nil, types.NewError(types.ErrInternal, "not admitted to the fabric: no selector matched", "tried: job=web")
	}
	a.serve(t)
	for name, tc := range map[string]struct {
		stdin string
		env   []string
		code  uint
		want  string
	}{
		"the agent's error":   {conf(a.socket, ""), call("ADD", space.Path()), types.ErrInternal, "no selector matched"},
		"DEL refused":         {conf(a.socket, ""), call("DEL", space.Path()), types.ErrInternal, "no selector matched"},
		"no socket":           {conf("", ""), call("ADD", space.Path()), types.ErrInvalidNetworkConfig, "socket"},
		"bad timeout":         {conf(a.socket, "soon"), call("ADD", space.Path()), types.ErrInvalidNetworkConfig, `\"soon\"`},
		"negative timeout":    {conf(a.socket, "-1s"), call("ADD", space.Path()), types.ErrInvalidNetworkConfig, `\"-1s\"`},
		"no namespace":        {conf(a.socket, ""), call("ADD", "/run/netns/none"), types.ErrInvalidEnvironmentVariables, "CNI_NETNS: open the workload's network namespace: open /run/netns/none"},
		"the node's own":      {conf(a.socket, ""), call("ADD", "/proc/self/ns/net"), types.ErrInvalidEnvironmentVariables, "CNI_NETNS: /proc/self/ns/net is the node's own network namespace"},
		"arguments":           {conf(a.socket, ""), append(call("ADD", space.Path()), "CNI_ARGS=NOMAD_ALLOC_ID=a;NOMAD_ALLOC_ID=b"), types.ErrInvalidEnvironmentVariables, "twice"},
		"VM or not":           {conf(a.socket, ""), append(call("ADD", space.Path()), "CNI_ARGS=NOMAD_ALLOC_ID=a;SIF_VM=yes"), types.ErrInvalidEnvironmentVariables, "SIF_VM"},
		"unknown version":     {strings.Replace(conf(a.socket, ""), "1.0.0", "0.2.0", 1), call("ADD", space.Path()), types.ErrIncompatibleCNIVersion, "0.2.0"},
		"no agent, out of it": {conf(a.socket+".none", "300ms"), call("ADD", space.Path()), types.ErrTryAgainLater, "not running"},
		"STATUS":              {strings.Replace(conf(a.socket, ""), "1.0.0", "1.1.0", 1), call("STATUS", ""), types.ErrPluginNotAvailable, "no engine"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, _, code := run(t, tc.stdin, tc.env...)
			must.Eq(t, 1, code)
			var e types.Error
			must.NoError(t, json.Unmarshal([]byte(stdout), &e))
			must.Eq(t, tc.code, e.Code)
			must.StrContains(t, stdout, tc.want)
		})
	}
}

// ADD survives a restart of the agent and ends at its timeout if the agent does not answer.
func TestADDIsBoundInTime(t *testing.T) {
	space, _ := namespace(t)
	a := newAgent(t)
	a.answer = attached
	time.AfterFunc(7*time.Second, func() { a.serve(t) })
	_, _, code := run(t, conf(a.socket, ""), call("ADD", space.Path())...)
	must.Eq(t, 0, code)
	must.Between(t, 20*time.Second, a.patience, 24*time.Second)

	// What the agent answers is the end: it has waited for as long as it makes sense.
	calls := 0
	a.answer = func(cnicall.Request) (*current.Result, error) {
		calls++
		return nil, types.NewError(types.ErrTryAgainLater, "no engine of zone aws1 can be reached", "")
	}
	stdout, _, code := run(t, conf(a.socket, ""), call("ADD", space.Path())...)
	must.Eq(t, 1, code)
	must.StrContains(t, stdout, "no engine of zone aws1")
	must.Eq(t, 1, calls)

	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	silent := newAgent(t)
	silent.answer = func(cnicall.Request) (*current.Result, error) { <-release; return nil, nil }
	silent.serve(t)
	start := time.Now()
	stdout, _, code = run(t, conf(silent.socket, "500ms"), call("ADD", space.Path())...)
	must.Eq(t, 1, code)
	must.StrContains(t, stdout, "did not answer")
	must.Less(t, 3*time.Second, time.Since(start))
}
