// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"crypto/tls"
	"path/filepath"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/statefile"
)

// newController returns the client of the controllers: those in the configuration, and those of
// which they have told the node, now or before it was restarted. So a node needs to know one of
// them when it joins, and finds those that come later. Whoever answers at an address must have the
// certificate of a controller, so the list needs no signature.
func (n *Node) newController(conf *tls.Config) (*api.Client, error) {
	file := statefile.File[[]string]{Path: filepath.Join(n.Config.DataDir, "controllers.json"), What: "the addresses of controllers", Lazy: true}
	known, _, err := file.Read()
	if err != nil {
		n.Log.Warn("not using the addresses of controllers on disk", logkey.Error, err)
	}
	return api.NewClient(api.Config{
		Address: strings.Join(n.Config.Controller.All(), ","), Known: known, TLS: conf,
		Clock:   func(t time.Time) { clock.Confirm("the controller", t) },
		Learned: func(addresses []string) { n.Degrade("addresses of controllers on disk", file.Write(addresses)) },
	})
}
