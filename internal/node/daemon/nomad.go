// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"cmp"
	"context"
	"time"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/nomadself"
)

// The node's Nomad client is asked which Nomad node it is so often, and may take so long. It starts
// after the agent, and another one may have been set up since.
const (
	nomadFirst    = 2 * time.Second
	nomadInterval = 30 * time.Second
	nomadTimeout  = 2 * time.Second
)

// nomadNode returns the ID of the node's Nomad client, empty if it is not known yet.
func (n *Node) nomadNode() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return cmp.Or(n.nomad, n.Config.Nomad.Node)
}

// keepNomadNode asks the Nomad client of a workload node which Nomad node it is, until ctx ends. If
// it does not answer or tell, the controller finds the Nomad node by its address.
func (n *Node) keepNomadNode(ctx context.Context) error {
	if n.Kind != fabric.KindWorkload {
		return nil
	}
	for pause := nomadFirst; ; {
		self, err := n.askNomad(ctx)
		if err == nil {
			pause = nomadInterval
			n.mu.Lock()
			changed := n.nomad != self.NodeID
			n.nomad = self.NodeID
			n.mu.Unlock()
			if changed {
				n.Log.Info("the node's Nomad client told its ID", logkey.Machine, self.NodeID)
			}
		} else {
			n.Log.Debug("the node's Nomad client does not tell its ID", logkey.Error, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, nomadInterval)
	}
}

func (n *Node) askNomad(ctx context.Context) (nomadself.Self, error) {
	client, err := n.Config.NomadClient(nil)
	if err != nil {
		return nomadself.Self{}, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, nomadTimeout)
	defer cancel()
	return nomadself.Ask(ctx, client)
}
