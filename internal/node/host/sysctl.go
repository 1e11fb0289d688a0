// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package host

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sif-project/sif/internal/node/kernel"
)

// Forwarding are the parameters of the node as a whole that a workload node needs, and a processor
// to reach the outside. Agent and engine set them and put them back.
var Forwarding = []kernel.Sysctl{{Name: "net/ipv4/ip_forward", Value: "1"}, {Name: "net/ipv6/conf/all/forwarding", Value: "1"}}

// contested are Forwarding, and what would change our interfaces as well when it is written. The
// names of each are one parameter of the kernel.
var contested = []struct {
	names       []string
	value, what string
}{
	{[]string{Forwarding[0].Name, "net/ipv4/conf/all/forwarding"}, Forwarding[0].Value, "the node forwards no IPv4 packets"},
	{[]string{Forwarding[1].Name}, Forwarding[1].Value, "the node forwards no IPv6 packets"},
	{[]string{"net/ipv6/conf/all/disable_ipv6"}, "0", "the fabric's interfaces have no IPv6"},
}

// directories of settings, the one that counts most first (sysctl.d(5)). /etc/sysctl.conf comes
// last.
var directories = []string{"etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d"}

const lastFile = "etc/sysctl.conf"

// setting is a line of a file.
type setting struct {
	pattern, value string
	file           string
	line           int
}

// Sysctls looks in the settings of the machine, below root, for what stands against the fabric's
// own whenever they are applied: at boot, when a package brings some, by `sysctl --system`.
func Sysctls(root string) []Finding {
	all := settings(root)
	var findings []Finding
	for _, c := range contested {
		subject := strings.ReplaceAll(c.names[0], "/", ".")
		var last *setting
		for i, s := range all {
			matches := func(name string) bool { ok, err := path.Match(s.pattern, name); return err == nil && ok }
			if slices.ContainsFunc(c.names, matches) {
				last = &all[i]
			}
		}
		switch {
		case last == nil:
			findings = append(findings, Finding{"sysctl", subject, Well, "is set by no file of this machine", ""})
		case last.value == c.value:
			findings = append(findings, Finding{"sysctl", subject, Well, fmt.Sprintf("is set to %s by %s:%d", last.value, last.file, last.line), ""})
		default:
			remedy := fmt.Sprintf("echo '%s = %s' >> /etc/sysctl.d/zz-sif.conf", subject, c.value)
			if strings.HasSuffix(last.file, lastFile) {
				remedy = fmt.Sprintf("set it to %s there", c.value)
			}
			findings = append(findings, Finding{"sysctl", subject, Warning,
				fmt.Sprintf("is set to %s by %s:%d: whenever that is applied, %s until a daemon has put it back, which takes seconds", last.value, last.file, last.line, c.what), remedy})
		}
	}
	return findings
}

// settings reads the files in the order in which they are applied.
func settings(root string) []setting {
	files := map[string]string{} // by name: of two files with one name, the first counts
	for _, dir := range directories {
		list, _ := filepath.Glob(filepath.Join(root, dir, "*.conf")) // the pattern is valid
		for _, file := range list {
			if name := filepath.Base(file); files[name] == "" {
				files[name] = file
			}
		}
	}
	var all []setting
	for _, name := range slices.Sorted(maps.Keys(files)) {
		all = append(all, readSettings(files[name])...)
	}
	return append(all, readSettings(filepath.Join(root, lastFile))...)
}

// readSettings reads a file; one that cannot be read has none, as for who applies them.
func readSettings(file string) []setting {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	var list []setting
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		key, value, assigned := strings.Cut(text, "=")
		if text == "" || text[0] == '#' || text[0] == ';' || !assigned {
			continue
		}
		key = strings.TrimPrefix(strings.TrimSpace(key), "-")
		// The first separator says which one of the two it is.
		if dot, slash := strings.Index(key, "."), strings.Index(key, "/"); dot >= 0 && (slash < 0 || dot < slash) {
			key = strings.NewReplacer(".", "/", "/", ".").Replace(key)
		}
		list = append(list, setting{key, strings.TrimSpace(value), file, n})
	}
	return list
}
