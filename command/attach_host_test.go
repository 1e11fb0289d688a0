// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"errors"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/node/hostport"
)

func TestHostOptions(t *testing.T) {
	for _, c := range []struct {
		args, env string
		want      string // options again; empty: wrong
		says      string
	}{
		{args: "-host -port=5432 -port=udp/53", want: "-host -port=tcp/5432 -port=udp/53"},
		{args: "-host", env: "5432, udp/53", want: "-host -port=tcp/5432 -port=udp/53"},
		{args: "-host -port=1", env: "5432", want: "-host -port=tcp/1"},
		{args: "-port=1", says: "only with -host"},
		{args: "-cgroup=/a", says: "only with -host"},
		{args: "-host", says: "needs -port"},
		{args: "-host -port=0", says: "from 1 to 65535"},
		{args: "-host -port=icmp/1", says: "tcp or udp"},
		{args: "-host -port=1 -port=tcp/1", says: "given twice"},
		{args: "-host -cgroup=/a -unit=b.service", says: "exclude each other"},
		{args: "-host" + strings.Repeat(" -port=1", hostport.MaxPorts+1), says: "is the most"},
	} {
		t.Setenv("SIF_PORT", c.env)
		for _, name := range []string{"SIF_HOST", "SIF_CGROUP", "SIF_UNIT"} {
			t.Setenv(name, "")
		}
		var h hostOptions
		o := h.options()
		must.NoError(t, o.Parse(strings.Fields(c.args)))
		p, err := h.process()
		if c.want == "" {
			must.ErrorContains(t, err, c.says, must.Sprint(c.args))
			var usage usageError
			must.True(t, errors.As(err, &usage))
			continue
		}
		must.NoError(t, err)
		must.Eq(t, c.want, processText(p))
	}
	p, err := new(hostOptions).process()
	must.NoError(t, err)
	must.Nil(t, p)
	must.Eq(t, "", processText(nil))
	must.Eq(t, "of the node, reached on tcp/5432 (nobody listens), udp/53, sends as cgroup /db.slice (which does not exist now)",
		hostProcessText(api.Process{Ports: []string{"tcp/5432", "udp/53"}, Silent: []string{"tcp/5432"}, Cgroup: "/db.slice", NoCgroup: true}))
	must.Eq(t, "of the node, reached on tcp/1, sends nothing by the endpoint", hostProcessText(api.Process{Ports: []string{"tcp/1"}}))
}
