// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/consul/api"
)

// ConsulAddress is the address of the Consul server: HTTPS with the servers' CA, ACLs enabled,
// default deny. On every node the local agent answers plain HTTP on 127.0.0.1:8500.
func (l *Lab) ConsulAddress() string {
	return "https://" + l.Topology.Orchestrator().Address + ":8501"
}

// ServersCA is the file with the CA of the certificates of Consul, Vault and Nomad.
func (l *Lab) ServersCA() string { return l.varDir("tls", "ca.pem") }

// Consul returns a client of the Consul server that uses the given token.
func (l *Lab) Consul(token string) (*api.Client, error) {
	config := api.DefaultConfigWithLogger(nil)
	config.Address = l.ConsulAddress()
	config.Token = token
	client, err := l.httpsClient(clientNS)
	if err != nil {
		return nil, err
	}
	config.HttpClient = client
	return api.NewClient(config)
}

// ConsulAgent returns a client of a node's own Consul agent.
func (l *Lab) ConsulAgent(node, token string) (*api.Client, error) {
	config := api.DefaultConfigWithLogger(nil)
	config.Address = "http://127.0.0.1:8500"
	config.Token = token
	config.HttpClient = &http.Client{Transport: &http.Transport{DialContext: l.Dial(node)}}
	return api.NewClient(config)
}

// startConsulServer starts the server and creates the tokens of the Consul and Nomad agents.
func (l *Lab) startConsulServer(ctx context.Context) error {
	node := l.Topology.Orchestrator()
	p, err := l.consulProcess(node)
	if err != nil {
		return err
	}
	client, err := l.Consul(l.Secrets.ConsulManagement)
	if err != nil {
		return err
	}
	if err := l.launch(ctx, p, 30*time.Second, func(ctx context.Context) error {
		// The server answers a request with a token only when there is a leader that knows the
		// management token.
		_, _, err := client.ACL().TokenReadSelf((&api.QueryOptions{}).WithContext(ctx))
		return err
	}); err != nil {
		return err
	}
	write := (&api.WriteOptions{}).WithContext(ctx)
	for _, n := range l.Topology.Nodes() {
		if _, _, err := client.ACL().TokenCreate(&api.ACLToken{
			SecretID:       l.Secrets.ConsulAgents[n.Name],
			Description:    "Consul agent of " + n.Name,
			NodeIdentities: []*api.ACLNodeIdentity{{NodeName: n.Name, Datacenter: l.Topology.Datacenter}},
		}, write); err != nil {
			return fmt.Errorf("create the token of %s's Consul agent: %w", n.Name, err)
		}
	}
	if _, _, err := client.ACL().PolicyCreate(&api.ACLPolicy{Name: "nomad", Rules: nomadAtConsul}, write); err != nil {
		return fmt.Errorf("create Nomad's policy: %w", err)
	}
	if _, _, err := client.ACL().TokenCreate(&api.ACLToken{
		SecretID:    l.Secrets.NomadConsul,
		Description: "Nomad",
		Policies:    []*api.ACLTokenPolicyLink{{Name: "nomad"}},
	}, write); err != nil {
		return fmt.Errorf("create Nomad's token: %w", err)
	}
	l.progress.line("Consul server")
	return nil
}

// nomadAtConsul lets Nomad's agents register themselves and the services of jobs.
const nomadAtConsul = `
agent_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}
service_prefix "" {
  policy = "write"
}
key_prefix "" {
  policy = "read"
}
`

// startConsulClient starts a node's Consul agent and waits until it has joined.
func (l *Lab) startConsulClient(ctx context.Context, node *Node) error {
	p, err := l.consulProcess(node)
	if err != nil {
		return err
	}
	client, err := l.ConsulAgent(node.Name, l.Secrets.ConsulAgents[node.Name])
	if err != nil {
		return err
	}
	return l.launch(ctx, p, 30*time.Second, func(ctx context.Context) error {
		leader, err := client.Status().LeaderWithQueryOptions((&api.QueryOptions{}).WithContext(ctx))
		if err == nil && leader == "" {
			return errors.New("it has no leader")
		}
		return err
	})
}

func (l *Lab) consulProcess(node *Node) (*Process, error) {
	first := node == l.Topology.Orchestrator()
	server := first || node.ConsulServer
	dc := l.Topology.Datacenter
	name := node.Name + "." + dc + ".consul"
	if server {
		name = "server." + dc + ".consul"
	}
	pair, err := l.ca.issue("consul-"+node.Name, node.Address, name)
	if err != nil {
		return nil, err
	}
	config := map[string]any{
		"server":      server,
		"datacenter":  dc,
		"node_name":   node.Name,
		"node_meta":   map[string]string{"sif-zone": node.Zone},
		"data_dir":    l.varDir(node.Name, "consul"),
		"bind_addr":   node.Address,
		"client_addr": "127.0.0.1",
		"encrypt":     l.Secrets.GossipKey,
		"log_level":   "INFO",
		"ports":       map[string]int{"http": 8500, "https": -1, "grpc": -1, "grpc_tls": -1, "dns": 8600, "serf_wan": -1},
		"acl": map[string]any{
			"enabled":        true,
			"default_policy": "deny",
			"down_policy":    "extend-cache",
			"tokens":         map[string]string{"agent": l.Secrets.ConsulAgents[node.Name]},
		},
		"tls": map[string]any{
			"defaults": map[string]any{
				"ca_file": l.ca.caFile(), "cert_file": pair.cert, "key_file": pair.key, "verify_outgoing": true,
			},
			"internal_rpc": map[string]any{"verify_incoming": true, "verify_server_hostname": true},
		},
		// All blocking queries of a node come from one address.
		"limits":                     map[string]any{"http_max_conns_per_client": 10000, "rpc_max_conns_per_client": 1000},
		"disable_update_check":       true,
		"disable_remote_exec":        true,
		"leave_on_terminate":         false,
		"skip_leave_on_interrupt":    true,
		"enable_local_script_checks": false,
	}
	if server {
		config["addresses"] = map[string]string{"https": "127.0.0.1 " + node.Address, "grpc_tls": node.Address}
		config["ports"] = map[string]int{"http": 8500, "https": 8501, "grpc": -1, "grpc_tls": 8503, "dns": 8600, "serf_wan": -1}
		config["performance"] = map[string]any{"raft_multiplier": 1}
		acl := config["acl"].(map[string]any)
		acl["tokens"] = map[string]string{
			"initial_management": l.Secrets.ConsulManagement,
			"agent":              l.Secrets.ConsulAgents[node.Name],
		}
	}
	if first {
		config["bootstrap_expect"] = 1
	} else {
		config["retry_join"] = []string{l.Topology.Orchestrator().Address}
		config["retry_interval"] = "1s"
	}
	file := l.varDir(node.Name, "consul.json")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	if err := writeJSON(file, config); err != nil {
		return nil, fmt.Errorf("write Consul's configuration: %w", err)
	}
	return &Process{
		Node: node.Name, Name: "consul",
		Args: []string{l.servers["consul"], "agent", "-config-file=" + file},
	}, nil
}
