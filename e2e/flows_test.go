// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/flow"
)

// flows runs `sif flows -output=json`.
func (f *fabricUnderTest) flows(t *testing.T, args ...string) (list []flow.Flow) {
	t.Helper()
	r := f.sif(t, append([]string{"flows", "-output=json"}, args...)...)
	must.Zero(t, r.code, must.Sprintf("sif flows %v: %s\n%s", args, r.stdout, r.stderr))
	for line := range strings.Lines(r.stdout) {
		var one flow.Flow
		must.NoError(t, json.Unmarshal([]byte(line), &one), must.Sprint(line))
		list = append(list, one)
	}
	return list
}

// awaitFlow waits until one end has recorded a flow.
func (f *fabricUnderTest) awaitFlow(t *testing.T, side flow.Side, args ...string) (found flow.Flow) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		list := f.flows(t, args...)
		for _, one := range list {
			if one.Side == side {
				found = one
				return nil
			}
		}
		return fmt.Errorf("sif flows %v has %d records and none of the %s", args, len(list), side)
	})
	return found
}

// TestFlows opens a connection between clouds, sends something, closes it, and tries a port that no
// contract opens. Both ends of the first one and the sender of the second one say what happened and
// by which line of which file.
func TestFlows(t *testing.T) {
	world.withTestPorts(t) // makes the graph come from a file whose lines are known
	line, _, _ := strings.Cut(place(t, world.testPorts(t), `"news-api"`), ":")
	svc, news := world.workload(t, "getaway-app/getaway-svc", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	contract := fabric.Ref{Domain: "getaway-app", Name: "news-api"}
	began := time.Now().Format(time.RFC3339Nano)
	at := netip.AddrPortFrom(news.v4, newsPort)
	if l, err := listen(news.netns, at); err == nil { // the application may listen there itself
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}
		}()
	}
	conn, err := dial(svc.netns, at, 10*time.Second)
	must.NoError(t, err)
	_, err = conn.Write(make([]byte, 1000))
	must.NoError(t, err)
	_, port, _ := strings.Cut(conn.LocalAddr().String(), ":")
	must.False(t, arrives(t, svc, news, 9002, time.Second))
	must.NoError(t, conn.Close())

	between := []string{"-since=" + began, "-from=" + svc.alloc[:8], "-to=" + news.alloc}
	for side, node := range map[flow.Side]string{flow.Sender: "aws1/" + svc.node, flow.Receiver: "gcp1/" + news.node} {
		opened := world.awaitFlow(t, side, append(between, "-event=opened", "-port="+strconv.Itoa(newsPort))...)
		must.Eq(t, node, opened.Node.String())
		must.Eq(t, flow.Allow, opened.Verdict)
		must.Eq(t, "allowed-contract", opened.Reason)
		must.Eq(t, contract, opened.Contract)
		must.True(t, strings.HasSuffix(opened.Place, "graph.sif.hcl:"+line), must.Sprint(opened.Place, line))
		must.Positive(t, opened.Revision)
		must.Eq(t, "getaway-app/getaway-svc", opened.Source.Name.String())
		must.Eq(t, svc.alloc, opened.Source.Endpoint)
		must.Eq(t, "aws1/"+svc.node, opened.Source.Node.String())
		must.Eq(t, svc.v4, opened.Source.Address)
		must.Eq(t, "getaway-app/news-gw", opened.Destination.Name.String())
		must.Eq(t, news.alloc, opened.Destination.Endpoint)
		must.Eq(t, "gcp1/"+news.node, opened.Destination.Node.String())
		must.Eq(t, uint16(newsPort), opened.Destination.Port)

		eventually(t, time.Minute, func() error {
			for _, ended := range world.flows(t, append(between, "-event=ended", "-verdict=allowed", "-contract="+contract.String())...) {
				if ended.Side == side && ended.Number == opened.Number && strconv.Itoa(int(ended.Source.Port)) == port {
					must.GreaterEq(t, 3, ended.Sent.Packets)
					must.GreaterEq(t, 2, ended.Received.Packets)
					must.GreaterEq(t, 1000, ended.Sent.Bytes)
					return nil
				}
			}
			return fmt.Errorf("the %s has not recorded the end of flow %d", side, opened.Number)
		})
	}
	refused := world.awaitFlow(t, flow.Sender, append(between, "-verdict=refused", "-reason=no-contract")...)
	must.Eq(t, 9002, refused.Destination.Port)
	must.Eq(t, fabric.Ref{}, refused.Contract)
	must.Eq(t, news.alloc, refused.Destination.Endpoint)

	r := world.sif(t, append([]string{"flows", "-event=opened"}, between...)...)
	must.Zero(t, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stdout, "opened, allowed by getaway-app/news-api at ")
	must.SliceEmpty(t, world.flows(t, append(between, "-not", "-service=getaway-app/*")...))

	until := time.Now().Add(20 * time.Second).Format(time.RFC3339Nano)
	followed := make(chan result, 1)
	go func() {
		followed <- world.sif(t, "flows", "-follow", "-until="+until, "-reason=no-contract", "-from="+svc.alloc[:8], "-port=9003", "-json")
	}()
	for seen := false; !seen; {
		select {
		case r := <-followed:
			must.Zero(t, r.code, must.Sprint(r.stderr))
			must.StrContains(t, r.stdout, `"event":"refused"`)
			seen = true
		default:
			must.False(t, arrives(t, svc, news, 9003, 500*time.Millisecond))
		}
	}
}
