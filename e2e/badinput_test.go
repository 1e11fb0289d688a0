// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// place returns where text first occurs, as line:column.
func place(t *testing.T, text, what string) string {
	t.Helper()
	before, _, found := strings.Cut(text, what)
	must.True(t, found, must.Sprint(what))
	return fmt.Sprintf("%d:%d", strings.Count(before, "\n")+1, len(before)-strings.LastIndex(before, "\n"))
}

// TestBadGraphChangesNothing applies graphs with mistakes. The command reports the place and the
// kind of each mistake, and the revision in force stays.
func TestBadGraphChangesNothing(t *testing.T) {
	sequence := world.sequence(t)
	good := world.getaway(t)
	altered := func(old, new string) string {
		must.StrContains(t, good, old)
		return strings.Replace(good, old, new, 1)
	}
	for name, tc := range map[string]struct {
		text, at string   // the text at whose place the mistake is reported; if empty, the end of the file
		says     []string // must be in the output
	}{
		"broken HCL":      {altered(`contract "users" {`, `contract "users" {{`), "{{", nil},
		"unknown block":   {altered(`service "news-gw"`, `servcie "news-gw"`), "servcie", []string{"unknown", "service"}},
		"unknown service": {altered(`responders  = ["news-gw"]`, `responders  = ["news-gv"]`), `"news-gv"`, []string{`unknown service "news-gv"`, `Did you mean "news-gw"?`}},
		"port 70000":      {altered(`[9001]`, `[70000]`), "70000", []string{"70000"}},
		"duplicate": {good + "\ndomain \"getaway-app\" {\n  service \"twice\" {\n    selector \"nomad\" {\n      job = \"x\"\n    }\n  }\n}\n",
			"", []string{`"getaway-app"`}},
		"duplicate service": {altered(`service "places-gw"`, `service "news-gw"`), "", []string{`"news-gw"`}},
	} {
		t.Run(name, func(t *testing.T) {
			file := write(t, "bad.sif.hcl", tc.text)
			r := world.sif(t, "graph", "apply", file)
			must.Eq(t, 1, r.code)
			must.Eq(t, "", r.stdout)
			if tc.at != "" {
				line, _, _ := strings.Cut(place(t, tc.text, tc.at), ":")
				must.StrContains(t, r.stderr, "bad.sif.hcl:"+line+":")
			}
			must.RegexMatch(t, regexp.MustCompile(`bad\.sif\.hcl:\d+:\d+: error: `), r.stderr)
			for _, says := range tc.says {
				must.StrContains(t, r.stderr, says)
			}
			must.Eq(t, sequence, world.sequence(t))
		})
	}
}

// TestBadStanzaRegistersNothing updates a job with a stanza that names a contract that the graph
// does not have.
func TestBadStanzaRegistersNothing(t *testing.T) {
	before, _, err := world.nomad.Jobs().Info("news-gw", nil)
	must.NoError(t, err)
	text := strings.Replace(world.file(t, "jobs/getaway/news-gw.nomad.hcl"), `["news-api"]`, `["newsapi"]`, 1)
	file := write(t, "bad.nomad.hcl", text)
	r := world.sif(t, "job", "run", "-detach", file)
	must.Eq(t, 1, r.code)
	must.StrContains(t, r.stderr, "bad.nomad.hcl:"+place(t, text, `"newsapi"`)+": error: ")
	must.StrContains(t, r.stderr, `"getaway-app/newsapi"`)
	after, _, err := world.nomad.Jobs().Info("news-gw", nil)
	must.NoError(t, err)
	must.Eq(t, *before.Version, *after.Version)
}

// TestControllerNeedsItsServers starts another controller with a server that does not answer: the
// controller names that server, exits, and has changed nothing.
func TestControllerNeedsItsServers(t *testing.T) {
	sequence := world.sequence(t)
	node := world.Topology.Orchestrator().Name
	config, err := os.ReadFile(world.SIFConfig(node, "controller"))
	must.NoError(t, err)
	for name, tc := range map[string]struct{ block, address, listen string }{
		"Consul": {"consul", "http://127.0.0.1:1", "127.0.0.1:17700"},
		"Vault":  {"vault", "https://127.0.0.1:1", "127.0.0.1:17701"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			text := string(config)
			for _, edit := range []struct{ pattern, value string }{
				{`(?m)^(data_dir = ).*$`, filepath.Join(dir, "data")},
				{`(?m)^(run_dir = ).*$`, filepath.Join(dir, "run")},
				{`(?m)^(listen = ).*$`, tc.listen},
				{`(?ms)(^` + tc.block + ` \{\s+address = )"[^"]*"`, tc.address},
			} {
				re := regexp.MustCompile(edit.pattern)
				must.RegexMatch(t, re, text)
				text = re.ReplaceAllString(text, fmt.Sprintf("${1}%q", edit.value))
			}
			file := filepath.Join(dir, "controller.hcl")
			must.NoError(t, os.WriteFile(file, []byte(text), 0o600))
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			cmd, err := world.Command(ctx, node, filepath.Join(world.Bin, "sif"), "controller", "-config="+file)
			must.NoError(t, err)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			err = cmd.Run()
			must.NoError(t, ctx.Err(), must.Sprintf("the controller did not exit:\n%s", out.String()))
			var exit *exec.ExitError
			must.True(t, errors.As(err, &exit), must.Sprint(err))
			must.Positive(t, exit.ExitCode())
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			must.StrContains(t, lines[len(lines)-1], "127.0.0.1:1")
			must.StrContains(t, strings.ToLower(lines[len(lines)-1]), tc.block)
		})
	}
	t.Cleanup(func() { must.Eq(t, sequence, world.sequence(t)) })
}
