// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"context"
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

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/node/hostport"
	"github.com/sif-project/sif/internal/testhost"
)

const hostedGraph = `
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
  external "provider" {
    prefixes = ["203.0.113.10"]
  }
  contract "query" {
    originators = ["client"]
    responders  = ["db"]
    rule {
      protocol = "tcp"
      ports    = [7000]
    }
  }
  contract "notify" {
    originators = ["db"]
    responders  = ["client", "provider"]
    rule {
      protocol = "tcp"
      ports    = [443]
    }
  }
}
`

const hostedBinding = `
binding "outsiders" {
  outside {
    prefixes = ["203.0.113.10/32"]
  }
  attach {
    services = ["outsider-*"]
    node     = "*-w1"
  }
}
`

// TestAttachedProcessOfTheHost attaches a process that stays in its node's network namespace, and a
// client of it in another zone. What contracts allow passes in both directions, by name and to the
// outside, with the endpoint's rights; the rest of the process goes the node's way.
func TestAttachedProcessOfTheHost(t *testing.T) {
	t.Cleanup(func() {
		args := []string{"graph", "apply", "-remove-domain=outsiders"}
		show := world.sif(t, "graph", "show").stdout
		for _, b := range []string{"outsiders", "getaway-app", "voting-app"} {
			if strings.Contains(show, fmt.Sprintf("binding %q", b)) {
				args = append(args, "-remove-binding="+b)
			}
		}
		r := world.sif(t, args...)
		must.Zero(t, r.code, must.Sprint(r.stderr))
		world.allWell(t, time.Minute)
	})
	group, err := hostport.ParseGroup("sif-e2e-db")
	if errors.Is(err, hostport.ErrNoHierarchy) {
		testhost.Unmet(t, "needs cgroup v2")
	}
	must.NoError(t, err)
	root, err := exec.Command("findmnt", "-nt", "cgroup2", "-o", "TARGET").Output()
	must.NoError(t, err)
	first, _, _ := strings.Cut(string(root), "\n")
	dir := filepath.Join(first, string(group))
	must.NoError(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() { must.NoError(t, os.Remove(dir)) })

	db, client := newOutsider(t, "aws1-w1", "db"), newOutsider(t, "gcp1-w1", "client")
	world.apply(t, world.file(t, "jobs/bindings.sif.hcl")+hostedGraph+hostedBinding)
	db.register(t)
	client.register(t)
	r := db.attach(t, "-host", "-port=7000", "-port=7001", "-cgroup="+string(group))
	must.Zero(t, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stdout, "-host -port=tcp/7000 -port=tcp/7001 -cgroup=/sif-e2e-db")
	r = db.attach(t, "-host", "-port=7000")
	must.Eq(t, 1, r.code)
	must.StrContains(t, r.stderr, "the name is taken")
	r = client.attach(t)
	must.Zero(t, r.code, must.Sprint(r.stderr))
	world.allWell(t, 30*time.Second)
	must.StrContains(t, world.sif(t, "endpoint", "show", db.name).stdout, "tcp/7000 (nobody listens)")

	var address netip.Addr
	eventually(t, 20*time.Second, func() (err error) {
		address, err = client.resolve("db.outsiders.sif")
		return err
	})
	eventually(t, 20*time.Second, func() error {
		if _, err := client.dial(netip.AddrPortFrom(address, 7000)); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("nobody listens, and it says %v", err)
		}
		return nil
	})
	for _, port := range []int{7000, 7001} {
		listenOnNode(t, db.node, fmt.Sprintf("127.0.0.1:%d", port))
	}
	conn := client.connect(t, netip.AddrPortFrom(address, 7000))
	defer conn.Close()
	must.NoError(t, exchange(conn))
	_, err = client.dial(netip.AddrPortFrom(address, 7001))
	must.Error(t, err, must.Sprint("no contract names the port"))

	// What the process sends, and another one of its node does not.
	listenInside(t, client, 443)
	to := client.shown(t).IPv4
	eventually(t, 20*time.Second, func() error {
		if line := answerTo(db.node, dir, to, 443); line != "x" {
			return fmt.Errorf("the answer is %q", line)
		}
		return nil
	})
	must.Eq(t, "", answerTo(db.node, "", to, 443))
	provider := world.outside(t, "provider")
	outside := provider.Address(4)
	own := answerTo(db.node, "", outside, 443)
	var exit string
	eventually(t, 20*time.Second, func() error {
		if exit = answerTo(db.node, dir, outside, 443); exit == "" {
			return errors.New("no answer from outside")
		}
		return nil
	})
	must.NotEq(t, own, exit, must.Sprint("it leaves by the zone's exit, others by the node"))
	must.Eq(t, "", answerTo(db.node, dir, outside, 444), must.Sprint("another port of an address that a contract names"))
	other := world.outside(t, "cdn").Address(4)
	must.Eq(t, own, answerTo(db.node, dir, other, 443), must.Sprint("an address that no contract names, by the node"))

	// The agent may end, and the way be broken.
	must.NoError(t, world.Signal(db.node, "agent", syscall.SIGKILL))
	must.NoError(t, exchange(conn))
	must.Eq(t, exit, answerTo(db.node, dir, outside, 443))
	must.NoError(t, world.Start(db.node, "agent"))
	world.allWell(t, time.Minute)
	must.NoError(t, exchange(conn))
	must.NoError(t, world.In(db.node, func() error { return exec.Command("nft", "delete", "table", "inet", "sif_host").Run() }))
	eventually(t, 30*time.Second, func() error {
		if answerTo(db.node, dir, to, 443) != "x" {
			return errors.New("the way is not back")
		}
		return nil
	})
	world.allWell(t, time.Minute)

	r = db.sif(t, "detach", db.name)
	must.Zero(t, r.code, must.Sprint(r.stderr))
	must.NoError(t, world.In(db.node, func() error {
		out, err := exec.Command("sh", "-c", "ip -o link | grep sif-h; ip rule | grep 5098; nft list tables | grep sif_host; true").CombinedOutput()
		must.Eq(t, "", string(out))
		return err
	}))
}

// listenOnNode echoes lines at an address of a node until the test ends.
func listenOnNode(t *testing.T, node, address string) {
	t.Helper()
	var l net.Listener
	must.NoError(t, world.In(node, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}))
	echoLines(t, l)
}

// answerTo returns the first line that a process of a node, in the cgroup of a directory, is
// answered; "" if it is none.
func answerTo(node, dir string, to netip.Addr, port uint16) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	cmd, err := world.Command(ctx, node, "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d && echo x >&3 && read -r line <&3 && echo $line", to, port))
	if err != nil {
		return ""
	}
	if dir != "" {
		f, err := os.Open(dir)
		if err != nil {
			return ""
		}
		defer f.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	}
	out, _ := cmd.Output()
	line := strings.TrimSpace(string(out))
	if seen, err := netip.ParseAddrPort(line); err == nil {
		return seen.Addr().String() // machines outside say which address and port they saw
	}
	return line
}
