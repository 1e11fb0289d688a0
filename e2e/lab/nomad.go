// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/internal/wellknown"
)

// NomadAddress is the address of the Nomad server: HTTPS with the servers' CA, ACLs enabled.
func (l *Lab) NomadAddress() string {
	return "https://" + l.Topology.Orchestrator().Address + ":4646"
}

// Nomad returns a client of the Nomad server that uses the given token.
func (l *Lab) Nomad(token string) (*api.Client, error) {
	client, err := l.httpsClient(clientNS)
	if err != nil {
		return nil, err
	}
	return api.NewClient(&api.Config{
		Address: l.NomadAddress(), SecretID: token, HttpClient: client,
		// The API refuses TLS settings if it is given an HTTP client.
		TLSConfig: &api.TLSConfig{},
	})
}

// startNomadServer starts the server and sets up its ACLs and the fabric's tokens.
func (l *Lab) startNomadServer(ctx context.Context) error {
	node := l.Topology.Orchestrator()
	p, err := l.nomadProcess(node, `server {
  enabled          = true
  bootstrap_expect = 1
  default_scheduler_config {
    scheduler_algorithm = "spread" # so that instances meet across nodes
  }
  raft_multiplier  = 1
}
`)
	if err != nil {
		return err
	}
	client, err := l.Nomad(l.Secrets.NomadManagement)
	if err != nil {
		return err
	}
	if err := l.launch(ctx, p, 30*time.Second, func(ctx context.Context) error {
		_, _, err := client.ACLTokens().BootstrapOpts(l.Secrets.NomadManagement, (&api.WriteOptions{}).WithContext(ctx))
		return err
	}); err != nil {
		return err
	}
	l.progress.line("Nomad server")
	return nil
}

// CNIDirs returns a node's directories of CNI plugins and of network configurations, as its Nomad
// client is configured.
func (l *Lab) CNIDirs(node string) (plugins, configs string) {
	return l.varDir(node, "cni", "bin"), l.varDir(node, "cni", "config")
}

// startNomadClient starts a workload node's Nomad client and waits until the server lists it as
// ready.
func (l *Lab) startNomadClient(ctx context.Context, node *Node) error {
	plugins, configs := l.CNIDirs(node.Name)
	if err := mkdirs(plugins, configs, l.WorkloadAPIDir(node.Name)); err != nil {
		return err
	}
	chroot, err := l.chroot(node)
	if err != nil {
		return err
	}
	config := fmt.Sprintf(`client {
  enabled           = true
  servers           = ["%s:4647"]
  network_interface = %q
  cni_path          = %q
  cni_config_dir    = %q
  cgroup_parent     = %q
  cpu_total_compute = 8000

  meta {
    guest = %q
  }

  host_volume %q {
    path      = %q
    read_only = true
  }

  # The disk is the machine's and may be rather full.
  gc_disk_usage_threshold  = 99
  gc_inode_usage_threshold = 99

  options {
    "driver.allowlist"     = %q
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
  chroot_env {
%s  }
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
`, l.Topology.Orchestrator().Address, underlay, plugins, configs, cgroupParent(l.Name, node.Name), l.GuestDir(),
		wellknown.WorkloadAPIVolume, l.WorkloadAPIDir(node.Name),
		strings.Join(node.Drivers, ","), chroot)
	if node.HasDriver("docker") {
		// Each client has a Docker engine of its own, so that none removes another's containers as
		// dangling.
		config += fmt.Sprintf(`plugin "docker" {
  config {
    endpoint    = "unix://%s"
    infra_image = %q
    gc {
      image = false
      dangling_containers {
        enabled = false
      }
    }
    volumes {
      enabled = true
    }
  }
}
`, l.DockerSocket(node.Name), pauseImage)
	}
	if node.HasDriver("qemu") {
		config += `plugin "qemu" {
  config {
    args_allowlist = ["-append", "-cpu", "-device", "-initrd", "-kernel", "-m", "-netdev", "-smp"]
  }
}
`
	}
	p, err := l.nomadProcess(node, config)
	if err != nil {
		return err
	}
	client, err := l.Nomad(l.Secrets.NomadManagement)
	if err != nil {
		return err
	}
	if err := l.launch(ctx, p, 60*time.Second, func(ctx context.Context) error {
		return nomadReady(ctx, client, node)
	}); err != nil {
		return err
	}
	l.progress.line("%s: Nomad client with %s", node.Name, strings.Join(node.Drivers, ", "))
	return nil
}

// chroot returns what a node's Nomad client copies into the root directory of tasks, as the lines
// of chroot_env.
func (l *Lab) chroot(node *Node) (string, error) {
	lines := ""
	add := func(root string, paths ...string) {
		for _, p := range paths {
			lines += fmt.Sprintf("    %q = %q\n", filepath.Join(l.varDir(root), p), p)
		}
	}
	add("rootfs", "/bin", "/usr", "/etc/passwd", "/etc/group")
	if node.HasDriver("java") {
		home, err := javaHome()
		if err != nil {
			return "", err
		}
		add("java", home, filepath.Dir(JavaAnswer), "/lib", "/lib64")
	}
	return lines, nil
}

// nomadReady returns an error that says why the node's Nomad client cannot run jobs yet.
func nomadReady(ctx context.Context, client *api.Client, node *Node) error {
	nodes, _, err := client.Nodes().List((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Name != node.Name || n.Status != "ready" {
			continue
		}
		for _, d := range node.Drivers {
			if info := n.Drivers[d]; info == nil || !info.Healthy {
				return fmt.Errorf("driver %s is not healthy", d)
			}
		}
		return nil
	}
	return errors.New("the server does not list the client as ready")
}

// ReloadNomad makes a node's Nomad client look for CNI networks again. A client does so only at
// start and on SIGHUP, and tells the server 5 to 10 s later. A job that found no node before then
// stays blocked until it is evaluated again, because networks are not part of a node's class.
func (l *Lab) ReloadNomad(node string) error { return l.Signal(node, "nomad", syscall.SIGHUP) }

func (l *Lab) nomadProcess(node *Node, role string) (*Process, error) {
	kind := "client"
	if node.Kind == Orchestrator {
		kind = "server"
	}
	pair, err := l.ca.issue("nomad-"+node.Name, node.Address, kind+".global.nomad")
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`name       = %q
region     = "global"
datacenter = %q
data_dir   = %q
bind_addr  = %q
log_level  = "INFO"

disable_update_check = true

addresses {
  http = "127.0.0.1 %s"
}
advertise {
  http = %q
  rpc  = %q
  serf = %q
}
acl {
  enabled = true
}
tls {
  http                   = true
  rpc                    = true
  ca_file                = %q
  cert_file              = %q
  key_file               = %q
  verify_server_hostname = true
  verify_https_client    = false
}
consul {
  address          = "127.0.0.1:8500"
  token            = %q
  server_auto_join = false
  client_auto_join = false
}
`, node.Name, node.Zone, l.varDir(node.Name, "nomad"), node.Address, node.Address, node.Address, node.Address, node.Address,
		l.ca.caFile(), pair.cert, pair.key, l.Secrets.NomadConsul) + role
	file := l.varDir(node.Name, "nomad.hcl")
	if err := mkdirs(l.varDir(node.Name)); err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("write Nomad's configuration: %w", err)
	}
	return &Process{Node: node.Name, Name: "nomad", Args: []string{l.servers["nomad"], "agent", "-config=" + file}}, nil
}
