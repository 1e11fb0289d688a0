// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/wellknown"
)

// setUp sets the servers up for the fabric, as its operator does, and makes the credentials of all
// machines.
func (l *Lab) setUp(ctx context.Context) error {
	args := []string{"setup", "-auto-approve", "-fabric=" + l.Topology.Fabric, "-trust-domain=" + l.Topology.TrustDomain,
		"-pool4=" + l.Topology.Pools.IPv4, "-pool6=" + l.Topology.Pools.IPv6}
	if l.CertTTL > 0 {
		args = append(args, "-cert-ttl="+l.CertTTL.String())
	}
	if _, err := l.asAdministrator(ctx, args...); err != nil {
		return err
	}
	vault, err := l.Vault(l.Secrets.VaultRoot)
	if err != nil {
		return err
	}
	root, err := vault.Logical().ReadWithContext(ctx, wellknown.PKIMount+"/cert/ca")
	if err != nil || root == nil {
		return fmt.Errorf("read the fabric's CA: %w", err)
	}
	if err := os.WriteFile(l.FabricCA(), fmt.Appendf(nil, "%s\n", root.Data["certificate"]), 0o644); err != nil {
		return fmt.Errorf("write the fabric's CA: %w", err)
	}
	if err := l.makeOperator(ctx); err != nil {
		return err
	}
	l.Secrets.Machines = map[string]join.Grant{}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for _, n := range l.Topology.Nodes() {
		g.Go(func() error {
			grant, err := l.createNode(ctx, n)
			if err != nil {
				return fmt.Errorf("create node %s: %w", n.Name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			l.Secrets.Machines[n.Name] = grant
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	l.progress.line("Vault, Consul and Nomad are set up for fabric %q", l.Topology.Fabric)
	return nil
}

// createNode makes a machine's credential, as it gets it by its join token.
func (l *Lab) createNode(ctx context.Context, n *Node) (grant join.Grant, err error) {
	kind, zone := string(n.Kind), n.Zone
	if n.Kind == Orchestrator {
		kind = string(join.Controller)
	}
	out, err := l.asAdministrator(ctx, "node", "create", "-json", "-zone="+zone, "-kind="+kind, n.Name)
	if err != nil {
		return grant, err
	}
	var made struct{ Token string }
	if err := json.Unmarshal(out, &made); err != nil {
		return grant, fmt.Errorf("decode the token: %w", err)
	}
	token, err := join.ParseToken(made.Token)
	if err != nil {
		return grant, err
	}
	vault, err := l.Vault("")
	if err != nil {
		return grant, err
	}
	secret, err := vault.Logical().UnwrapWithContext(ctx, token.Wrapping)
	if err != nil {
		return grant, fmt.Errorf("unwrap the token: %w", err)
	}
	data, err := json.Marshal(secret.Data)
	if err == nil {
		err = json.Unmarshal(data, &grant)
	}
	return grant, err
}

// asAdministrator runs sif with the administrators' tokens of all servers, and returns its output.
func (l *Lab) asAdministrator(ctx context.Context, args ...string) ([]byte, error) {
	cmd, err := l.Command(ctx, clientNS, filepath.Join(l.Bin, "sif"), args...)
	if err != nil {
		return nil, err
	}
	cmd.Env = append(cmd.Env, l.Environment()...)
	cmd.Env = append(cmd.Env, "NOMAD_TOKEN="+l.Secrets.NomadManagement)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("sif %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// makeOperator makes the tokens of an operator.
func (l *Lab) makeOperator(ctx context.Context) error {
	consul, err := l.Consul(l.Secrets.ConsulManagement)
	if err != nil {
		return err
	}
	nomad, err := l.Nomad(l.Secrets.NomadManagement)
	if err != nil {
		return err
	}
	atConsul, _, err := consul.ACL().TokenCreate(&consulapi.ACLToken{
		Description: "operator of the fabric", Policies: []*consulapi.ACLTokenPolicyLink{{Name: setup.OperatorPolicy}},
	}, (&consulapi.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("create the operator's token of Consul: %w", err)
	}
	atNomad, _, err := nomad.ACLTokens().Create(&nomadapi.ACLToken{
		Name: "operator of the fabric", Type: "client", Policies: []string{setup.OperatorPolicy},
	}, (&nomadapi.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("create the operator's token of Nomad: %w", err)
	}
	l.Secrets.ConsulOperator, l.Secrets.NomadOperator = atConsul.SecretID, atNomad.SecretID
	return nil
}

// RenewCredential makes a machine's credential anew, after the machine was removed from the fabric.
// Its daemon uses it when it is started again.
func (l *Lab) RenewCredential(ctx context.Context, node, daemon string) error {
	before := l.Secrets.Machines[node]
	grant, err := l.createNode(ctx, l.Topology.Node(node))
	if err != nil {
		return fmt.Errorf("create node %s again: %w", node, err)
	}
	l.Secrets.Machines[node] = grant
	if _, err := l.secretFile(node); err != nil {
		return err
	}
	file := l.SIFConfig(node, daemon)
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte(strings.ReplaceAll(string(text), before.RoleID, grant.RoleID)), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the new credential into %s: %w", file, err)
	}
	return l.save()
}

// secretFile writes the secret ID of a machine into the file from which its daemon reads it.
func (l *Lab) secretFile(node string) (string, error) {
	secretID := l.Secrets.Machines[node].SecretID
	if secretID == "" {
		return "", errors.New("there is no secret ID for " + node)
	}
	file := l.varDir(node, "secret-id")
	if err := os.WriteFile(file, []byte(secretID+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write the secret ID of %s: %w", node, err)
	}
	return file, nil
}
