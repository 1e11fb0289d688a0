// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/cli"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/explain"
	"github.com/sif-project/sif/internal/inspect/verify"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// controllerOf serves a controller's status, graph, explanations and probes over TLS, and returns
// the options that name it. passes decides whether a packet arrives.
func controllerOf(t *testing.T, status api.Status, graph *fabric.Graph, passes func(send api.Task) bool) []string {
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, v any) { json.NewEncoder(w).Encode(v) }
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, status) })
	mux.HandleFunc("GET /v1/graph", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, api.GraphReply{Pointer: status.Pointer, Graph: graph})
	})
	unread := map[fabric.NodeID]string{}
	for _, n := range status.Nodes {
		unread[n.ID()] = "no data path here"
	}
	mux.HandleFunc("POST /v1/dump", func(w http.ResponseWriter, _ *http.Request) { reply(w, api.DumpReply{Failed: unread}) })
	mux.HandleFunc("GET /v1/explain", func(w http.ResponseWriter, r *http.Request) {
		v := r.URL.Query()
		q := api.Question{From: v.Get("from"), To: v.Get("to")}
		port, err := strconv.Atoi(v.Get("port"))
		must.NoError(t, err)
		must.NoError(t, q.Protocol.UnmarshalText([]byte(v.Get("protocol"))))
		q.Port = uint16(port)
		answer, err := explain.Explain(explain.View{Fabric: verify.Fabric{Graph: graph, Pointer: status.Pointer, Status: status, Failed: unread, Now: time.Now()}}, q)
		if err != nil {
			w.WriteHeader(http.StatusNotFound)
			reply(w, api.Errorf(http.StatusNotFound, api.CodeNotFound, "%v", err))
			return
		}
		reply(w, answer)
	})
	mux.HandleFunc("POST /v1/probe", func(w http.ResponseWriter, r *http.Request) {
		var req api.ProbeRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		results := make([]api.TaskResult, len(req.Tasks))
		sends := map[uint64]api.Task{}
		for i, task := range req.Tasks {
			if task.Kind == api.TaskSend {
				sends[task.Nonce], results[i].Done = task, true
			}
		}
		for i, task := range req.Tasks {
			if task.Kind == api.TaskObserve && passes(sends[task.Nonce]) {
				results[i].Done, results[i].Source = true, netip.MustParseAddr("100.64.1.2")
			}
		}
		reply(w, api.ProbeReply{Results: results})
	})
	return serveTLS(t, mux)
}

