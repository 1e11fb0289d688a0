// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build machines

package acceptance

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/machines"
)

// looks is a script that prints everything of a machine that the fabric could change, without
// counters, without what changes by itself, and without the mount that Nomad makes for the network
// namespaces of allocations.
const looks = `
exec 2>/dev/null
cd /
section() { echo "=== $1"; }
section links;      ip -o link | sed -E 's/^[0-9]+: //; s/@if[0-9]+//; s/(link-netnsid|qlen) [0-9]+//g' | sort
section addresses;  ip -o address | sed -E 's/^[0-9]+: //; s/(valid|preferred)_lft [0-9a-z]+//g' | sort
section routes;     ip route show table all | sort; ip -6 route show table all | sed -E 's/expires [0-9]+sec//' | sort
section rules;      ip rule; ip -6 rule
section neighbours; ip neighbour show nud permanent
section namespaces; ip netns list | sort
section filters;    for l in /sys/class/net/*; do tc filter show dev ${l##*/} ingress; tc filter show dev ${l##*/} egress; done
section nftables;   nft list ruleset | sed -E 's/counter packets [0-9]+ bytes [0-9]+/counter/'
section iptables;   iptables-save | sed -E '/^#/d; s/\[[0-9]+:[0-9]+\]//'; ip6tables-save | sed -E '/^#/d; s/\[[0-9]+:[0-9]+\]//'
section sysctls;    sysctl -a | grep -E '^net\.(ipv4|ipv6|core|bridge|netfilter)\.' | grep -vE 'dentry|_count |nf_conntrack_max|nf_conntrack_buckets|random|base_reachable|fib_info|\.tcp_fastopen_key|\.neigh\.|conf\.veth|nf_conntrack_(dccp|gre|icmp|sctp|tcp)'
section modules;    lsmod | awk '{print $1}' | grep -E '^sif'
section programs;   bpftool prog show | grep -E 'sched_cls|tracing|xdp' | sed -E 's/^[0-9]+: //'; find /sys/fs/bpf
section mounts;     awk '{print $5, $9, $10}' /proc/self/mountinfo | grep -vE '^/run/(user|credentials|netns)' | sort
section files;      find /etc /opt/cni /usr /run /var/lib /var/log /root -xdev \( -path '*sif*' -o -path /opt/cni/\* \) ! -path /root/sif\* ! -path /usr/local/bin/sif-traffic ! -path '/var/lib/dpkg/*' ! -path '/var/log/journal/*' | sort
section users;      getent passwd; getent group
section units;      ls /etc/systemd/system /etc/systemd/system/*.wants /usr/lib/systemd/system | grep sif; systemctl list-units --all --no-legend --no-pager 'sif*'
section bridges;    ovs-vsctl --no-headings --columns=name list bridge; ovs-vsctl get open_vswitch . external_ids other_config | tr ',' '\n' | grep -i sif
section processes;  ps -eo comm | grep -E '^sif' | sort
section end
`

// state returns what looks prints, by section.
func (c *cluster) state(t *testing.T, m *machines.Machine) map[string]string {
	t.Helper()
	sections := map[string]string{}
	cmd := m.Command(testContext(t), "bash", "-s")
	cmd.Stdin = strings.NewReader(looks)
	out, err := cmd.Output()
	must.NoError(t, err)
	for _, s := range strings.Split(string(out), "=== ") {
		name, text, _ := strings.Cut(s, "\n")
		sections[name] = text
	}
	return sections
}

// remember keeps what a machine looked like, for a run of the test that goes on from here.
func (c *cluster) remember(t *testing.T, m *machines.Machine, state map[string]string) {
	t.Helper()
	data, err := json.Marshal(state)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(c.world.Path("state-"+m.Name+".json"), data, 0o600))
}

// remembered returns what a machine looked like.
func (c *cluster) remembered(t *testing.T, m *machines.Machine) map[string]string {
	t.Helper()
	data, err := os.ReadFile(c.world.Path("state-" + m.Name + ".json"))
	must.NoError(t, err)
	var state map[string]string
	must.NoError(t, json.Unmarshal(data, &state))
	return state
}

