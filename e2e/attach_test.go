// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	consul "github.com/hashicorp/consul/api"
	"github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/node/cnicall"
)

const attachGraph = `
domain "outsiders" {
  service "db" {
    selector "consul" {
      service = "outsider-db"
    }
  }
  service "client" {
    selector "consul" {
      service = "outsider-client"
    }
  }
  contract "query" {
    originators = ["client"]
    responders  = ["db"]
    rule {
      protocol = "tcp"
      ports    = [7000]
    }
  }
}
`

// attachBinding lets nodes attach what the test attaches.
func attachBinding(nodes string) string {
	return fmt.Sprintf(`
binding "outsiders" {
  attach {
    services = ["outsider-*"]
    node     = %q
  }
}
`, nodes)
}

// TestAttached attaches two workloads that Nomad does not run, in two zones: a selector and a
// contract treat them like allocations, and their life follows their registration with Consul.
func TestAttached(t *testing.T) {
	t.Cleanup(func() {
		args := []string{"graph", "apply"}
		show := world.sif(t, "graph", "show").stdout
		for _, b := range []string{"outsiders", "getaway-app", "voting-app"} {
			if strings.Contains(show, fmt.Sprintf("binding %q", b)) {
				args = append(args, "-remove-binding="+b)
			}
		}
		if strings.Contains(show, `domain "outsiders"`) {
			args = append(args, "-remove-domain=outsiders")
		}
		r := world.sif(t, args...)
		must.Zero(t, r.code, must.Sprint(r.stderr))
		world.allWell(t, time.Minute)
	})
	db, client := newOutsider(t, "aws1-w1", "db"), newOutsider(t, "gcp1-w1", "client")
	world.apply(t, world.file(t, "jobs/bindings.sif.hcl")+attachBinding("*-w2")+attachGraph)

	// What is missing is named, and nothing is left.
	r := db.attach(t, "-wait=0s")
	must.Eq(t, 1, r.code)
	must.StrContains(t, r.stderr, `Consul service "outsider-db" is not registered with the Consul agent of this node, "aws1-w1"`)
	db.register(t)
	client.register(t)
	r = db.attach(t)
	must.Eq(t, 1, r.code, must.Sprint(r.stdout))
	must.StrContains(t, r.stderr, `has no binding with an attach block that names Consul service "outsider-db" and node aws1/aws1-w1`)
	_, err := os.Stat("/run/netns/" + db.name)
	must.ErrorIs(t, err, os.ErrNotExist)

	world.apply(t, attachBinding("*-w1"))
	began := time.Now()
	r = db.attach(t)
	must.Zero(t, r.code, must.Sprint(r.stderr))
	t.Logf("sif attach took %s", time.Since(began))
	r = client.attach(t)
	must.Zero(t, r.code, must.Sprint(r.stderr))
	began = time.Now()
	r = client.attach(t)
	must.Zero(t, r.code, must.Sprint(r.stderr))
	t.Logf("sif attach again took %s", time.Since(began))

	world.allWell(t, 30*time.Second)
	shown := world.sif(t, "endpoint", "show", db.name)
	must.Zero(t, shown.code, must.Sprint(shown.stderr))
	must.StrContains(t, shown.stdout, "attached "+db.name+" (Consul service outsider-db)")
	listed := world.sif(t, "endpoint", "list", "-service=outsiders")
	must.StrContains(t, listed.stdout, "outsiders/client")
	must.StrContains(t, world.sif(t, "endpoint", "list").stdout, "getaway-app/getaway-svc")
	report := world.matrix(t)
	must.Positive(t, report.Probes)

	// By name, over two zones, and only in the direction of the contract.
	listenInside(t, db, 7000)
	quiet := listenInside(t, client, 7000)
	var address netip.Addr
	eventually(t, 20*time.Second, func() (err error) {
		address, err = client.resolve("db.outsiders.sif")
		return err
	})
	must.Eq(t, db.shown(t).IPv4, address)
	conn := client.connect(t, netip.AddrPortFrom(address, 7000))
	defer conn.Close()
	must.NoError(t, exchange(conn))
	_, err = db.dial(netip.AddrPortFrom(client.shown(t).IPv4, 7000))
	must.Error(t, err)

	// The agent may end.
	must.NoError(t, world.Signal(db.node, "agent", syscall.SIGKILL))
	must.NoError(t, exchange(conn))
	must.NoError(t, world.Start(db.node, "agent"))
	world.allWell(t, time.Minute)
	must.NoError(t, exchange(conn))

	// A program gets an endpoint of its own, and leaves nothing.
	run := world.on(t, client.node, "run", "-run-dir="+world.SIFRunDir(client.node), "-consul-service=outsider-client", "--", "sh", "-c", "cat /etc/resolv.conf; ip -o addr show dev eth0; exit 3")
	must.Eq(t, 3, run.code, must.Sprint(run.stderr))
	must.StrContains(t, run.stdout, "nameserver 169.254.1.1")
	must.StrContains(t, run.stdout, "inet 100.")
	must.Len(t, 1, client.local(t))

	// It ends with its registration, and comes back with it.
	before := db.shown(t)
	began = time.Now()
	db.deregister(t)
	eventually(t, 30*time.Second, func() error {
		if err := exchange(conn); err == nil {
			return errors.New("the connection goes on")
		}
		return nil
	})
	t.Logf("the connection was cut %s after the registration went", time.Since(began))
	eventually(t, 20*time.Second, func() error {
		if s := world.sif(t, "status"); !strings.Contains(s.stdout, "Attached, and waiting") {
			return errors.New(s.stdout)
		}
		return nil
	})
	r = world.sif(t, "endpoint", "show", db.name)
	must.Eq(t, 1, r.code)
	must.StrContains(t, r.stderr, "has no endpoint now")
	db.register(t)
	eventually(t, 30*time.Second, func() error {
		if now := db.shown(t); now.Endpoint != before.Endpoint || !now.InForce {
			return fmt.Errorf("it is not back: %v", now)
		}
		return nil
	})
	eventually(t, 20*time.Second, func() error {
		address, err := client.resolve("db.outsiders.sif")
		if err != nil {
			return err
		}
		again, err := client.dial(netip.AddrPortFrom(address, 7000))
		if err != nil {
			return err
		}
		defer again.Close()
		return exchange(again)
	})
	world.allWell(t, 30*time.Second)

	// Without its namespace, which sockets keep as well, it is detached by itself.
	conn.Close()
	quiet()
	out, err := exec.Command("ip", "netns", "del", client.name).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	eventually(t, 20*time.Second, func() error {
		if list := client.local(t); len(list) > 0 {
			return fmt.Errorf("%v is attached", list)
		}
		return nil
	})
	_, err = os.Stat(filepath.Join("/etc/netns", client.name))
	must.ErrorIs(t, err, os.ErrNotExist)
	r = db.sif(t, "detach", db.name)
	must.Zero(t, r.code, must.Sprint(r.stderr))
	_, err = os.Stat("/run/netns/" + db.name)
	must.ErrorIs(t, err, os.ErrNotExist)
	eventually(t, 20*time.Second, func() error {
		if listed := world.sif(t, "endpoint", "list", "-service=outsiders"); strings.Contains(listed.stdout, "outsiders/") {
			return errors.New(listed.stdout)
		}
		return nil
	})
}

