// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package plugin

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"

	"github.com/sif-project/sif/fabric"
)

// longID matches the long container IDs of Docker, podman and containerd's command line, of which
// people see the first 12 digits.
var longID = regexp.MustCompile(`^([a-z0-9][a-z0-9-]{0,13}-)?([0-9a-f]{12})[0-9a-f]{52}$`)

// nameOf returns the name of the attachment of a container without an allocation of Nomad: the
// short form of its ID as runtimes show it, or the ID, if that can be a name, or else a hash of
// both. A container has several attachments if its interface is another one than eth0.
func nameOf(containerID, ifName string) string {
	name := containerID
	if m := longID.FindStringSubmatch(containerID); m != nil {
		name = m[1] + m[2]
	}
	if fabric.CheckName(name) == nil && ifName == "eth0" {
		return name
	}
	sum := sha256.Sum256([]byte(containerID + "/" + ifName))
	return "container-" + hex.EncodeToString(sum[:6])
}
