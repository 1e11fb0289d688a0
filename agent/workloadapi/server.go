// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package workloadapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/limit"
	"github.com/sif-project/sif/internal/logkey"
)

// Workload is an endpoint of the node, as what its processes are served.
type Workload struct {
	Endpoint string
	Service  fabric.Ref
}

// Workloads knows the workloads of the node.
type Workloads interface {
	// Of returns the workloads to which a process belongs; none if it is in none.
	Of(Caller) ([]Workload, error)
	// Current returns the workload of an endpoint, or why it has no identity any more.
	Current(endpoint string) (Workload, error)
}

// Issuer issues what applications hold. The controller does.
type Issuer interface {
	SVID(context.Context, api.SVIDRequest) ([][]byte, error)
	JWTSVID(context.Context, api.JWTSVIDRequest) (string, error)
}

// JWTKeys are the public keys of JWT-SVIDs.
type JWTKeys interface {
	Bundle() *jwtbundle.Bundle
	// Hurry reads them again: somebody has a token of a key that is not known.
	Hurry(context.Context)
}

// Config configures a Server.
type Config struct {
	Dir         string // of the socket, which workloads have mounted
	KeyDir      string // of the keys that applications hold
	TrustDomain spiffeid.TrustDomain
	Workloads   Workloads
	Issuer      Issuer
	Revoked     func(*x509.Certificate) bool // a certificate that is revoked is replaced
	Superseded  func(*x509.Certificate) bool // its authority issues no more: it is renewed
	Authorities func() []*x509.Certificate
	JWTKeys     JWTKeys
	Now         func() time.Time
	Report      func(subject string, err error) // nil: it is well
	Log         hclog.Logger
}

// Server serves the Workload API.
type Server struct {
	pb.UnimplementedSpiffeWorkloadAPIServer
	cfg    Config
	grpc   *grpc.Server
	calls  *limit.Count[uint64] // that are open, by the inode of the network namespace
	socket socket
	keys   *keys
	tokens *tokens

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when a stream is to look again
}

// lookInterval is how often everything is looked at again that nobody tells of: the socket, the
// authorities, whether endpoints still are.
const lookInterval = time.Second

// Limits of calls that are open, by network namespace and in all. A stream is one as long as its
// client follows, and costs some memory and, each second, a look.
const (
	maxCallsEach = 1024
	maxCalls     = 4 * maxConns
)

// Limits of a connection.
const (
	maxStreams = 100
	maxMessage = 256 << 10 // bytes; a token to be judged is the largest
	maxHeader  = 16 << 10
)

// New returns a server. Call Run next.
func New(c Config) (*Server, error) {
	s := &Server{cfg: c, changed: make(chan struct{}), socket: socket{dir: c.Dir}, calls: limit.NewCount[uint64](maxCallsEach, maxCalls)}
	var err error
	if s.keys, err = openKeys(c, s.Review); err != nil {
		return nil, err
	}
	s.tokens = newTokens(c)
	s.grpc = grpc.NewServer(
		grpc.Creds(transport{conns: limit.NewCount[uint64](maxConnsEach, maxConns)}),
		grpc.MaxConcurrentStreams(maxStreams), grpc.MaxRecvMsgSize(maxMessage), grpc.MaxHeaderListSize(maxHeader),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			leave, err := s.enter(ctx)
			if err != nil {
				return nil, err
			}
			defer leave()
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			leave, err := s.enter(stream.Context())
			if err != nil {
				return err
			}
			defer leave()
			return next(srv, stream)
		}),
	)
	pb.RegisterSpiffeWorkloadAPIServer(s.grpc, s)
	return s, nil
}

// enter refuses a call that lacks the header, or is one too many. leave is to be called at its end.
func (s *Server) enter(ctx context.Context) (leave func(), err error) {
	if err := checkHeader(ctx); err != nil {
		return nil, err
	}
	p, err := peerOf(ctx)
	if err != nil {
		return nil, err
	}
	if !s.calls.Take(p.namespace) {
		return nil, status.Errorf(codes.ResourceExhausted, "the network namespace of process %d has %d calls open already, or all have %d", p.pid, maxCallsEach, maxCalls)
	}
	return func() { s.calls.Release(p.namespace) }, nil
}

