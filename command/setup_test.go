// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/testhost"
)

// TestSetupScripts runs the scripts that set real servers up, as administrators do.
func TestSetupScripts(t *testing.T) {
	const management = "8e3b2a61-2f6c-4b26-9d3c-0d1f6f2a7f10"
	vault, vaultClient := testhost.Vault(t)
	consul, _ := testhost.Consul(t, fmt.Sprintf("acl {\n  enabled = true\n  default_policy = \"deny\"\n  tokens {\n    initial_management = %q\n    agent = %q\n  }\n}", management, management))
	nomad, nomadClient := testhost.Nomad(t, "acl {\n  enabled = true\n}")
	eventually(t, func() error {
		_, _, err := nomadClient.ACLTokens().BootstrapOpts(management, nil)
		return err
	})
	consulClient, err := consulapi.NewClient(&consulapi.Config{Address: consul.Address, Token: management})
	must.NoError(t, err)
	eventually(t, func() error {
		_, _, err := consulClient.ACL().TokenReadSelf(nil)
		return err
	})
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script/setup", RequireUniqueNames: true, RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv(withoutPause[0], withoutPause[1])
			for name, value := range map[string]string{
				vaultapi.EnvVaultAddress: "http://" + vault.Address, vaultapi.EnvVaultToken: vault.Token, "HOME": env.WorkDir,
				consulapi.HTTPAddrEnvName: consul.Address, consulapi.HTTPTokenEnvName: management,
				"NOMAD_ADDR": "http://" + nomad.Address, "NOMAD_TOKEN": management,
			} {
				env.Setenv(name, value)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
			// operator sets VAULT_TOKEN to an operator's, who has no tokens of Consul and Nomad.
			"operator": func(ts *testscript.TestScript, _ bool, _ []string) {
				token, err := vaultClient.Auth().Token().Create(&vaultapi.TokenCreateRequest{Policies: []string{setup.OperatorPolicy}})
				ts.Check(err)
				ts.Setenv(vaultapi.EnvVaultToken, token.Auth.ClientToken)
			},
		},
	})
}
