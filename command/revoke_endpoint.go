// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
)

// RevokeEndpointCommand is sif revoke endpoint.
type RevokeEndpointCommand struct{ revoking }

// Synopsis implements cli.Command.
func (c *RevokeEndpointCommand) Synopsis() string { return "Take all rights of one endpoint away" }

func (c *RevokeEndpointCommand) usage() string {
	return `
Usage: sif revoke endpoint [options] <endpoint>

  Takes all rights of one endpoint away, while other endpoints of its service
  keep theirs: it reaches nobody and nobody reaches it, also on connections
  that are open, and it is not admitted again, until "sif reinstate endpoint".
  Its process goes on: stop the allocation in Nomad to have another one placed.

  The endpoint is named by its ID, which is that of the allocation, or by the
  beginning of the ID. The token must be an operator's, or may apply changes of
  the endpoint's domain.
`
}

func (c *RevokeEndpointCommand) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: the ID of an endpoint or its beginning", predict: complete.PredictAnything}
}

func (c *RevokeEndpointCommand) run(ctx context.Context, args []string) error {
	return c.revoke(ctx, "endpoint "+args[0], api.RevokeRequest{Endpoint: args[0]})
}
