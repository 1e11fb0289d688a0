// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// MaxRevoked limits how many revocations a list has, besides its tombstones.
const MaxRevoked = 1000

// Revocation takes the rights of a service, of one endpoint or of one certificate away. Exactly one
// of the three is named. That of a service or an endpoint holds until it is taken back, also for
// what is issued meanwhile. That of a certificate cannot be taken back: its holder gets another.
type Revocation struct {
	Service  Ref    `json:"service,omitzero"`
	Endpoint string `json:"endpoint,omitempty"`
	Serial   string `json:"serial,omitempty"` // of the certificate, as FormatSerial writes it

	Revoked time.Time `json:"revoked"`
	// Reinstated is when it was taken back. What was issued until then stays without rights, so
	// that nothing that was stolen is worth anything again.
	Reinstated time.Time `json:"reinstated,omitzero"`
	Reason     string    `json:"reason,omitempty"` // as the operator gave it
}

// Subject names what was revoked, in words.
func (v Revocation) Subject() string {
	switch {
	case v.Endpoint != "":
		return "endpoint " + v.Endpoint
	case v.Serial != "":
		return "certificate " + v.Serial
	}
	return "service " + v.Service.String()
}

func (v Revocation) String() string {
	s := fmt.Sprintf("%s was revoked at %s", v.Subject(), v.Revoked.UTC().Format(time.RFC3339))
	if v.Reason != "" {
		s += fmt.Sprintf(" (%s)", v.Reason)
	}
	if !v.Reinstated.IsZero() {
		s += fmt.Sprintf(" and reinstated at %s; what was issued until then stays revoked", v.Reinstated.UTC().Format(time.RFC3339))
	}
	return s
}

// Standing reports whether the revocation was not taken back.
func (v Revocation) Standing() bool { return v.Reinstated.IsZero() }

// Over reports whether the revocation need not be kept any longer: everything that it ended has
// expired, and nothing of that can be issued again.
func (v Revocation) Over(now time.Time) bool {
	switch {
	case !v.Standing():
		return now.After(v.Reinstated.Add(TombstoneLife))
	case v.Serial != "":
		return now.After(v.Revoked.Add(TombstoneLife))
	}
	return false
}

// ends reports whether the revocation ends what was issued at a time.
func (v Revocation) ends(issued time.Time) bool { return v.Standing() || !issued.After(v.Reinstated) }

// same reports whether both are one revocation, taken back or not.
func (v Revocation) same(w Revocation) bool { return v.compare(w) == 0 }

func (v Revocation) compare(w Revocation) int {
	return cmp.Or(v.compareSubject(w), v.Revoked.Compare(w.Revoked))
}

// compareSubject orders by what is revoked: certificates, then endpoints, then services.
func (v Revocation) compareSubject(w Revocation) int {
	return cmp.Or(CompareRefs(v.Service, w.Service), cmp.Compare(v.Endpoint, w.Endpoint), cmp.Compare(v.Serial, w.Serial))
}

// later returns that of two states of one revocation that came later.
func (v Revocation) later(w Revocation) Revocation {
	if w.Reinstated.After(v.Reinstated) {
		return w
	}
	return v
}

// RevokedService returns the revocation that ends what was issued to a service at a time.
func (r Revocations) RevokedService(service Ref, issued time.Time) (Revocation, bool) {
	return r.revoked(Revocation{Service: service}, issued)
}

// RevokedEndpoint returns the revocation that ends what was issued to an endpoint at a time.
func (r Revocations) RevokedEndpoint(endpoint string, issued time.Time) (Revocation, bool) {
	return r.revoked(Revocation{Endpoint: endpoint}, issued)
}

// RevokedCertificate returns the revocation of the certificate with a serial number.
func (r Revocations) RevokedCertificate(serial string) (Revocation, bool) {
	return r.revoked(Revocation{Serial: serial}, time.Time{}) // it is not taken back
}

// RevokesCertificates reports whether any certificate is revoked by its serial number.
func (r Revocations) RevokesCertificates() bool {
	return len(r.Revoked) > 0 && r.Revoked[0].Serial != "" // they come first
}

// revoked returns the latest revocation of what another one names that ends what was issued at a
// time.
func (r Revocations) revoked(subject Revocation, issued time.Time) (Revocation, bool) {
	for _, v := range slices.Backward(having(r.Revoked, subject, Revocation.compareSubject)) {
		if v.ends(issued) {
			return v, true
		}
	}
	return Revocation{}, false
}

// EndsAdmission returns why an admission has no rights any more: its node was removed, or its
// service or endpoint revoked. It is empty if the admission has them.
func (r Revocations) EndsAdmission(a Admission) (why string) {
	if t, ended := r.Ends(a.Host(), a.Issued); ended {
		return t.String()
	}
	if v, ended := r.RevokedEndpoint(a.Endpoint, a.Issued); ended {
		return v.String()
	}
	if v, ended := r.RevokedService(a.Service, a.Issued); ended {
		return v.String()
	}
	return ""
}

