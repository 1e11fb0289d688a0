// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/hashicorp/go-hclog"
	miekg "github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/testhost"
)

// lines passes on what is written to it, line by line.
type lines chan string

func (l lines) Write(b []byte) (int, error) { l <- string(b); return len(b), nil }

// expect waits for a line that contains want.
func (l lines) expect(t *testing.T, want string) string {
	t.Helper()
	for deadline := time.After(20 * time.Second); ; {
		select {
		case line := <-l:
			if strings.Contains(line, want) {
				return line
			}
		case <-deadline:
			t.Fatalf("no line with %q was logged", want)
		}
	}
}

// Another resolver of the node on port 53, as dnsmasq without bind-dynamic is, costs the endpoints
// their names while it is there, and nothing else.
func TestPortOfResolverIsTaken(t *testing.T) {
	testhost.RequireRoot(t)
	node := newNamespace(t)
	a, _, _ := hookedAgent(t)
	a.node.Config.DNS = &config.DNS{}
	log := make(lines, 100)
	a.node.Log = hclog.New(&hclog.LoggerOptions{Output: log})
	must.NoError(t, node.Do(func(ns.NetNS) error {
		must.NoError(t, kernel.Set(router(fabric.Node{})))
		other, err := net.ListenPacket("udp4", ":53")
		must.NoError(t, err)
		defer other.Close()

		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go node.Do(func(ns.NetNS) error {
			ended <- a.serveDNS(ctx)
			return nil
		})
		degraded := log.expect(t, "subject=dns")
		must.StrContains(t, degraded, "address already in use")
		must.StrContains(t, degraded, fmt.Sprintf("(process %d) listens on udp port 0.0.0.0:53", os.Getpid()))
		must.StrContains(t, degraded, "bind-dynamic")

		other.Close()
		log.expect(t, "recovered: subject=dns")
		question := new(miekg.Msg).SetQuestion("svc.app.sif.", miekg.TypeA)
		answer, _, err := new(miekg.Client).Exchange(question, "169.254.1.1:53")
		must.NoError(t, err)
		must.Eq(t, miekg.RcodeRefused, answer.Rcode) // the node itself is not an endpoint
		stop()
		return <-ended
	}))
	must.Eq(t, "no", whoListens(errors.New("no")).Error())
}