// outsider is a workload outside Nomad.
type outsider struct {
	node, name, service string
	agent               *consul.Client // of the node
}

func newOutsider(t *testing.T, node, what string) *outsider {
	t.Helper()
	agent, err := world.ConsulAgent(node, world.Secrets.ConsulManagement)
	must.NoError(t, err)
	o := &outsider{node: node, name: "e2e-" + what, service: "outsider-" + what, agent: agent}
	t.Cleanup(func() {
		r := o.sif(t, "detach", "-force", o.name)
		must.Zero(t, r.code, must.Sprint(r.stderr))
		_ = agent.Agent().ServiceDeregister(o.service) // it may have gone
	})
	return o
}

func (o *outsider) register(t *testing.T) {
	t.Helper()
	must.NoError(t, o.agent.Agent().ServiceRegister(&consul.AgentServiceRegistration{ID: o.service, Name: o.service, Port: 7000}))
}

func (o *outsider) deregister(t *testing.T) {
	t.Helper()
	must.NoError(t, o.agent.Agent().ServiceDeregister(o.service))
}

// on runs the sif command on a node.
func (f *fabricUnderTest) on(t *testing.T, node string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd, err := f.Command(ctx, node, filepath.Join(f.Bin, "sif"), args...)
	must.NoError(t, err)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	r := result{stdout: stdout.String(), stderr: stderr.String()}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		r.code = exit.ExitCode()
	} else {
		must.NoError(t, err)
	}
	return r
}