// keeps reports whether the list contains a revocation, in the same state or a later one.
func (r Revocations) keeps(v Revocation) bool {
	return slices.ContainsFunc(r.Revoked, func(have Revocation) bool { return have.same(v) && !have.Reinstated.Before(v.Reinstated) })
}

// mergeRevoked returns the revocations of several lists, each in its latest state, without those
// that are over at now.
func mergeRevoked(now time.Time, lists ...[]Revocation) []Revocation {
	var all []Revocation
	for _, v := range slices.Concat(lists...) {
		if i := slices.IndexFunc(all, v.same); i >= 0 {
			all[i] = all[i].later(v)
			continue
		}
		all = append(all, v)
	}
	all = slices.DeleteFunc(all, func(v Revocation) bool { return v.Over(now) })
	slices.SortFunc(all, Revocation.compare)
	return all
}

func checkRevoked(list []Revocation) error {
	if len(list) > MaxRevoked {
		return fmt.Errorf("it has %d revocations; at most %d are allowed", len(list), MaxRevoked)
	}
	if !slices.IsSortedFunc(list, Revocation.compare) {
		return errors.New("its revocations are not in order")
	}
	for i, v := range list {
		if err := v.check(); err != nil {
			return fmt.Errorf("revocation of %s: %w", v.Subject(), err)
		}
		if i > 0 && v.same(list[i-1]) {
			return fmt.Errorf("%s is revoked twice at the same time", v.Subject())
		}
	}
	return nil
}

func (v Revocation) check() error {
	named := 0
	for _, is := range []bool{v.Service != Ref{}, v.Endpoint != "", v.Serial != ""} {
		if is {
			named++
		}
	}
	if named != 1 {
		return errors.New("it does not name exactly one of a service, an endpoint and a certificate")
	}
	switch {
	case v.Endpoint != "" && !endpointID.MatchString(v.Endpoint):
		return fmt.Errorf("%.40q is not the ID of an endpoint", v.Endpoint)
	case v.Service != Ref{}:
		if err := errors.Join(CheckName(v.Service.Domain), CheckName(v.Service.Name)); err != nil {
			return err
		}
	case v.Serial != "":
		if serial, err := ParseSerial(v.Serial); err != nil || serial != v.Serial {
			return fmt.Errorf("%.80q is not a serial number in the form of %q", v.Serial, "0a:1b:2c")
		}
		if !v.Standing() {
			return errors.New("the revocation of a certificate cannot be taken back")
		}
	}
	if err := checkTime("revoked", v.Revoked); err != nil {
		return err
	}
	if !v.Standing() {
		if err := checkTime("reinstated", v.Reinstated); err != nil {
			return err
		}
		if v.Reinstated.Before(v.Revoked) {
			return errors.New("it was reinstated before it was revoked")
		}
	}
	return CheckReason(v.Reason)
}

var endpointID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// IsEndpointID reports whether s has the form of the ID of an endpoint, which is that of an
// allocation of Nomad.
func IsEndpointID(s string) bool { return endpointID.MatchString(s) }

// maxSerial is the largest serial number of a certificate, in bytes (RFC 5280).
const maxSerial = 20

// FormatSerial returns a certificate's serial number, big-endian, in the form in which Vault writes
// it: bytes in hexadecimal digits, with colons between.
func FormatSerial(number []byte) string {
	for len(number) > 1 && number[0] == 0 {
		number = number[1:]
	}
	text := make([]byte, 0, 3*len(number))
	for i := range number {
		if i > 0 {
			text = append(text, ':')
		}
		text = hex.AppendEncode(text, number[i:i+1])
	}
	return string(text)
}

// ParseSerial reads a serial number in hexadecimal digits, with colons, hyphens or nothing between
// the bytes, and returns it as FormatSerial does.
func ParseSerial(s string) (string, error) {
	digits := strings.NewReplacer(":", "", "-", "").Replace(strings.TrimPrefix(strings.ToLower(s), "0x"))
	if len(digits)%2 == 1 {
		digits = "0" + digits
	}
	number, err := hex.DecodeString(digits)
	for len(number) > 1 && number[0] == 0 {
		number = number[1:]
	}
	if err != nil || len(number) == 0 || len(number) > maxSerial {
		return "", fmt.Errorf("%.80q is not the serial number of a certificate: 1 to %d bytes in hexadecimal digits, as Vault and openssl write them, such as 39:dd:2e:90", s, maxSerial)
	}
	return FormatSerial(number), nil
}
