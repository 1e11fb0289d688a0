// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package join is what the operator's machine and a machine that joins the fabric must agree on:
// the settings that `sif setup` keeps in Vault, the join token that an operator carries to the
// machine, and the grant that Vault gives for the token, once.
//
// It knows the forms and checks them. It does not talk to Vault, and does not know how a machine is
// configured.
package join