// unchanged fails the test with the difference if a machine does not look as before.
func unchanged(t *testing.T, before, after map[string]string) {
	t.Helper()
	for name, was := range before {
		lines := map[string]int{}
		for _, l := range strings.Split(was, "\n") {
			lines[l]--
		}
		for _, l := range strings.Split(after[name], "\n") {
			lines[l]++
		}
		for l, n := range lines {
			if n > 0 {
				t.Errorf("%s: + %s", name, l)
			} else if n < 0 {
				t.Errorf("%s: - %s", name, l)
			}
		}
	}
}

// install installs the package with apt and checks that this starts nothing and changes nothing of
// the network. It remembers what the machine looked like before.
func (c *cluster) install(t *testing.T, m *machines.Machine) {
	t.Helper()
	before := c.state(t, m)
	c.remember(t, m, before)
	c.on(t, m, "sh", "-c", "apt-get install -y "+packageFile+" 2>&1 | grep -vE 'Reading|database'")
	after := c.state(t, m)
	for _, ours := range []string{"files", "users", "units"} {
		delete(before, ours) // the package's own
	}
	unchanged(t, before, after)
	units := c.quietly(t, m, "systemctl list-units --all --no-legend 'sif*' | grep -v inactive || true")
	must.Eq(t, "", units, must.Sprint("the installation started something"))
}

// join lets a machine join the fabric. It is the administrator of the machine who types, with a
// Nomad token that may read and submit jobs for -reload-nomad.
func (c *cluster) join(t *testing.T, m *machines.Machine, zone, kinds string) {
	t.Helper()
	var created struct{ Token string }
	out, err := c.run(testContext(t), c.sif, "node", "create", "-json", "-zone", zone, "-kind", kinds, m.Name)
	must.NoError(t, err)
	must.NoError(t, json.Unmarshal([]byte(out), &created))
	c.logf(t, "$ sif node create -zone %s -kind %s %s", zone, kinds, m.Name)
	args := []string{"sif", "node", "join", created.Token}
	if strings.Contains(kinds, "workload") {
		args = []string{"env", c.variable("NOMAD_TOKEN"), "sif", "node", "join", "-reload-nomad", created.Token}
	}
	c.on(t, m, args...)
	_, err = m.Output(testContext(t), "sif", "node", "join", "-config-dir=/tmp/other", created.Token)
	must.ErrorContains(t, err, "used", must.Sprint("a token was accepted twice"))
}

// variable returns NAME=VALUE of the operator's environment.
func (c *cluster) variable(name string) string {
	for _, v := range c.operator {
		if strings.HasPrefix(v, name+"=") {
			return v
		}
	}
	return name + "="
}

// useController makes the operator's sif talk to the controller on a machine, if the fabric is set
// up already.
func (c *cluster) useController(t *testing.T, m *machines.Machine) {
	t.Helper()
	ca := c.world.Path("fabric-ca.pem")
	out, err := c.run(testContext(t), filepath.Join(repository, "bin/servers/vault"), "read", "-field=certificate", "sif-pki/cert/ca")
	if err != nil {
		return
	}
	must.NoError(t, os.WriteFile(ca, []byte(out+"\n"), 0o644))
	c.operator = append(c.operator, "SIF_HTTP_ADDR=https://"+m.Address.String()+":8440", "SIF_CACERT="+ca)
}

// awaitHealthy waits until sif status finds nothing degraded.
func (c *cluster) awaitHealthy(t *testing.T, within time.Duration) {
	t.Helper()
	defer func() {
		if t.Failed() {
			out, err := c.run(testContext(t), c.sif, "status", "-verbose")
			show(fmt.Sprint(out, "\n", err))
		}
	}()
	c.await(t, within, "sif status says that all is well", func() error {
		_, err := c.run(testContext(t), c.sif, "status", "-json")
		return err
	})
}

