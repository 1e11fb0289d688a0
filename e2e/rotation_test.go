// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
)

// rotationVariable is for how long TestRotation runs ("3m"). It has the tests' lab use certificates
// that live for rotationLife and, if linkKeysVariable is set, keys of links that are replaced after
// that; a lab that is already up needs `sif-lab up -cert-ttl 1m -key-period 1m`.
const (
	rotationVariable = "SIF_E2E_ROTATION"
	linkKeysVariable = "SIF_LINK_KEYS"
)

const rotationLife = time.Minute

// rotations counts what the daemons' status says of their certificates, and of the keys of links.
type rotations map[string][]time.Time

// replacedKeys returns how often each node must replace the key of its links at least.
func replacedKeys() int {
	if os.Getenv(linkKeysVariable) == "" {
		return 0
	}
	return 3
}

// fewestKeys returns how many keys of links the node had of which the fewest were seen.
func (r rotations) fewestKeys() (fewest int) {
	fewest = -1
	for who, made := range r {
		if strings.HasPrefix(who, keyOf) && (fewest < 0 || len(made) < fewest) {
			fewest = len(made)
		}
	}
	return fewest
}

const keyOf = "the key of the links of "

// look notes the certificates and keys that each daemon has now. It returns an error if a
// certificate has ended.
func (r rotations) look(t *testing.T) error {
	t.Helper()
	s := world.status(t)
	for _, n := range s.Nodes {
		if n.LinkKey == nil {
			continue
		}
		who := keyOf + n.ID().String()
		if seen := r[who]; len(seen) == 0 || !seen[len(seen)-1].Equal(n.LinkKey.Made) {
			r[who] = append(seen, n.LinkKey.Made)
		}
	}
	see := func(who string, ends, at time.Time) error {
		if n := len(r[who]); n == 0 || !r[who][n-1].Equal(ends) {
			r[who] = append(r[who], ends)
		}
		if at.After(ends) {
			return fmt.Errorf("the certificate of %s ended at %s", who, ends.Format(time.TimeOnly))
		}
		return nil
	}
	errs := []error{see("the controller", s.Controller.CertificateExpires, time.Now())}
	for _, n := range s.Nodes {
		errs = append(errs, see(fmt.Sprintf("%s %s", n.Kind, n.ID()), n.CertificateExpires, n.Reported))
	}
	return errors.Join(errs...)
}

