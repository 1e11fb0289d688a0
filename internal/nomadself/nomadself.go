// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package nomadself asks a Nomad agent about itself: which Nomad node it is, and where it looks for
// CNI plugins and networks. It does not know who wants to know.
package nomadself

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	nomadapi "github.com/hashicorp/nomad/api"
)

var (
	// ErrHidden says that the agent does not tell, because of its ACLs.
	ErrHidden = errors.New("the Nomad agent does not tell without a token with agent:read; set NOMAD_TOKEN")
	// ErrNoClient says that the agent is not a client, but a server only.
	ErrNoClient = errors.New("the Nomad agent is a server only, so no workload can run here")
)

// Self is what a Nomad client says of itself.
type Self struct {
	NodeID       string
	Name         string
	Version      string
	CNIPath      string // the directory of CNI plugins
	CNIConfigDir string // the directory of CNI networks
}

// What Nomad uses if its configuration does not say.
const (
	defaultCNIPath      = "/opt/cni/bin"
	defaultCNIConfigDir = "/opt/cni/config"
)

// Ask asks the agent that the client names.
func Ask(ctx context.Context, client *nomadapi.Client) (Self, error) {
	var reply nomadapi.AgentSelf
	if _, err := client.Raw().Query("/v1/agent/self", &reply, (&nomadapi.QueryOptions{}).WithContext(ctx)); err != nil {
		var refused nomadapi.UnexpectedResponseError
		if errors.As(err, &refused) && (refused.StatusCode() == http.StatusForbidden || refused.StatusCode() == http.StatusUnauthorized) {
			return Self{}, ErrHidden
		}
		return Self{}, fmt.Errorf("ask the Nomad agent at %s about itself: %w", client.Address(), err)
	}
	self := Self{
		NodeID: reply.Stats["client"]["node_id"], Name: reply.Member.Name,
		CNIPath: defaultCNIPath, CNIConfigDir: defaultCNIConfigDir,
	}
	if self.NodeID == "" {
		return self, ErrNoClient
	}
	if v, ok := reply.Config["Version"].(map[string]any); ok {
		self.Version, _ = v["Version"].(string)
	}
	if conf, ok := reply.Config["Client"].(map[string]any); ok {
		set := func(field *string, name string) {
			if s, ok := conf[name].(string); ok && s != "" {
				*field = s
			}
		}
		set(&self.CNIPath, "CNIPath")
		set(&self.CNIConfigDir, "CNIConfigDir")
	}
	return self, nil
}
