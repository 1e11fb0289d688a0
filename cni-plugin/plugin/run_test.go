// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/cnicall"
)

// Whatever comes on stdin and in the variables: the plugin ends by itself, with a result or an
// error as the specification has them, and never by a panic.
func FuzzMain(f *testing.F) {
	for _, seed := range [][3]string{
		{"ADD", `{"cniVersion":"1.1.0","name":"sif","socket":"S","consul_service":"web"}`, "NOMAD_ALLOC_ID=a"},
		{"DEL", `{"cniVersion":"0.3.1","name":"sif","socket":"S","prevResult":{"interfaces":[{"name":"eth0"}],"ips":[{"version":"4","address":"192.0.2.1/24","interface":0}]}}`, ""},
		{"CHECK", `{"cniVersion":"0.4.0","name":"sif","socket":"S","prevResult":{"cniVersion":"0.4.0","ips":[null],"routes":[{"dst":"::/0"}],"dns":{}}}`, "SIF_VM=true"},
		{"GC", `{"cniVersion":"1.1.0","name":"sif","socket":"S","cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}],"cni.dev/attachments":null}`, ""},
		{"STATUS", `{"cniVersion":"1.1.0","name":"sif","socket":"S","timeout":"1ns"}`, ""},
		{"VERSION", `{"cniVersion":"1.0.0"}`, ""},
		{"VERSION", "", "\x00"},
		{"ADD", `{"cniVersion":"1.1.0","name":"sif","socket":"S","ipam":{"type":"x"},"dns":{"nameservers":["::1"]},"runtimeConfig":{"portMappings":[{"hostPort":-1}]}}`, ""},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	missing := filepath.Join(f.TempDir(), "none.sock")
	f.Fuzz(func(t *testing.T, command, stdin, args string) {
		variables := map[string]string{"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/nowhere", "CNI_ARGS": args}
		var out, errs bytes.Buffer
		text := strings.ReplaceAll(stdin, `"S"`, `"`+missing+`"`)
		code := Main(func(name string) string { return variables[name] }, strings.NewReader(text), &out, &errs, "about")
		if command == "" {
			must.Eq(t, 0, code)
			must.StrHasPrefix(t, "about\n", errs.String())
			return
		}
		var answer struct {
			CNIVersion string
			Code       *uint
			Msg        string
		}
		switch code {
		case 0:
			if out.Len() > 0 {
				must.Eq(t, "VERSION", command)
				must.NoError(t, json.Unmarshal(out.Bytes(), &answer))
			}
		case 1:
			must.NoError(t, json.Unmarshal(out.Bytes(), &answer))
			must.NotNil(t, answer.Code)
			must.NotEq(t, "", answer.Msg)
			must.NotEq(t, "", answer.CNIVersion)
			must.NotEq(t, types.ErrInternal, *answer.Code, must.Sprint(out.String()))
		default:
			t.Fatalf("code %d", code)
		}
	})
}

// What readResult lets pass, chain and the conversion into every version take.
func FuzzPrevResult(f *testing.F) {
	f.Add("1.1.0", []byte(`{"interfaces":[{"name":"lo"}],"ips":[{"address":"127.0.0.1/8","interface":0},{"address":"::1/128"}],"routes":[{"dst":"0.0.0.0/0","gw":"192.0.2.1"}]}`))
	f.Add("0.3.1", []byte(`{"ips":[{"version":"4","address":"192.0.2.1/24","gateway":"192.0.2.254"}],"dns":{"search":["x"]}}`))
	f.Add("0.4.0", []byte(`{"interfaces":[],"ips":[{"version":"6","address":"x"}]}`))
	f.Add("1.0.0", []byte(`null`))
	inside := 0
	_, addr, _ := net.ParseCIDR("100.64.0.2/32")
	ours := &current.Result{CNIVersion: "1.1.0", Interfaces: []*current.Interface{{Name: "eth0", Sandbox: "/x"}}, IPs: []*current.IPConfig{{Interface: &inside, Address: *addr}}}
	f.Fuzz(func(t *testing.T, version string, data []byte) {
		previous, err := readResult(version, data)
		if err != nil || previous == nil {
			return
		}
		c := call{ifName: "eth0", config: config{previous: previous}}
		must.NotNil(t, c.expected())
		merged := chain(previous, ours)
		must.Eq(t, len(previous.Interfaces)+1, len(merged.Interfaces))
		must.Eq(t, len(previous.Interfaces), *merged.IPs[len(merged.IPs)-1].Interface)
		for _, v := range Versions {
			if converted, err := merged.GetAsVersion(v); err == nil {
				_ = converted.PrintTo(new(bytes.Buffer)) // an address of the other family, perhaps
			}
		}
	})
}

// The name of an attachment is a name, and that of containers that differ differs.
func FuzzNameOf(f *testing.F) {
	long := strings.Repeat("0123456789ab", 5) + "cdef"
	for id, want := range map[string]string{
		long: "0123456789ab", "default-" + long: "default-0123456789ab", "cnitool-77383ca0a0715733ca6f": "cnitool-77383ca0a0715733ca6f", "web": "web",
	} {
		must.Eq(f, want, nameOf(id, "eth0"))
		f.Add(id, "eth0")
	}
	must.NotEq(f, nameOf("web", "eth0"), nameOf("web", "eth1"))
	must.StrHasPrefix(f, "container-", nameOf("Web_1", "eth0"))
	f.Fuzz(func(t *testing.T, id, ifName string) {
		must.NoError(t, fabric.CheckName(nameOf(id, ifName)))
	})
}

// A request that is longer than a socket's buffer arrives whole.
func TestLongRequest(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	must.NoError(t, err)
	got := make(chan int, 1)
	go func() {
		_ = cnicall.Serve(t.Context(), l, time.Minute, func(_ context.Context, r cnicall.Request) (*current.Result, error) {
			got <- len(r.Valid)
			return nil, nil
		}, nil)
	}()
	valid := make([]cnicall.Attachment, 4093)
	for i := range valid {
		valid[i] = cnicall.Attachment{ContainerID: strings.Repeat("x", 64), IfName: "eth0"}
	}
	_, err = cnicall.Call(t.Context(), socket, cnicall.Request{Command: "GC", Valid: valid})
	must.NoError(t, err)
	must.Eq(t, len(valid), <-got)
	_, err = cnicall.Call(t.Context(), socket, cnicall.Request{Command: "GC", ContainerID: strings.Repeat("x", 9<<20)})
	must.ErrorContains(t, err, "did not answer")
}