// serveTLS serves calls with the token "operator" over TLS, and returns the options that name the
// server.
func serveTLS(t *testing.T, mux http.Handler) []string {
	server := identitytest.NewCA(t).Controller(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(api.TokenHeader) != "operator" {
			w.WriteHeader(http.StatusForbidden)
			json.NewEncoder(w).Encode(api.Errorf(http.StatusForbidden, api.CodeForbidden, "no such token"))
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	return []string{"-address=" + server.URL, "-ca-file=" + ca, "-token=operator"}
}

func healthyFabric() (api.Status, *fabric.Graph) {
	now := time.Now()
	sql := fabric.Ref{Domain: "shop", Name: "sql"}
	graph := &fabric.Graph{Domains: map[string]*fabric.Domain{"shop": {
		Name: "shop", Services: []fabric.Service{{Name: "web"}, {Name: "db"}},
		Contracts: []fabric.Contract{{Name: "sql", Originators: []fabric.Ref{{Domain: "shop", Name: "web"}}, Responders: []fabric.Ref{{Domain: "shop", Name: "db"}},
			Rules: []fabric.Rule{{Protocol: fabric.TCP, Ports: []fabric.PortRange{{From: 5432, To: 5432}}}}}},
	}}}
	node := func(name string, e ...api.EndpointStatus) api.NodeStatus {
		return api.NodeStatus{Zone: "aws1", Node: name, Kind: fabric.KindWorkload, Version: "0.1.0", Sequence: 7, Endpoints: e,
			CertificateExpires: now.Add(90*time.Minute + time.Second), Reported: now,
			Links: []api.LinkStatus{{Peer: "aws1/peer", Device: "kernel", LastHandshake: now, Rx: 1, Tx: 2}}, Drops: map[string]uint64{"no-contract": 3}}
	}
	endpoint := func(id, service, v4, v6 string, roles fabric.Roles) api.EndpointStatus {
		return api.EndpointStatus{Endpoint: id, Service: fabric.Ref{Domain: "shop", Name: service}, Roles: roles, InForce: true,
			IPv4: netip.MustParseAddr(v4), IPv6: netip.MustParseAddr(v6), Expires: now.Add(49*time.Hour + time.Second), CertificateExpires: now.Add(time.Hour)}
	}
	return api.Status{
		Fabric: "lab", Pointer: fabric.Pointer{Sequence: 7, Time: now.Add(-5 * time.Second)},
		Controller: api.ControllerStatus{Address: "192.0.2.1:7600", Version: "0.1.0", Leader: true, CertificateExpires: now.Add(time.Hour)},
		Nodes: []api.NodeStatus{
			node("w1", endpoint("aaaaaaaa-0000-0000-0000-000000000001", "web", "100.64.1.2", "fd5f::2", fabric.Roles{Originate: []fabric.Ref{sql}})),
			node("w2", endpoint("bbbbbbbb-0000-0000-0000-000000000002", "db", "100.64.2.2", "fd5f::3", fabric.Roles{Respond: []fabric.Ref{sql}})),
		},
	}, graph
}

func runStatus(t *testing.T, status api.Status, args ...string) (out string, code int) {
	ui := cli.NewMockUi()
	code = run(ui, "status", append(controllerOf(t, status, nil, nil), args...)...)
	return ui.OutputWriter.String() + ui.ErrorWriter.String(), code
}

func TestStatusHealthy(t *testing.T) {
	status, _ := healthyFabric()
	out, code := runStatus(t, status)
	must.Eq(t, 0, code, must.Sprint(out))
	for _, want := range []string{"lab", "7, root 000000000000, applied 5s ago", "leader", "w1", "1h30m", "shop/db", "bbbbbbbb ", "2d1h", "All is well."} {
		must.StrContains(t, out, want)
	}
	must.StrNotContains(t, out, "no-contract")
	must.StrNotContains(t, out, "audit")
	out, code = runStatus(t, status, "-verbose")
	must.Eq(t, 0, code)
	for _, want := range []string{"bbbbbbbb-0000", "fd5f::3", "no-contract", "aws1/peer", "shop/sql"} {
		must.StrContains(t, out, want)
	}
}

func TestStatusShowsKeysOfLinks(t *testing.T) {
	status, _ := healthyFabric()
	made := time.Now().Add(-90 * time.Minute)
	status.Nodes[0].LinkKey = &api.LinkKeyStatus{Made: made, Period: 24 * time.Hour, Phase: fabric.LeaveLinks, Waiting: []string{"aws1/w2, which is old", "aws1/w3"}}
	status.Nodes[1].LinkKey = &api.LinkKeyStatus{Made: made}
	out, code := runStatus(t, status, "-verbose")
	must.Eq(t, 0, code)
	must.StrContains(t, out, "Keys of links")
	must.RegexMatch(t, regexp.MustCompile(`aws1/w1 +1h30m +1d0h +is being left +aws1/w2, which is old; aws1/w3`), out)
	must.RegexMatch(t, regexp.MustCompile(`aws1/w2 +1h30m +never +in use`), out)
}

func TestStatusShowsFlowsOfAuditMode(t *testing.T) {
	status, _ := healthyFabric()
	sql := fabric.Ref{Domain: "shop", Name: "sql"}
	status.Nodes[0].Audited = []api.FlowStatus{{From: fabric.Ref{Domain: "shop", Name: "web"}, To: fabric.Ref{Domain: "shop", Name: "db"},
		Contract: sql, Protocol: fabric.TCP, Port: 5433, Count: 12, Last: time.Now()}}
	out, code := runStatus(t, status)
	must.Eq(t, 0, code)
	must.StrContains(t, out, "Allowed only by audit mode")
	must.RegexMatch(t, regexp.MustCompile(`shop/web +shop/db +tcp/5433 +shop/sql +12 `), out)
}

func TestStatusDegraded(t *testing.T) {
	for want, spoil := range map[string]func(*api.Status){
		"aws1/w1: it enforces revision 6, not 7":                            func(s *api.Status) { s.Nodes[0].Sequence = 6 },
		"aws1/w1: it enforces a revision 7 with another root, 010000000000": func(s *api.Status) { s.Nodes[0].Root[0] = 1 },
		"aws1/w2: it has not reported since the controller started":         func(s *api.Status) { s.Nodes[1] = api.NodeStatus{Zone: "aws1", Node: "w2"} },
		"aws1/w1: it has not reported for 1m":                               func(s *api.Status) { s.Nodes[0].Reported = time.Now().Add(-time.Minute) },
		"aws1/w1: revision: bad signature":                                  func(s *api.Status) { s.Nodes[0].Degraded = []string{"revision: bad signature"} },
		"aws1/w2: its certificate has expired":                              func(s *api.Status) { s.Nodes[1].CertificateExpires = time.Now() },
		"endpoint bbbbbbbb of shop/db is not in force everywhere: gcp1/w1":  func(s *api.Status) { s.Nodes[1].Endpoints[0].Pending = []string{"gcp1/w1: no answer"} },
		"endpoint bbbbbbbb of shop/db is not in force":                      func(s *api.Status) { s.Nodes[1].Endpoints[0].InForce = false },
		"the admission of endpoint aaaaaaaa of shop/web has expired":        func(s *api.Status) { s.Nodes[0].Endpoints[0].Expires = time.Now() },
		"aws1/w1: the link to aws1/w2 is down: no probe has been answered for 1m": func(s *api.Status) {
			down := api.WayFound{State: api.WayDown, Sent: 9, Lost: 9, Answered: time.Now().Add(-time.Minute)}
			s.Nodes[0].Ways = []api.WayStatus{{To: "aws1/w2", IPv4: down, IPv6: down}}
		},
		"aws1/w1: the link to aws1/w2 over IPv6: no probe has been answered: network is unreachable": func(s *api.Status) {
			s.Nodes[0].Ways = []api.WayStatus{{To: "aws1/w2", IPv4: api.WayFound{State: api.WayUp}, IPv6: api.WayFound{State: api.WayDown, Error: "network is unreachable"}}}
		},
		"aws1/w1: the path to zone gcp1 over IPv4: 7 of the last 30 probes were lost": func(s *api.Status) {
			s.Nodes[0].Ways = []api.WayStatus{{To: "gcp1", IPv4: api.WayFound{State: api.WayLoss, Sent: 30, Lost: 7}, IPv6: api.WayFound{State: api.WayUnmeasured}}}
		},
		"packets of 1420 bytes do not pass, the largest that pass have 1372: let the underlay carry packets of 1500 bytes": func(s *api.Status) {
			s.Nodes[0].Ways = []api.WayStatus{{To: "aws1/w2", IPv4: api.WayFound{State: api.WayMTU, Full: 1420, Passed: 1372}, IPv6: api.WayFound{State: api.WayUp}}}
		},
		"controller: Vault is sealed": func(s *api.Status) { s.Controller.Degraded = []string{"Vault is sealed"} },
	} {
		t.Run(want, func(t *testing.T) {
			status, _ := healthyFabric()
			spoil(&status)
			out, code := runStatus(t, status)
			must.Eq(t, int(exitDegraded), code)
			must.StrContains(t, out, "Degraded\n")
			must.StrContains(t, out, want)
			out, code = runStatus(t, status, "-json")
			must.Eq(t, int(exitDegraded), code)
			var parsed struct {
				Healthy  bool
				Problems []string
				Nodes    []api.NodeStatus
			}
			must.NoError(t, json.Unmarshal([]byte(out), &parsed))
			must.False(t, parsed.Healthy)
			must.Len(t, 1, parsed.Problems)
			must.Len(t, 2, parsed.Nodes)
		})
	}
}

// What probes found stands in the verbose status, by link and by pair of zones.
func TestStatusShowsProbes(t *testing.T) {
	status, _ := healthyFabric()
	up := api.WayFound{State: api.WayUp, Sent: 30, Lost: 1, RTT: 1234 * time.Microsecond, Full: 1420, Passed: 1420}
	slow := up
	slow.RTT, slow.Passed = 5*time.Millisecond, 1384
	status.Nodes[0].Ways = []api.WayStatus{{To: "aws1/w2", IPv4: up, IPv6: up}, {To: "gcp1", IPv4: up, IPv6: up}}
	status.Nodes[1].Ways = []api.WayStatus{{To: "gcp1", IPv4: slow, IPv6: api.WayFound{State: api.WayUnmeasured}}}
	out, code := runStatus(t, status, "-verbose")
	must.Zero(t, code, must.Sprint(out))
	for _, row := range []string{
		`aws1/w1 +aws1/w2 +IPv4 +up +1 of 30 +1.23ms +1420`,
		`aws1 +gcp1 +2 +IPv4 +up +2 of 60 +5ms +1384`,
		`aws1 +gcp1 +2 +IPv6 +unmeasured +1 of 30 +1.23ms +1420`,
	} {
		must.RegexMatch(t, regexp.MustCompile(row), out)
	}
}

func TestStatusShowsControllers(t *testing.T) {
	status, _ := healthyFabric()
	now := time.Now()
	other := status.Controller
	other.Address, other.Leader = "192.0.2.2:7600", false
	status.Controllers = []api.ControllerStatus{other}
	out, code := runStatus(t, status)
	must.Zero(t, code, must.Sprint(out))
	must.RegexMatch(t, regexp.MustCompile(`192.0.2.1:7600 +0.1.0 +leader`), out)
	must.RegexMatch(t, regexp.MustCompile(`192.0.2.2:7600 +0.1.0 +standby`), out)
	for want, change := range map[string]func(s *api.Status){
		"controller 192.0.2.2:7600: it has been away for 1m0s: connection refused": func(s *api.Status) {
			s.Controllers[0].Away, s.Controllers[0].Since = "connection refused", now.Add(-time.Minute)
		},
		"controller 192.0.2.2:7600: it is of version 9, and 192.0.2.1:7600 of version 0.1.0": func(s *api.Status) { s.Controllers[0].Version = "9" },
		"controller 192.0.2.2:7600: its disk":                                                func(s *api.Status) { s.Controllers[0].Degraded = []string{"its disk"} },
		"none of them leads":                                                                 func(s *api.Status) { s.Controller.Leader = false },
		"2 of them say that they lead":                                                       func(s *api.Status) { s.Controllers[0].Leader = true },
		"what it knows of the nodes is":                                                      func(s *api.Status) { s.Age = time.Minute },
	} {
		changed := status
		changed.Controllers = []api.ControllerStatus{other}
		change(&changed)
		out, code := runStatus(t, changed)
		must.Eq(t, 2, code, must.Sprint(out))
		must.StrContains(t, out, want)
	}
}

func TestStatusErrors(t *testing.T) {
	out, code := runStatus(t, api.Status{}, "-token=other")
	must.Eq(t, 1, code)
	must.StrContains(t, out, "Error reading the status: no such token")
	out, code = runStatus(t, api.Status{}, "x")
	must.Eq(t, 1, code)
	must.StrContains(t, out, "takes no arguments")
	out, code = runStatus(t, api.Status{Controller: api.ControllerStatus{Leader: true}})
	must.Eq(t, 0, code)
	must.StrContains(t, out, "no graph has been applied yet")
}

func runMatrix(t *testing.T, passes func(api.Task) bool, args ...string) (out string, code int) {
	status, graph := healthyFabric()
	ui := cli.NewMockUi()
	code = run(ui, "matrix", append(controllerOf(t, status, graph, passes), args...)...)
	return ui.OutputWriter.String() + ui.ErrorWriter.String(), code
}

func TestMatrix(t *testing.T) {
	declared := func(s api.Task) bool { return s.Node.String() == "aws1/w1" && s.Protocol == fabric.TCP }
	out, code := runMatrix(t, declared, "-ip=4")
	must.Eq(t, 0, code, must.Sprint(out))
	must.StrContains(t, out, "2 pairs, 4 probes, 0 requests completed, 100.0 % agreement")
	lines := strings.Split(out, "\n")
	must.Eq(t, []string{"1", "shop/db", "."}, strings.Fields(lines[1])) // db to web; a service is not probed with itself
	must.Eq(t, []string{"2", "shop/web", "="}, strings.Fields(lines[2]))

	leak := func(s api.Task) bool { return s.Node.String() == "aws1/w1" }
	out, code = runMatrix(t, leak, "-ip=4", "-filter=shop")
	must.Eq(t, int(exitDisagreement), code)
	must.StrContains(t, out, "75.0 % agreement")
	must.StrContains(t, out, "not declared, but it arrived")
	out, code = runMatrix(t, leak, "-ip=4", "-protocol=udp", "-json")
	must.Eq(t, int(exitDisagreement), code)
	var parsed struct {
		Agreement float64
		Outcomes  []struct {
			Protocol string
			Observed bool
			Agree    bool
		}
	}
	must.NoError(t, json.Unmarshal([]byte(out), &parsed))
	must.Eq(t, 50, parsed.Agreement)
	must.Len(t, 2, parsed.Outcomes)

	for want, args := range map[string][]string{
		`no domain "none"`:       {"-filter=none"},
		`"5" is not one of 4, 6`: {"-ip=5"},
		"-protocol":              {"-protocol=icmp"},
		"-window":                {"-window=1h"},
		"takes no arguments":     {"x"},
		"Error reading the st":   {"-token=other"},
	} {
		out, code := runMatrix(t, declared, args...)
		must.Eq(t, 1, code)
		must.StrContains(t, out, want)
	}
}

func TestStatusShowsPortsOfNodes(t *testing.T) {
	status, _ := healthyFabric()
	status.Nodes[1].Endpoints[0].Ports = []api.PublishedPort{
		{Protocol: fabric.TCP, From: netip.MustParseAddrPort("0.0.0.0:18080"), To: netip.MustParseAddrPort("100.64.2.2:8080")}}
	status.Nodes[0].Exposed = []api.ExposedPort{{Protocol: fabric.UDP, Port: 8125, To: netip.MustParseAddrPort("127.0.0.1:18125")}}
	out, code := runStatus(t, status)
	must.Eq(t, 0, code, must.Sprint(out))
	for _, want := range []string{
		"Published ports\n", "tcp 0.0.0.0:18080  100.64.2.2:8080  shop/db  aws1/w2", "Ports that nodes expose to their workloads\n", "aws1/w1  udp 8125  127.0.0.1:18125",
	} {
		must.StrContains(t, out, want)
	}
	out, _ = runStatus(t, status, "-json")
	must.StrContains(t, out, `"from": "0.0.0.0:18080"`)
	must.StrContains(t, out, `"exposed": [`)
}

// Status counts down for how long an outage is bridged, and says who is away.
func TestOutageText(t *testing.T) {
	now := time.Date(2026, 11, 28, 18, 0, 0, 0, time.UTC)
	o := &api.Outage{Since: now.Add(-3 * time.Hour), Until: now.Add(69 * time.Hour), Why: "Vault is away: it is sealed", Honoured: 2}
	must.Eq(t, "", outageText(nil, now))
	must.Eq(t, "an outage for 3h0m: what was in force then stays so for another 2d21h, whatever ends; 2 endpoints would have ended: Vault is away: it is sealed", outageText(o, now))
	must.StrContains(t, outageText(o, now.Add(70*time.Hour)), "longer than the bound of 3d0h: what has ended is not honoured any more: Vault is away")
	status := api.Status{
		Controller: api.ControllerStatus{Address: "m1:8440", Leader: true, Outage: o},
		Nodes:      []api.NodeStatus{{Zone: "z", Node: "w1", Kind: fabric.KindWorkload, Reported: now, Outage: o, Endpoints: []api.EndpointStatus{{Endpoint: "e", InForce: true, Expires: now.Add(-time.Hour), Honoured: true}}}},
	}
	problems := statusProblems(status, now)
	must.SliceLen(t, 2, problems)
	text := formatStatus(status, problems, false, now)
	must.StrContains(t, text, "Outages\n")
	must.RegexMatch(t, regexp.MustCompile(`agent z/w1 +3h0m +2d21h +2 +Vault is away: it is sealed`), text)
	must.StrContains(t, text, "honoured")
	back := *o
	back.Back = now
	must.StrContains(t, outageText(&back, now), "an outage of 3h0m is over, and what was honoured beyond its end is being renewed; 2 endpoints")
}
