// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package setuptest sets real servers up for tests, as `sif setup` and `sif node create` do, and
// makes tokens with the rights of daemons. It does not know what is tested.
package setuptest

import (
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/wellknown"
)

const (
	controllerPolicy = wellknown.Prefix + "-controller"
	nodePolicy       = wellknown.Prefix + "-node"
)

// ControllerID is the machine of the controller.
var ControllerID = fabric.NodeID{Zone: "aws1", Name: "controller"}

// Settings are those of a fabric for tests, in servers with ACLs.
func Settings(name, trustDomain string) join.Settings {
	return setup.Defaults(join.Settings{
		Fabric: name, TrustDomain: trustDomain,
		Consul: join.ConsulSettings{AuthMethod: wellknown.Prefix, TokenRole: wellknown.Prefix + "-consul"},
		Nomad:  join.NomadSettings{AuthMethod: wellknown.Prefix, TokenRole: wellknown.Prefix + "-nomad"},
	})
}

// ConsulTokens are tokens with the rights of daemons and people.
type ConsulTokens struct {
	Controller, Operator string
	Nodes                map[fabric.NodeID]string
}

// Credentials are those of machines in Vault.
type Credentials struct {
	CA         string // the fabric's root certificate, PEM
	Controller join.Grant
	Nodes      map[fabric.NodeID]join.Grant
}

// Node is a machine, and the units of its certificates.
type Node struct {
	fabric.NodeID
	Kind fabric.NodeKind
}

// apply sets up; a server may need some time after its start before it takes writes.
func apply(t testing.TB, clients setup.Clients, s join.Settings) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := setup.New(clients, s).Apply(t.Context(), func(setup.Item) {})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("set up: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Consul sets Consul up, without log-ins, and makes tokens.
func Consul(t testing.TB, client *consulapi.Client, s join.Settings, nodes ...Node) *ConsulTokens {
	t.Helper()
	apply(t, setup.Clients{Consul: client}, s)
	token := func(holder, policy string) string {
		made, _, err := client.ACL().TokenCreate(&consulapi.ACLToken{Description: "SIF " + s.Fabric + ": " + holder, Policies: []*consulapi.ACLTokenPolicyLink{{Name: policy}}}, nil)
		if err != nil {
			t.Fatalf("make a token of Consul: %v", err)
		}
		return made.SecretID
	}
	tokens := &ConsulTokens{Controller: token("controller", controllerPolicy), Operator: token("operator", setup.OperatorPolicy), Nodes: map[fabric.NodeID]string{}}
	for _, n := range nodes {
		tokens.Nodes[n.NodeID] = token("node "+n.String(), nodePolicy)
	}
	return tokens
}

// Nomad sets Nomad up, without log-ins, and returns a token with the controller's rights.
func Nomad(t testing.TB, client *nomadapi.Client, s join.Settings) string {
	t.Helper()
	apply(t, setup.Clients{Nomad: client}, s)
	made, _, err := client.ACLTokens().Create(&nomadapi.ACLToken{Name: t.Name(), Type: "client", Policies: []string{controllerPolicy}}, nil)
	if err != nil {
		t.Fatalf("make a token of Nomad: %v", err)
	}
	return made.SecretID
}

// Vault sets Vault up, and makes the credentials of a controller and of nodes.
func Vault(t testing.TB, client *vaultapi.Client, s join.Settings, nodes ...Node) *Credentials {
	t.Helper()
	apply(t, setup.Clients{Vault: client}, s)
	secret, err := client.Logical().Read(s.Vault.PKIMount + "/cert/ca")
	if err != nil {
		t.Fatalf("read the fabric's root: %v", err)
	}
	c := &Credentials{Nodes: map[fabric.NodeID]join.Grant{}}
	c.CA, _ = secret.Data["certificate"].(string)
	c.Controller = Machine(t, client, s, ControllerID, join.Controller)
	for _, n := range nodes {
		var kinds []join.Kind
		for _, unit := range n.Kind.Units() {
			kinds = append(kinds, join.Kind(unit))
		}
		c.Nodes[n.NodeID] = Machine(t, client, s, n.NodeID, kinds...)
	}
	return c
}

// LogIns has Consul and Nomad accept machines that log in with tokens of the Vault at an address.
// Vault was set up before.
func LogIns(t testing.TB, clients setup.Clients, s join.Settings, vaultAddress string) {
	t.Helper()
	s.Vault.Address, s.Vault.Issuer = vaultAddress, vaultAddress+"/v1/identity/oidc"
	apply(t, clients, s)
}

// Machine makes the credential of a machine; one that exists gets another.
func Machine(t testing.TB, client *vaultapi.Client, s join.Settings, id fabric.NodeID, kinds ...join.Kind) join.Grant {
	t.Helper()
	g, err := setup.CreateNode(t.Context(), client, s, setup.Machine{ID: id, Kinds: kinds, Again: true})
	if err != nil {
		t.Fatal(err)
	}
	return g
}
