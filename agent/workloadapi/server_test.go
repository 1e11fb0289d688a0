// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package workloadapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	served "github.com/sif-project/sif/agent/workloadapi"
	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/netspace"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity"
)

// helperVariable has this test program do something else than tests: see helper.
const helperVariable = "SIF_WORKLOADAPI_HELPER"

func TestMain(m *testing.M) {
	if what := os.Getenv(helperVariable); what != "" {
		helper(what, os.Args[len(os.Args)-1])
		return
	}
	os.Exit(m.Run())
}

// helper is an unmodified client in a process of its own. It prints a line for each thing that it
// is told.
func helper(what, address string) {
	ctx := context.Background()
	switch what {
	case "hand out":
		handOut(address)
	case "many":
		manyCalls(ctx, address)
	case "watch":
		_ = workloadapi.WatchX509Context(ctx, printer{}, workloadapi.WithAddr(address))
	case "jwt":
		svid, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "store"}, workloadapi.WithAddr(address))
		if err == nil {
			_, err = workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), "store", workloadapi.WithAddr(address))
		}
		var bundles *jwtbundle.Set
		if err == nil {
			bundles, err = workloadapi.FetchJWTBundles(ctx, workloadapi.WithAddr(address))
		}
		if err == nil {
			_, err = jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{"store"})
		}
		_, other := workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), "another", workloadapi.WithAddr(address))
		fmt.Println(svid.ID, err, other != nil)
	}
}

type printer struct{}

func (printer) OnX509ContextUpdate(c *workloadapi.X509Context) {
	svid := c.DefaultSVID()
	bundle, _ := c.Bundles.Get(svid.ID.TrustDomain())
	fmt.Println("svid", svid.ID, svid.Certificates[0].SerialNumber, len(bundle.X509Authorities()))
}

func (printer) OnX509ContextWatchError(err error) { fmt.Println("error", err) }

// fabricOf stands for what the agent and the controller know: a namespace, and who is in it.
type fabricOf struct {
	t     *testing.T
	space ns.NetNS
	inode uint64
	ahead atomic.Int64 // of the clock, in nanoseconds
	td    spiffeid.TrustDomain
	life  time.Duration

	mu      sync.Mutex
	serial  int64
	void    int64 // the serial number of a revoked certificate
	gone    error
	away    error
	looking func()           // what happens while it is looked who has called
	wrong   map[string]error // by subject, as it was reported last
	roots   []*x509.Certificate
	key     *ecdsa.PrivateKey
	jwt     *ecdsa.PrivateKey
}

var here = served.Workload{Endpoint: "4a2f0b1c-0000-4000-8000-000000000001", Service: fabric.Ref{Domain: "shop", Name: "web"}}

func newFabric(t *testing.T) *fabricOf {
	t.Helper()
	testhost.RequireRoot(t)
	space, err := testutils.NewNS()
	must.NoError(t, err)
	t.Cleanup(func() {
		space.Close()
		must.NoError(t, testutils.UnmountNS(space))
	})
	file, err := os.Open(space.Path())
	must.NoError(t, err)
	defer file.Close()
	f := &fabricOf{t: t, space: space, wrong: map[string]error{}, td: spiffeid.RequireTrustDomainFromString("sif.example"), life: time.Hour}
	f.inode, err = netspace.Inode(file)
	must.NoError(t, err)
	f.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	f.jwt, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	f.rotateAuthorities()
	return f
}

// revokedLast reports whether the client was told the revoked certificate last.
func (f *fabricOf) revokedLast(out *lines) bool {
	return strings.Contains(out.last(), fmt.Sprintf("svid spiffe://sif.example/shop/web %d 2", f.void))
}

// rotateAuthorities adds an authority.
func (f *fabricOf) rotateAuthorities() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(f.serial), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, f.key.Public(), f.key)
	must.NoError(f.t, err)
	root, err := x509.ParseCertificate(der)
	must.NoError(f.t, err)
	f.roots = append(f.roots, root)
}