func peerOf(ctx context.Context) (*peer, error) {
	conn, _ := grpcpeer.FromContext(ctx)
	p, ok := conn.AuthInfo.(*peer)
	if !ok {
		return nil, status.Error(codes.Internal, "the connection has no process")
	}
	return p, nil
}

// checkHeader refuses a call without the header that the standard demands. A program that can be
// made to call addresses of others' choice cannot set it (server side request forgery).
func checkHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, `the call lacks the header "workload.spiffe.io: true", which the SPIFFE Workload API demands`)
	}
	return nil
}

// Issuers counts the certificates that applications hold by who issued them (identity.IssuedBy).
func (s *Server) Issuers() map[string]int { return s.keys.issuers() }

// Run serves until ctx ends. A socket that cannot be served is reported and tried again.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		<-ctx.Done()
		s.grpc.Stop()
		return nil
	})
	group.Go(func() error { return s.keys.run(ctx) })
	group.Go(func() error {
		tick := time.NewTicker(lookInterval)
		defer tick.Stop()
		for {
			l, err := s.socket.ensure()
			s.cfg.Report(problem, err)
			if l != nil {
				group.Go(func() error {
					if err := s.grpc.Serve(l); err != nil && ctx.Err() == nil && !errors.Is(err, grpc.ErrServerStopped) {
						s.cfg.Log.Warn("a socket of the Workload API is not served any more", logkey.Error, err)
					}
					return nil
				})
			}
			s.Review()
			select {
			case <-ctx.Done():
				s.socket.close()
				return nil
			case <-tick.C:
			}
		}
	})
	return group.Wait()
}

// problem is the subject of reports.
const problem = "workload API"

// Review has each stream look whether its workload still has its identity, and whether it was told
// the newest.
func (s *Server) Review() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// callers returns the workloads of who has made a call, of which there is at least one.
func (s *Server) callers(ctx context.Context) ([]Workload, error) {
	p, err := peerOf(ctx)
	if err != nil {
		return nil, err
	}
	caller, err := p.caller()
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	defer caller.Namespace.Close()
	list, err := s.cfg.Workloads.Of(caller)
	if err == nil && !p.lives() {
		err = errEnded // what was found by its number may be another's
	}
	if err != nil {
		s.cfg.Log.Debug("refused", logkey.Process, caller.PID, logkey.Error, err)
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	if len(list) == 0 {
		return nil, status.Errorf(codes.PermissionDenied,
			"process %d is in no workload of the fabric: neither is its network namespace that of an endpoint of this node, nor its cgroup that of an attached process", caller.PID)
	}
	return list, nil
}

// follow calls look at once and whenever something may have changed, until the caller or its last
// workload is gone. look returns a text that stands for what there is to tell, never an empty one,
// and what tells it, which is called only if the text differs from the one before.
func (s *Server) follow(ctx context.Context, look func(list []Workload) (now string, tell func() error, err error)) error {
	before := ""
	list, err := s.callers(ctx)
	if err != nil {
		return err
	}
	for {
		changed := s.next() // before looking, so that nothing is missed
		now, tell, err := look(list)
		if err != nil {
			return err
		}
		if now != before {
			// Whoever has the connection by now must still be who asked.
			if _, err := s.callers(ctx); err != nil {
				return err
			}
			if err := tell(); err != nil {
				return err
			}
			before = now
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-changed:
		}
		if list, err = s.still(list); err != nil {
			return err
		}
	}
}

// still returns those of the workloads that are there, or why none is.
func (s *Server) still(list []Workload) ([]Workload, error) {
	var there []Workload
	var why error
	for _, w := range list {
		if now, err := s.cfg.Workloads.Current(w.Endpoint); err != nil {
			why = err
		} else {
			there = append(there, now)
		}
	}
	if len(there) == 0 {
		return nil, status.Error(codes.PermissionDenied, why.Error())
	}
	return there, nil
}

// id returns the SPIFFE ID of a service.
func (s *Server) id(service fabric.Ref) string { return idOf(s.cfg.TrustDomain, service) }

func idOf(td spiffeid.TrustDomain, service fabric.Ref) string {
	return fmt.Sprintf("spiffe://%s%s", td.Name(), service.SPIFFE())
}
