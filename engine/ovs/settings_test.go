// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"context"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
)

// TestChangedSettingsAreCorrected changes the bridge and a port in the database.
func TestChangedSettingsAreCorrected(t *testing.T) {
	ctx := context.Background()
	instance := ovstest.Start(t)
	sw := ovs.NewSwitch(instance.Config)
	must.NoError(t, sw.Create(ctx))
	ovstest.Run(t, "ip", "-n", instance.Namespace, "link", "add", "name", "sif-o0", "type", "veth", "peer", "name", "far")
	_, err := sw.AddPort(ctx, "sif-o0")
	must.NoError(t, err)
	ports := []string{"sif-o0"}
	changes, err := sw.Repair(ctx, ports)
	must.NoError(t, err)
	must.SliceEmpty(t, changes)
	br := instance.Config.Bridge
	for _, c := range []struct{ command, change string }{
		{"set-fail-mode " + br + " standalone", "fail_mode"},
		{"del-fail-mode " + br, "fail_mode"},
		{"set bridge " + br + " protocols=OpenFlow10", "protocols"},
		{"set bridge " + br + " stp_enable=true", "stp_enable"},
		{"set bridge " + br + " mcast_snooping_enable=true", "mcast_snooping_enable"},
		{"set-controller " + br + " tcp:192.0.2.1:6653", "controller"},
		{"-- --id=@m create mirror name=m select-all=true output-vlan=7 -- set bridge " + br + " mirrors=@m", "mirrors"},
		{"set port sif-o0 tag=7", "tag"},
		{"set interface sif-o0 ingress_policing_rate=1000", "ingress_policing_rate"},
		{"set-frags", "how fragments are matched"},
		{"dpctl/ipf-set-min-frag netdev@ovs-netdev v4 1000", "min v4 frag size"},
		{"dpctl/ipf-set-min-frag netdev@ovs-netdev v6 1000", "min v6 frag size"},
		{"dpctl/ipf-set-max-nfrags netdev@ovs-netdev 50", "max num frags"},
		{"del-br " + br, "bridge " + br},
	} {
		fields := strings.Fields(c.command)
		switch {
		case c.command == "set-frags":
			ovstest.Run(t, "ovs-ofctl", "-O", "OpenFlow14", "set-frags", "unix:"+instance.Config.RunDir+"/"+br+".mgmt", "normal")
		case strings.HasPrefix(c.command, "dpctl/") && instance.Config.Datapath != "netdev":
			continue
		case strings.HasPrefix(c.command, "dpctl/"):
			ovstest.Run(t, "ovs-appctl", append([]string{"-t", instance.Config.Control}, fields...)...)
		default:
			ovstest.Run(t, "ovs-vsctl", append([]string{"--db=unix:" + instance.Config.RunDir + "/db.sock"}, fields...)...)
		}
		changes, err := sw.Repair(ctx, ports)
		must.NoError(t, err, must.Sprint(c.command))
		must.Len(t, 1, changes)
		must.StrContains(t, changes[0], c.change)
		changes, err = sw.Repair(ctx, ports)
		must.NoError(t, err)
		must.SliceEmpty(t, changes)
	}
}
