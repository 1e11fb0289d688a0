// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package host

import (
	"fmt"
	"strings"

	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/hostport"
	"github.com/sif-project/sif/internal/node/kernel"
)

const checkFirewall = "firewall"

// Firewalls tries whether the node's firewall can be set up, and looks what other firewalls of the
// machine do to the fabric's packets.
func Firewalls(own *firewall.Firewall) []Finding {
	nft := Finding{checkFirewall, "nftables", Well, "works", ""}
	if err := kernel.Try(func() error { _, err := own.Trial().Apply(); return err }); err != nil {
		nft.Result, nft.Detail = Wrong, fmt.Sprintf("does not have what the node's firewall needs (%v)", err)
		nft.Remedy = "modprobe -a nf_tables nft_ct nft_fib_inet nft_limit nf_conntrack nft_nat"
	}
	findings := []Finding{nft}
	if err := hostport.Try(true); err != nil && nft.Result == Well {
		findings = append(findings, Finding{
			checkFirewall, "sif attach -host", Warning, fmt.Sprintf("does not work here as a whole (%v)", err), "modprobe nft_socket, or boot a kernel that has it",
		})
	}
	return append(findings, othersFirewalls(own)...)
}

func othersFirewalls(own *firewall.Firewall) []Finding {
	others := Finding{checkFirewall, "other firewalls", Well, "drop nothing of the fabric", ""}
	missing, stands, err := own.Look()
	if err != nil {
		return []Finding{failed(checkFirewall, others.Subject, err)}
	}
	if len(missing) > 0 {
		others.Detail = fmt.Sprintf("drop what they do not know, and the daemons insert %d rules there, marked sif-fabric: %s", len(missing), strings.Join(missing, "; "))
	}
	findings := []Finding{others}
	if len(stands) > 0 {
		findings = nil
	}
	for _, s := range stands {
		findings = append(findings, Finding{checkFirewall, s.Subject, Wrong, s.Detail, s.Remedy})
	}
	return findings
}