// TestRotation has certificates of one minute, another authority that issues them, other versions
// of the keys that sign, the older ones retired, and with linkKeysVariable keys of links that are
// replaced each minute, under traffic: established TCP connections, UDP flows, new connections, and
// new workloads in both zones. Nothing of it may be lost.
func TestRotation(t *testing.T) {
	text := os.Getenv(rotationVariable)
	if text == "" {
		t.Skipf("%s is not set", rotationVariable)
	}
	length, err := time.ParseDuration(text)
	must.NoError(t, err)
	world.withTestPorts(t)
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")
	near, far := world.workload(t, "getaway-app/news-gw", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")

	streams := []*stream{openStream(t, svc, near, newsPort, "near"), openStream(t, svc, far, newsPort, "far")}
	packets := []*datagrams{openDatagrams(t, svc, near, newsPort), openDatagrams(t, svc, far, newsPort)}
	flows := []*attempts{openAttempts(t, svc, near, 9001), openAttempts(t, svc, far, 9001)}

	authority := world.rotateAuthority(t, length)
	keys := world.rotateKeys(t)

	seen := rotations{}
	began := time.Now()
	admitted := 0
	for !keys.look(t) || time.Since(began) < length || seen.fewestKeys() <= replacedKeys() && time.Since(began) < length+2*time.Minute {
		for _, zone := range []string{"aws1", "gcp1"} {
			world.replace(t, "places-gw", zone, svc, 9002)
			admitted++
			must.NoError(t, seen.look(t))
			for _, s := range streams {
				s.mustFlow(t, 10*time.Second)
			}
		}
	}
	took := time.Since(began).Round(time.Second)
	authority(t)
	must.True(t, keys.over)

	for _, s := range streams {
		s.mustFlow(t, 10*time.Second)
		t.Logf("established connection to %s: %d bytes echoed", s.to, s.returned.Load())
	}
	for _, f := range flows {
		f.stop()
		made, err := f.count()
		t.Logf("new connections: %d", made)
		must.NoError(t, err)
	}
	time.Sleep(time.Second) // the echoes of the last packets
	for _, p := range packets {
		sent, lost := p.count(time.Second)
		t.Logf("datagrams: %d, lost %d", sent, lost)
		must.Zero(t, lost, must.Sprint("of ", sent, " datagrams, sent ", p.gap(time.Second)))
	}
	fewest := 0
	for who, ends := range seen {
		if strings.HasPrefix(who, keyOf) {
			t.Logf("%s was replaced %d times", who, len(ends)-1)
			continue
		}
		t.Logf("%s: %d certificates", who, len(ends))
		if fewest == 0 || len(ends) < fewest {
			fewest = len(ends)
		}
	}
	t.Logf("%s: %d workloads admitted, each daemon with at least %d certificates", took, admitted, fewest)
	// A daemon renews at two thirds at the latest, so it has at least one new one in each minute.
	must.GreaterEq(t, int(length/rotationLife), fewest-1)
	must.GreaterEq(t, replacedKeys(), seen.fewestKeys()-1)
	world.allWell(t, 30*time.Second)
}

// rotating is a command of sif that runs beside the traffic.
type rotating struct {
	what  string
	began time.Time
	said  bytes.Buffer
	ended chan struct{}
	err   error
}

// begin runs a command that rotates something beside the traffic.
func (f *fabricUnderTest) begin(t *testing.T, args ...string) *rotating {
	t.Helper()
	r := &rotating{what: "sif " + strings.Join(args, " "), began: time.Now(), ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	cmd, err := f.Command(ctx, "client", filepath.Join(f.Bin, "sif"), args...)
	must.NoError(t, err)
	cmd.Env = append(cmd.Env, f.Environment()...)
	cmd.Stdout, cmd.Stderr = &r.said, &r.said
	must.NoError(t, cmd.Start())
	go func() {
		defer close(r.ended)
		r.err = cmd.Wait()
	}()
	t.Cleanup(func() {
		cancel()
		<-r.ended
	})
	return r
}

// over reports whether the command has ended. It must not have failed.
func (r *rotating) over(t *testing.T) bool {
	t.Helper()
	select {
	case <-r.ended:
	default:
		return false
	}
	must.NoError(t, r.err, must.Sprint(r.what, ": ", r.said.String()))
	return true
}

// wait waits for the end of the command.
func (r *rotating) wait(t *testing.T) {
	t.Helper()
	<-r.ended
	must.True(t, r.over(t))
	t.Logf("%s took at most %s:\n%s", r.what, time.Since(r.began).Round(time.Second), r.said.String())
}

// rotateAuthority replaces the authority of the fabric's certificates meanwhile. The function that
// it returns waits for that, and ends the old one: everything must go on with the new one alone.
func (f *fabricUnderTest) rotateAuthority(t *testing.T, within time.Duration) (finish func(*testing.T)) {
	t.Helper()
	rotation := f.begin(t, "ca", "rotate", "-bundle="+f.FabricCA(), "-timeout="+(within+3*time.Minute).String())
	return func(t *testing.T) {
		t.Helper()
		rotation.wait(t)
		r := f.sif(t, "ca", "finish", "-json", "-auto-approve")
		must.Zero(t, r.code, must.Sprint(r.stderr))
		var set struct {
			Authorities []struct {
				State   string
				Trusted int
			}
			Daemons int
		}
		eventually(t, 3*time.Minute, func() error {
			r := f.sif(t, "ca", "status", "-json", "-bundle="+f.FabricCA())
			if err := json.Unmarshal([]byte(r.stdout), &set); err != nil {
				return fmt.Errorf("%w: %s", err, r.stderr)
			}
			for _, a := range set.Authorities {
				if want := map[string]int{"current": set.Daemons, "ended": 0}[a.State]; a.Trusted != want || a.State != "current" && a.State != "ended" {
					return fmt.Errorf("the authority that is %s is trusted by %d of %d daemons", a.State, a.Trusted, set.Daemons)
				}
			}
			return nil
		})
		must.Len(t, 2, set.Authorities)
	}
}

// keyTimeout is how long a rotation of the keys may take at each of its steps.
const keyTimeout = 10 * time.Minute

// keyRotation has new versions of the fabric's keys sign, and then retires the older ones.
type keyRotation struct {
	f       *fabricUnderTest
	step    *rotating
	retires bool
	over    bool
}

func (f *fabricUnderTest) rotateKeys(t *testing.T) *keyRotation {
	t.Helper()
	return &keyRotation{f: f, step: f.begin(t, "key", "rotate", "-json", "-timeout="+keyTimeout.String())}
}

// look goes on with the next step when one has ended, and reports whether all have.
func (k *keyRotation) look(t *testing.T) bool {
	t.Helper()
	if k.over || !k.step.over(t) {
		return k.over
	}
	k.step.wait(t)
	if k.retires {
		k.over = true
		k.check(t)
		return true
	}
	k.retires = true
	k.step = k.f.begin(t, "key", "retire", "-json", "-timeout="+keyTimeout.String())
	return false
}

// check checks that every key has one version that counts, another than the first, and that
// everybody knows it.
func (k *keyRotation) check(t *testing.T) {
	t.Helper()
	r := k.f.sif(t, "key", "status", "-json")
	must.Zero(t, r.code, must.Sprint(r.stderr))
	var s struct {
		Keys []struct {
			Versions []struct {
				Version, Known, Of int
				State              string
			}
		}
	}
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &s))
	must.Len(t, 2, s.Keys)
	for _, key := range s.Keys {
		must.Len(t, 1, key.Versions, must.Sprint(r.stdout))
		v := key.Versions[0]
		must.Greater(t, 1, v.Version)
		must.Eq(t, "signs", v.State)
		must.Eq(t, v.Of, v.Known)
	}
}

// replace stops the instance of a job in a zone. It waits for the one that Nomad starts in its
// place, and until from reaches that.
func (f *fabricUnderTest) replace(t *testing.T, job, zone string, from workload, port uint16) {
	t.Helper()
	service := "getaway-app/" + job
	old := f.workload(t, service, zone)
	_, err := f.nomad.Allocations().Stop(&nomad.Allocation{ID: old.alloc}, nil)
	must.NoError(t, err)
	var next workload
	eventually(t, 2*time.Minute, func() error {
		for _, a := range f.allocs(t, job) {
			if a.ClientStatus == nomad.AllocClientStatusFailed {
				t.Fatal("an instance failed: " + said(a))
			}
		}
		list := f.workloads(t, service, zone)
		i := slices.IndexFunc(list, func(w workload) bool { return w.alloc != old.alloc })
		if i < 0 {
			return fmt.Errorf("%s has no new instance in %s", job, zone)
		}
		next = list[i]
		return nil
	})
	reaches(t, from, next, port, true, 20*time.Second)
}
