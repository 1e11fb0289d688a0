// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadjob

import (
	"fmt"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/internal/wellknown"
)

// ForeignResolver returns why the dns block of a group keeps its tasks from the names of the
// fabric, with the remedy, or "". Resolvers ask the first server first, and many of them no other
// one while it answers; Nomad ignores what the fabric says as soon as there is a block.
func ForeignResolver(group *nomadapi.TaskGroup) (why, remedy string) {
	ours := wellknown.LinkLocal4.String()
	for _, n := range group.Networks {
		if n.DNS != nil && (len(n.DNS.Servers) == 0 || n.DNS.Servers[0] != ours) {
			return fmt.Sprintf("the dns block of group %q does not begin with the fabric's resolver, so that its tasks would ask others for the fabric's names", *group.Name),
				fmt.Sprintf("Write servers = [%q] in it, with other servers behind, or remove the block.", ours)
		}
	}
	return "", ""
}