func (f *fabricOf) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fabricOf) now() time.Time { return time.Now().Add(time.Duration(f.ahead.Load())) }

// failures returns what was reported last of the certificates of applications.
func (f *fabricOf) failures() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wrong["certificates of applications"]
}

func (f *fabricOf) authorities() []*x509.Certificate {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.roots
}

func notSuperseded(*x509.Certificate) bool { return false }

func (f *fabricOf) revoked(leaf *x509.Certificate) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.void != 0 && leaf.SerialNumber.Int64() == f.void
}

// Of implements served.Workloads.
func (f *fabricOf) Of(c served.Caller) ([]served.Workload, error) {
	if inode, err := netspace.Inode(c.Namespace); err != nil || inode != f.inode {
		return nil, err
	}
	f.mu.Lock()
	looking := f.looking
	f.mu.Unlock()
	if looking != nil {
		looking()
	}
	w, err := f.Current(here.Endpoint)
	return []served.Workload{w}, err
}

// Current implements served.Workloads.
func (f *fabricOf) Current(endpoint string) (served.Workload, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if endpoint != here.Endpoint {
		return served.Workload{}, errors.New("no such endpoint")
	}
	return here, f.gone
}

// SVID implements served.Issuer.
func (f *fabricOf) SVID(_ context.Context, req api.SVIDRequest) ([][]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away != nil {
		return nil, f.away
	}
	csr, err := x509.ParseCertificateRequest(req.CSR)
	if err != nil {
		return nil, err
	}
	f.serial++
	id := &url.URL{Scheme: "spiffe", Host: f.td.Name(), Path: here.Service.SPIFFE()}
	template := &x509.Certificate{SerialNumber: big.NewInt(f.serial), URIs: []*url.URL{id}, NotBefore: time.Now(), NotAfter: time.Now().Add(f.life), KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, f.roots[0], csr.PublicKey, f.key)
	return [][]byte{der}, err
}

// JWTSVID implements served.Issuer.
func (f *fabricOf) JWTSVID(_ context.Context, req api.JWTSVIDRequest) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: f.jwt, KeyID: "k1"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	return jwt.Signed(signer).Claims(jwt.Claims{
		Subject: "spiffe://" + f.td.Name() + here.Service.SPIFFE(), Audience: req.Audience,
		IssuedAt: jwt.NewNumericDate(time.Now()), Expiry: jwt.NewNumericDate(time.Now().Add(fabric.JWTSVIDLife)),
	}).Serialize()
}

// Bundle implements served.JWTKeys.
func (f *fabricOf) Bundle() *jwtbundle.Bundle {
	b := jwtbundle.New(f.td)
	must.NoError(f.t, b.AddJWTAuthority("k1", f.jwt.Public()))
	return b
}

// Hurry implements served.JWTKeys.
func (*fabricOf) Hurry(context.Context) {}

// serve serves in a directory until stop is called.
func (f *fabricOf) serve(dir, keys string) (stop func()) {
	f.t.Helper()
	_, stop = f.server(dir, keys)
	return stop
}

func (f *fabricOf) server(dir, keys string) (s *served.Server, stop func()) {
	f.t.Helper()
	s, err := served.New(served.Config{
		Dir: dir, KeyDir: keys, TrustDomain: f.td, Workloads: f, Issuer: f, Revoked: f.revoked, Superseded: notSuperseded, Authorities: f.authorities, JWTKeys: f,
		Now: f.now, Report: func(subject string, err error) { f.set(func() { f.wrong[subject] = err }) }, Log: hclog.NewNullLogger(),
	})
	must.NoError(f.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		must.NoError(f.t, <-ended)
	})
	f.t.Cleanup(stop)
	f.eventually(func() error {
		_, err := os.Stat(filepath.Join(dir, "api.sock"))
		return err
	})
	return s, stop
}

func (f *fabricOf) eventually(probe func() error) {
	f.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := probe()
		if err == nil {
			return
		}
		must.True(f.t, time.Now().Before(deadline), must.Sprint(err))
	}
}

