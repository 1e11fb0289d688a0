// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

// EveryName is the pattern of a binding that grants every DNS name.
const EveryName = "*"

// The bounds of DNS names and their labels, from RFC 1035, section 2.3.4. A name of 255 bytes on
// the wire has 253 characters.
const (
	maxDNSName  = 253
	maxDNSLabel = 63
)

// NameFault says why an external cannot have a DNS name, and what to do about it; both are empty if
// it can. Names are in lower case, in ASCII, without a final dot. "*." before a name of at least
// two labels stands for one or more labels.
func NameFault(name string) (fault, remedy string) { return nameFault(name, 2) }

// GrantedNameFault is NameFault for a pattern in a binding, which may also be EveryName, or stand
// for all names of a top-level domain.
func GrantedNameFault(pattern string) (fault, remedy string) {
	if pattern == EveryName {
		return "", ""
	}
	return nameFault(pattern, 1)
}

// nameFault is NameFault where "*." needs the given number of labels after it.
func nameFault(name string, least int) (fault, remedy string) {
	fault, remedy = firstNameFault(name, least)
	if fault == "" {
		return "", ""
	}
	if tidy := tidyName(name); tidy != name {
		if other, _ := firstNameFault(tidy, least); other == "" {
			remedy = fmt.Sprintf("write %q", tidy)
			if hasPort(name) {
				remedy += "; ports stand in the rules of contracts"
			}
		}
	}
	return fault, remedy
}

func firstNameFault(name string, least int) (fault, remedy string) {
	const example = `write a name such as "api.example.com"`
	suffix, wild := strings.CutPrefix(name, "*.")
	labels := strings.Split(suffix, ".")
	last := labels[len(labels)-1]
	switch {
	case name == "":
		return "is empty", example
	case strings.Contains(name, "://"):
		return "has a scheme", example
	case isAddress(name):
		return "is an address, not a name", "list it among prefixes"
	case strings.Contains(name, "/"):
		return "has a path", example
	case strings.Contains(name, "@"):
		return "has a user", example
	case strings.Contains(name, ":"):
		return "has a port", example + "; ports stand in the rules of contracts"
	case strings.HasSuffix(name, "."):
		return "ends with a dot", example
	case !isASCII(name):
		return "is not in ASCII", "write it in punycode, as the DNS has it"
	case strings.ToLower(name) != name:
		return "has upper-case letters", "write it in lower case"
	case name == "*":
		return "names everything", `name what the workloads need, such as "*.example.com", or list prefixes`
	case strings.Contains(suffix, "*"):
		return `has "*" elsewhere than as its first label`, `"*" stands for all labels before a name, as in "*.example.com"`
	case len(name) > maxDNSName:
		return fmt.Sprintf("has %d characters; the most is %d", len(name), maxDNSName), "correct the name"
	}
	for _, label := range labels {
		if fault := labelFault(label); fault != "" {
			return fault, example
		}
	}
	switch {
	case under(suffix, "sif"):
		return "is a name of the fabric", `name the service of the fabric in the contract, as "domain/service"`
	case under(suffix, "arpa"):
		return "is a name of addresses", "list the addresses among prefixes"
	case under(suffix, "localhost"):
		return "is the host itself", "use an external with a node block"
	case strings.Trim(last, "0123456789") == "":
		return "ends with a number, which no name does", "list addresses among prefixes"
	case wild && len(labels) < least:
		return fmt.Sprintf("names everything in %q", suffix), `write a name of at least two labels after "*.", such as "*.example.com"`
	case !wild && len(labels) < 2:
		return "is a single label", `write the full name, such as "api.example.com"`
	}
	return "", ""
}

// labelFault says what is wrong with a label of a DNS name. Underscores are allowed: names of hosts
// have none, but some providers use them.
func labelFault(label string) string {
	switch {
	case label == "":
		return "has an empty label"
	case len(label) > maxDNSLabel:
		return fmt.Sprintf("has a label of %d characters; the most is %d", len(label), maxDNSLabel)
	case label[0] == '-' || label[len(label)-1] == '-':
		return fmt.Sprintf(`has the label %q, which begins or ends with "-"`, label)
	}
	for _, c := range []byte(label) {
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return fmt.Sprintf("contains %q", c)
		}
	}
	return ""
}

// under reports whether a name is another or ends with it.
func under(name, other string) bool { return name == other || strings.HasSuffix(name, "."+other) }

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return c > 127 }) < 0
}

func isAddress(s string) bool {
	if _, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return true
	}
	if _, err := netip.ParseAddrPort(s); err == nil {
		return true
	}
	_, err := netip.ParsePrefix(s)
	return err == nil
}

func hasPort(s string) bool {
	_, rest, scheme := strings.Cut(s, "://")
	if !scheme {
		rest = s
	}
	return strings.Contains(rest, ":")
}

// tidyName returns the name that a text contains: of a URL, of a name with a port or a final dot,
// in upper case, or with letters beyond ASCII.
func tidyName(s string) string {
	if _, rest, scheme := strings.Cut(s, "://"); scheme {
		s = rest
	}
	s, _, _ = strings.Cut(s, "/")
	if _, rest, user := strings.Cut(s, "@"); user {
		s = rest
	}
	s, _, _ = strings.Cut(s, ":")
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if isASCII(s) {
		return s
	}
	star, rest := "", s
	if after, wild := strings.CutPrefix(s, "*."); wild {
		star, rest = "*.", after
	}
	if ascii, err := idna.Lookup.ToASCII(rest); err == nil {
		return star + ascii
	}
	return s
}
