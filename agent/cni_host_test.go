// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/testhost"
)

// cniHost is a node with the plugin and an agent in a namespace of its own, and what calls the
// plugin as a container runtime does. The plugin is the built one, and the interfaces are real.
type cniHost struct {
	*attachingAgent
	bin    string // the plugin "sif", the plugins of the CNI project, and cnitool
	socket string
	dir    string // of cnitool's network configurations
	cache  string // stands for /var/lib, where cnitool keeps results
	n      int    // of containers so far
}

func newCNIHost(t *testing.T) *cniHost {
	h := &cniHost{attachingAgent: newAttachingAgent(t), dir: t.TempDir(), cache: t.TempDir()}
	h.bin = testhost.CNI(t, map[string]string{"sif": "./cni-plugin"})
	h.register("web-1", "web")
	h.Agent.node.Self.Pool4, h.Agent.node.Self.Pool6 = h.addresses.pool4, h.addresses.pool6
	short, err := os.MkdirTemp("", "sif") // a socket's path is short
	must.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(short) })
	h.socket = filepath.Join(short, "cni.sock")
	h.serve(t)
	return h
}

// serve answers CNI calls, in the namespace of the node, until the returned function is called.
func (h *cniHost) serve(t *testing.T) (stop func()) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.socket})
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- cnicall.Serve(ctx, l, cniTimeout, func(ctx context.Context, r cnicall.Request) (result *current.Result, err error) {
			if entered := h.node.Do(func(ns.NetNS) error {
				result, err = h.Handle(ctx, r)
				return nil
			}); entered != nil {
				return nil, entered
			}
			return result, err
		}, h.listAttached)
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			must.NoError(t, <-done)
		})
	}
	t.Cleanup(stop)
	return stop
}

// container is a container of a runtime.
type container struct {
	id, netns string
	ns.NetNS
}

func (h *cniHost) container(t *testing.T) container {
	h.n++
	space := newNamespace(t)
	return container{fmt.Sprintf("%012x%052x", h.n, h.n), space.Path(), space}
}

// entry is the plugin's entry of a network configuration. changes has keys that replace others, or
// take them away if they are nil.
func (h *cniHost) entry(changes map[string]any) map[string]any {
	e := map[string]any{"cniVersion": "1.1.0", "name": "net", "type": "sif", "socket": h.socket, "timeout": "5s", "consul_service": "web"}
	for key, value := range changes {
		if e[key] = value; value == nil {
			delete(e, key)
		}
	}
	return e
}

// run executes the plugin.
func (h *cniHost) run(t *testing.T, command string, c container, conf any, env ...string) (stdout, stderr string, code int) {
	t.Helper()
	stdin, is := conf.(string)
	if !is {
		data, err := json.Marshal(conf)
		must.NoError(t, err)
		stdin = string(data)
	}
	var out, errs bytes.Buffer
	h.inNode(func() {
		cmd := exec.Command(filepath.Join(h.bin, "sif"))
		cmd.Env = append([]string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + c.id, "CNI_NETNS=" + c.netns, "CNI_IFNAME=eth0", "CNI_PATH=" + h.bin}, env...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
		if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		code = cmd.ProcessState.ExitCode()
	})
	return out.String(), errs.String(), code
}

// add executes ADD and returns its result.
func (h *cniHost) add(t *testing.T, c container, conf any, env ...string) map[string]any {
	t.Helper()
	stdout, stderr, code := h.run(t, "ADD", c, conf, env...)
	must.Eq(t, 0, code, must.Sprint(stdout))
	must.Eq(t, "", stderr)
	var result map[string]any
	must.NoError(t, json.Unmarshal([]byte(stdout), &result))
	return result
}

// well executes a command without a result.
func (h *cniHost) well(t *testing.T, command string, c container, conf any, env ...string) {
	t.Helper()
	stdout, stderr, code := h.run(t, command, c, conf, env...)
	must.Eq(t, []any{0, ""}, []any{code, stdout}, must.Sprint(command, stderr))
}

// fails executes a command that fails, and returns its error.
func (h *cniHost) fails(t *testing.T, code uint, want, command string, c container, conf any, env ...string) {
	t.Helper()
	stdout, stderr, exit := h.run(t, command, c, conf, env...)
	must.Eq(t, 1, exit, must.Sprint(stdout, stderr))
	e := struct {
		CNIVersion string
		types.Error
	}{}
	must.NoError(t, json.Unmarshal([]byte(stdout), &e), must.Sprint(stdout))
	must.Eq(t, code, e.Code, must.Sprint(stdout))
	must.NotEq(t, "", e.CNIVersion)
	must.StrContains(t, e.Msg+" "+e.Details, want)
	must.StrContains(t, stderr, e.Msg)
}

// inside returns what a program prints in the namespace of a container.
func (c container) inside(t *testing.T, program ...string) string {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + c.netns}, program...)...).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return string(out)
}

// has reports whether the container has the interface.
func (c container) has(t *testing.T, name string) (has bool) {
	must.NoError(t, c.Do(func(ns.NetNS) error {
		_, err := netlink.LinkByName(name)
		has = err == nil
		return nil
	}))
	return has
}

func (h *cniHost) known(c container) bool {
	_, has := h.endpoints.get(cnicall.Attachment{ContainerID: c.id, IfName: "eth0"})
	return has
}

// list returns a network configuration list of plugins.
func (h *cniHost) list(t *testing.T, version string, plugins ...map[string]any) *libcni.NetworkConfigList {
	t.Helper()
	data, err := json.Marshal(map[string]any{"cniVersion": version, "name": "net", "plugins": plugins})
	must.NoError(t, err)
	l, err := libcni.NetworkConfFromBytes(data)
	must.NoError(t, err)
	return l
}

// plain is the entry without what libcni puts there.
func (h *cniHost) plain(changes map[string]any) map[string]any {
	e := h.entry(changes)
	delete(e, "cniVersion")
	delete(e, "name")
	return e
}

func runtimeOf(c container) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: c.id, NetNS: c.netns, IfName: "eth0"}
}

// cnitool runs the command line of the CNI project, as its own process.
func (h *cniHost) cnitool(t *testing.T, command string, c container, env ...string) (string, error) {
	t.Helper()
	var out []byte
	var err error
	h.inNode(func() {
		cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$1" /var/lib && shift && exec "$@"`, "sh", h.cache,
			filepath.Join(h.bin, "cnitool"), command, "net", c.netns)
		cmd.Env = append(os.Environ(), append(env, "NETCONFPATH="+h.dir, "CNI_PATH="+h.bin)...)
		out, err = cmd.CombinedOutput()
	})
	return string(out), err
}

// written puts a network configuration list where cnitool reads it.
func (h *cniHost) written(t *testing.T, list map[string]any) {
	t.Helper()
	data, err := json.Marshal(list)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(filepath.Join(h.dir, "net.conflist"), data, 0o600))
}

const conformancePage = "../docs/cni.md"

// left returns what cases left attached.
func (h *cniHost) left() map[string]bool {
	left := map[string]bool{}
	for _, ep := range h.endpoints.all() {
		left[ep.Attachment.ContainerID] = true
	}
	for _, s := range h.standings.all() {
		left[s.Attachment.ContainerID] = true
	}
	return left
}