// lines are what a helper prints.
type lines struct {
	mu   sync.Mutex
	text string
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text += string(b)
	return len(b), nil
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.text), "\n")
}

func (l *lines) last() string { return l.all()[len(l.all())-1] }

// inside runs a helper in the namespace.
func (f *fabricOf) inside(what, dir string) (*exec.Cmd, *lines) {
	cmd := exec.Command("nsenter", "--net="+f.space.Path(), os.Args[0], "unix://"+filepath.Join(dir, "api.sock"))
	out := &lines{}
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), helperVariable+"="+what), out, out
	must.NoError(f.t, cmd.Start())
	f.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, out
}

func (f *fabricOf) awaits(l *lines, what string) {
	f.t.Helper()
	f.eventually(func() error {
		if !strings.Contains(l.last(), what) {
			return fmt.Errorf("%q is not told, but %q", what, l.all())
		}
		return nil
	})
}

// An unmodified client is told who it is, and of each change: another certificate, another
// authority, another agent. It is told that it is nobody when its endpoint is gone.
func TestClientFollows(t *testing.T) {
	f := newFabric(t)
	f.life = 12 * time.Second
	dir, keys := t.TempDir(), t.TempDir()
	stop := f.serve(dir, keys)
	_, out := f.inside("watch", dir)
	f.awaits(out, "svid spiffe://sif.example/shop/web 2 1")
	f.awaits(out, "svid spiffe://sif.example/shop/web 3 1") // rotated
	f.set(func() { f.away = errors.New("the controller is away") })
	f.rotateAuthorities() // serial 4
	f.awaits(out, "svid spiffe://sif.example/shop/web 3 2")
	// An agent that starts while nobody answers has the key that its predecessor had.
	stop()
	f.serve(dir, keys)
	f.eventually(func() error {
		if len(out.all()) < 5 {
			return fmt.Errorf("%q", out.all())
		}
		return nil
	})
	f.set(func() { f.away, f.life = nil, time.Hour })
	f.awaits(out, "svid spiffe://sif.example/shop/web 5 2")
	// One that is revoked by its serial number is replaced, long before it is renewed.
	f.set(func() { f.void = f.serial })
	f.eventually(func() error {
		if f.revokedLast(out) {
			return errors.New("it has the revoked certificate")
		}
		return nil
	})
	f.set(func() { f.gone = errors.New("endpoint has lost its rights") })
	f.awaits(out, "error")
	must.StrContains(t, out.last(), "PermissionDenied")
	must.StrContains(t, out.last(), "endpoint has lost its rights")
	f.eventually(func() error { // and its key is not kept
		left, err := os.ReadDir(keys)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%s is there", left[0].Name())
		}
		return err
	})
}

// A certificate that cannot be renewed is reported as long as somebody wants it.
func TestFailuresEnd(t *testing.T) {
	f := newFabric(t)
	dir := t.TempDir()
	s, _ := f.server(dir, t.TempDir())
	cmd, out := f.inside("watch", dir)
	f.awaits(out, "svid spiffe://sif.example/shop/web 2 1")
	must.Eq(t, map[string]int{identity.AuthorityID(f.authorities()[0]): 1}, s.Issuers())
	f.set(func() { f.away = errors.New("the controller is away") })
	f.ahead.Store(int64(50 * time.Minute)) // of the hour that it lives
	f.eventually(func() error {
		if err := f.failures(); err == nil || !strings.Contains(err.Error(), "1 cannot be renewed") {
			return fmt.Errorf("what is reported is %v", err)
		}
		return nil
	})
	must.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	f.eventually(func() error {
		f.ahead.Add(int64(time.Minute))
		return f.failures()
	})
	// Its application may use it to its end.
	f.ahead.Store(int64(2 * time.Hour))
	must.MapEmpty(t, s.Issuers())
}

func TestJWT(t *testing.T) {
	f := newFabric(t)
	dir := t.TempDir()
	f.serve(dir, t.TempDir())
	cmd, out := f.inside("jwt", dir)
	_ = cmd.Wait()
	must.Eq(t, []string{"spiffe://sif.example/shop/web <nil> true"}, out.all())
}

