// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command manual writes the manual pages of the packages into a directory: sif(1), and a page for
// each command, from its help. It knows how such a page is written, and nothing of the commands.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sif-project/sif/command"
	"github.com/sif-project/sif/internal/version"
)

func main() {
	date := flag.String("date", "", "the `date` in the pages' footer")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: manual -date=2026-11-28 <directory>")
		os.Exit(2)
	}
	for name, text := range pages(*date) {
		if err := os.WriteFile(filepath.Join(flag.Arg(0), name), text, 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// pages returns the text of each page by the name of its file.
func pages(date string) map[string][]byte {
	all := map[string][]byte{}
	commands := command.Pages()
	for _, p := range commands {
		var b roff
		b.head(p.Name, date)
		b.section("NAME")
		b.line(file(p.Name) + ` \- ` + escape(p.Synopsis))
		b.section("SYNOPSIS")
		b.line(`\fB` + escape(p.Usage) + `\fR`)
		b.section("DESCRIPTION")
		b.text(p.Text)
		for _, s := range p.Sections {
			b.section(strings.ToUpper(s.Title))
			for _, o := range s.Options {
				value := ""
				if o.Value != "" {
					value = `=\fI` + escape(o.Value) + `\fR`
				}
				b.line(".TP")
				b.line(`\fB\-` + escape(o.Name) + `\fR` + value)
				b.text(o.Usage)
			}
		}
		b.section("SEE ALSO")
		b.line(`.BR sif (1)`)
		all[file(p.Name)+".1"] = b.Bytes()
	}
	all["sif.1"] = overview(commands, date)
	return all
}

func overview(commands []command.Page, date string) []byte {
	var b roff
	b.head("sif", date)
	b.section("NAME")
	b.line(`sif \- service interconnection fabric for Nomad, Consul and Vault`)
	b.section("SYNOPSIS")
	b.line(`\fBsif\fR [\fB\-version\fR] [\fB\-help\fR] \fIcommand\fR [\fIargs\fR]`)
	b.section("DESCRIPTION")
	b.text("An application declares in a service graph who may talk to whom. Wherever a workload of it starts, it receives " +
		"just that connectivity, and nothing else exists. sif is the command line of the fabric, and all of its daemons.")
	b.section("COMMANDS")
	for _, p := range commands {
		b.line(".TP")
		b.line(`.BR ` + file(p.Name) + ` (1)`)
		b.text(p.Synopsis)
	}
	b.section("FILES")
	for _, f := range [][2]string{
		{"/etc/sif", "the configuration of the daemons, and the credential of this machine in Vault"},
		{"/var/lib/sif", "what the daemons remember"},
		{"/run/sif", "sockets between the daemons"},
		{"/usr/share/doc/sif/docs", "the documentation"},
	} {
		b.line(".TP")
		b.line(".I " + escape(f[0]))
		b.text(f[1])
	}
	return b.Bytes()
}

// file is the name of a command's page: "sif-graph-plan".
func file(name string) string { return strings.ReplaceAll(name, " ", "-") }

// roff is a manual page that is being written.
type roff struct{ bytes.Buffer }

func (b *roff) line(s string) { b.WriteString(s + "\n") }

func (b *roff) head(name, date string) {
	b.line(fmt.Sprintf(`.TH %q 1 %q "sif %s" "SIF"`, strings.ToUpper(file(name)), date, version.Version))
}

func (b *roff) section(title string) { b.line(".SH " + title) }

// text writes paragraphs. Lines that are indented further than the first one are kept as they are.
func (b *roff) text(text string) {
	lines := strings.Split(strings.Trim(text, "\n"), "\n")
	margin := indent(lines[0])
	kept := false
	for i, l := range lines {
		switch in := strings.TrimSpace(l) != "" && indent(l) > margin; {
		case in && !kept:
			b.line(".RS 4\n.nf")
			kept = true
		case !in && kept && (strings.TrimSpace(l) != "" || !continues(lines[i:], margin)):
			b.line(".fi\n.RE")
			kept = false
		}
		switch body := escape(strings.TrimRight(l, " ")); {
		case body == "" && kept:
			b.line("")
		case body == "":
			b.line(".PP")
		case kept:
			b.line(body[min(margin, len(body)):])
		default:
			b.line(strings.TrimLeft(body, " "))
		}
	}
	if kept {
		b.line(".fi\n.RE")
	}
}

// continues reports whether the next line that is not empty is still indented further than margin.
func continues(lines []string, margin int) bool {
	for _, l := range lines {
		if strings.TrimSpace(l) != "" {
			return indent(l) > margin
		}
	}
	return false
}

func indent(l string) int { return len(l) - len(strings.TrimLeft(l, " ")) }

// escape returns text as roff prints it.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(s)
	if trimmed := strings.TrimLeft(s, " "); strings.HasPrefix(trimmed, ".") || strings.HasPrefix(trimmed, "'") {
		return s[:len(s)-len(trimmed)] + `\&` + trimmed
	}
	return s
}