func (o *outsider) sif(t *testing.T, command string, args ...string) result {
	t.Helper()
	return world.on(t, o.node, append([]string{command, "-run-dir=" + world.SIFRunDir(o.node)}, args...)...)
}

func (o *outsider) attach(t *testing.T, options ...string) result {
	t.Helper()
	return o.sif(t, "attach", append(options, "-consul-service="+o.service, o.name)...)
}

// local returns what the node's agent says is attached.
func (o *outsider) local(t *testing.T) (list []cnicall.Attached) {
	t.Helper()
	r := world.on(t, o.node, "endpoint", "list", "-local", "-json", "-run-dir="+world.SIFRunDir(o.node))
	must.Zero(t, r.code, must.Sprint(r.stderr))
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &list))
	return list
}

// shown returns the endpoint as the controller knows it; zero if it does not.
func (o *outsider) shown(t *testing.T) (e api.Endpoint) {
	t.Helper()
	r := world.sif(t, "endpoint", "show", "-json", o.name)
	if r.code == 0 {
		must.NoError(t, json.Unmarshal([]byte(r.stdout), &e))
	}
	return e
}

func (o *outsider) in(do func() error) error {
	return ns.WithNetNSPath("/run/netns/"+o.name, func(ns.NetNS) error { return do() })
}

func (o *outsider) dial(to netip.AddrPort) (conn net.Conn, err error) {
	err = o.in(func() error {
		conn, err = net.DialTimeout("tcp", to.String(), 2*time.Second)
		return err
	})
	return conn, err
}

// connect dials until somebody accepts.
func (o *outsider) connect(t *testing.T, to netip.AddrPort) (conn net.Conn) {
	t.Helper()
	eventually(t, 20*time.Second, func() (err error) {
		conn, err = o.dial(to)
		return err
	})
	return conn
}

func (o *outsider) resolve(name string) (address netip.Addr, err error) {
	err = o.in(func() error {
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(name), dns.TypeA)
		reply, err := dns.Exchange(m, "169.254.1.1:53")
		if err != nil {
			return err
		}
		for _, rr := range reply.Answer {
			if a, ok := rr.(*dns.A); ok {
				address, _ = netip.AddrFromSlice(a.A.To4())
				return nil
			}
		}
		return fmt.Errorf("%s: %s, no address", name, dns.RcodeToString[reply.Rcode])
	})
	return address, err
}

// listenInside echoes lines at a port inside an endpoint, until stop is called or the test ends.
func listenInside(t *testing.T, o *outsider, port uint16) (stop func()) {
	t.Helper()
	var l net.Listener
	must.NoError(t, o.in(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
		return err
	}))
	echoLines(t, l)
	return func() { l.Close() }
}

// echoLines answers each line with itself on the connections of a listener, until it is closed or
// the test ends.
func echoLines(t *testing.T, l net.Listener) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					if _, err := fmt.Fprintln(conn, lines.Text()); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// exchange sends a line and waits for the answer.
func exchange(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && line != "hello\n" {
		err = fmt.Errorf("the answer is %q", line)
	}
	return err
}