// The processes of a workload together have so many calls open.
func TestCallsAreBounded(t *testing.T) {
	f := newFabric(t)
	dir := t.TempDir()
	f.serve(dir, t.TempDir())
	cmd, out := f.inside("many", dir)
	_ = cmd.Wait()
	must.Eq(t, []string{"1024 ResourceExhausted", "then OK"}, out.all())
}

// Who is in no workload gets nothing, and neither does who only made a connection in one, or was
// handed it.
func TestNobodyElse(t *testing.T) {
	f := newFabric(t)
	dir := t.TempDir()
	f.serve(dir, t.TempDir())
	path := filepath.Join(dir, "api.sock")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr("unix://"+path))
	must.ErrorContains(t, err, "PermissionDenied")
	must.ErrorContains(t, err, "is in no workload of the fabric")

	_, err = f.fetchOver(withHeader(ctx), f.connectInside(path))
	must.ErrorContains(t, err, "PermissionDenied")
	must.ErrorContains(t, err, "has left the network namespace")

	// A process of the workload connects, hands the connection to one outside, and ends.
	conn, end := f.handedOut(path)
	end()
	_, err = f.fetchOver(withHeader(ctx), conn)
	must.ErrorContains(t, err, "PermissionDenied")
	must.ErrorContains(t, err, "has ended")
	// The same, while the agent looks who it is: its number may mean another process by then.
	conn, end = f.handedOut(path)
	f.set(func() { f.looking = end })
	_, err = f.clientOver(conn).FetchJWTSVID(withHeader(ctx), &pb.JWTSVIDRequest{Audience: []string{"store"}})
	must.ErrorContains(t, err, "PermissionDenied")
	must.ErrorContains(t, err, "has ended")
	f.set(func() { f.looking = nil })

	_, err = f.fetchOver(ctx, f.connectInside(path))
	must.ErrorContains(t, err, "InvalidArgument")
	must.ErrorContains(t, err, "workload.spiffe.io")
}

// Whoever takes the socket away, or puts another in its place, is corrected; and it is told that
// somebody else could do so.
func TestSocket(t *testing.T) {
	f := newFabric(t)
	dir := t.TempDir()
	f.serve(dir, t.TempDir())
	path := filepath.Join(dir, "api.sock")
	answers := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr("unix://"+path))
		if err == nil || !strings.Contains(err.Error(), "is in no workload of the fabric") {
			return fmt.Errorf("the answer is %w", err)
		}
		return nil
	}
	f.eventually(answers)
	must.NoError(t, os.Remove(path))
	f.eventually(answers)
	must.NoError(t, os.Remove(path))
	must.NoError(t, os.WriteFile(path, nil, 0o600))
	f.eventually(answers)
	must.NoError(t, os.Chmod(path, 0o700))
	f.eventually(func() error {
		info, err := os.Stat(path)
		if err == nil && info.Mode().Perm() != 0o777 {
			err = fmt.Errorf("its mode is %s", info.Mode())
		}
		return err
	})

	strange := t.TempDir()
	must.NoError(t, os.Chown(strange, 65534, 65534))
	reported := make(chan error, 100)
	s, err := served.New(served.Config{
		Dir: strange, KeyDir: t.TempDir(), TrustDomain: f.td, Workloads: f, Issuer: f, Revoked: f.revoked, Superseded: notSuperseded, Authorities: f.authorities, JWTKeys: f,
		Now: f.now, Report: func(subject string, err error) {
			if subject == "workload API" {
				reported <- err
			}
		}, Log: hclog.NewNullLogger(),
	})
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	must.ErrorContains(t, <-reported, "belongs to user 65534, who could put another socket there")
	must.NoError(t, os.Chown(strange, os.Geteuid(), 0))
	f.eventually(func() error { return <-reported })
	cancel()
	must.NoError(t, <-ended)
}