// file writes a file on the operator's computer and returns its path.
func (c *cluster) file(t *testing.T, name, text string) string {
	t.Helper()
	path := c.world.Path(name)
	must.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

// graph is the policy of the tests: shop may call store, thief nobody.
const graph = `
domain "market" {
  service "store" {
    selector "nomad" {
      job = "store"
    }
  }
  service "shop" {
    selector "nomad" {
      job = "shop"
    }
  }
  service "thief" {
    selector "nomad" {
      job = "thief"
    }
  }
  contract "orders" {
    originators = ["shop"]
    responders  = ["store"]
    rule {
      protocol = "tcp"
      ports    = [9000]
    }
    rule {
      protocol = "udp"
      ports    = [9000]
    }
  }
}
`

// job returns a job of one group that serves on port 9000, on the machine with that hostname.
func job(name, hostname string) string {
	return fmt.Sprintf(`
job %q {
  datacenters = ["dc1"]
  constraint {
    attribute = "${attr.unique.hostname}"
    value     = %q
  }
  group "it" {
    connectivity {
      service = "market/%s"
    }
    task "it" {
      driver = "exec"
      config {
        command = %q
        args    = ["serve", "-listen", ":9000"]
      }
      resources {
        cpu    = 50
        memory = 64
      }
    }
  }
}
`, name, hostname, name, traffic)
}

// endpoint is a running workload.
type endpoint struct {
	machine *machines.Machine
	alloc   string
	address string
}

// endpointOf finds the running instance of a job, and its address in its network namespace.
func (c *cluster) endpointOf(t *testing.T, m *machines.Machine, name string) endpoint {
	t.Helper()
	var allocs []struct{ ID, ClientStatus, DesiredStatus string }
	c.await(t, 3*time.Minute, "job "+name+" runs", func() error {
		out, err := c.run(testContext(t), filepath.Join(repository, "bin/servers/nomad"), "job", "allocs", "-json", name)
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(out), &allocs); err != nil {
			return err
		}
		for _, a := range allocs {
			if a.ClientStatus == "running" && a.DesiredStatus == "run" {
				allocs[0] = a
				return nil
			}
		}
		return fmt.Errorf("no allocation runs: %s", out)
	})
	e := endpoint{machine: m, alloc: allocs[0].ID}
	e.address = c.quietly(t, m, "nsenter --net=/var/run/netns/"+e.alloc+" ip -o -4 address show dev eth0 scope global | awk '{print $4}' | cut -d/ -f1")
	must.NotEq(t, "", e.address)
	return e
}

// reaches reports whether a workload can open a TCP connection to another one, and exchange bytes.
func (c *cluster) reaches(t *testing.T, from, to endpoint) bool {
	t.Helper()
	_, err := from.machine.Output(testContext(t), "nsenter", "--net=/var/run/netns/"+from.alloc, traffic, "connect", "-to", to.address+":9000")
	c.logf(t, "%s -> %s: %v", from.address, to.address, err == nil)
	return err == nil
}

// flow is what sif-traffic counted.
type flow struct {
	Sent, Answered int
	Longest        int64
}

// counted is what sif-traffic send prints.
type counted struct {
	UDP, TCP flow
	Broken   string
}

// during sends numbered messages from one workload to another while fn runs, and returns how many
// were answered.
func (c *cluster) during(t *testing.T, from, to endpoint, fn func()) counted {
	t.Helper()
	unit := "traffic-" + from.alloc[:8]
	out := "/root/" + unit + ".json"
	c.quietly(t, from.machine, "systemd-run -q --collect --unit "+unit+" -p StandardOutput=truncate:"+out+
		" nsenter --net=/var/run/netns/"+from.alloc+" "+traffic+" send -for 1h -every 100ms -to "+to.address+":9000")
	time.Sleep(3 * time.Second)
	fn()
	time.Sleep(3 * time.Second)
	// It prints its report when it is told to end.
	text := c.quietly(t, from.machine, "systemctl kill -s INT "+unit+"; while systemctl -q is-active "+unit+"; do sleep 0.5; done; cat "+out)
	var r counted
	must.NoError(t, json.Unmarshal([]byte(text), &r), must.Sprint(text))
	c.logf(t, "%s", text)
	must.Greater(t, 0, r.UDP.Answered, must.Sprint("nothing was answered"))
	return r
}
