// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package workloadapi

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/keylock"
	"github.com/sif-project/sif/internal/limit"
)

// FetchJWTSVID implements the Workload API.
func (s *Server) FetchJWTSVID(ctx context.Context, r *pb.JWTSVIDRequest) (*pb.JWTSVIDResponse, error) {
	list, err := s.callers(ctx)
	if err != nil {
		return nil, err
	}
	if err := fabric.CheckAudience(r.Audience); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if r.SpiffeId != "" {
		is := func(w Workload) bool { return s.id(w.Service) == r.SpiffeId }
		if list = slices.DeleteFunc(list, func(w Workload) bool { return !is(w) }); len(list) == 0 {
			return nil, status.Errorf(codes.PermissionDenied, "the workload is not %.200q", r.SpiffeId)
		}
	}
	response := &pb.JWTSVIDResponse{}
	for _, w := range list {
		token, err := s.tokens.get(ctx, w, r.Audience)
		if err != nil {
			return nil, err
		}
		response.Svids = append(response.Svids, &pb.JWTSVID{SpiffeId: s.id(w.Service), Svid: token})
	}
	return response, nil
}

// FetchJWTBundles implements the Workload API.
func (s *Server) FetchJWTBundles(_ *pb.JWTBundlesRequest, stream grpc.ServerStreamingServer[pb.JWTBundlesResponse]) error {
	return s.follow(stream.Context(), func([]Workload) (string, func() error, error) {
		bundle := s.cfg.JWTKeys.Bundle()
		if bundle.Empty() {
			return "", nil, status.Error(codes.Unavailable, noJWTKeys)
		}
		// The keys are named by their content, and are in no order.
		ids := slices.Sorted(maps.Keys(bundle.JWTAuthorities()))
		return strings.Join(ids, " "), func() error {
			jwks, err := bundle.Marshal()
			if err != nil {
				return status.Errorf(codes.Internal, "encode the public keys: %v", err)
			}
			return stream.Send(&pb.JWTBundlesResponse{Bundles: map[string][]byte{s.cfg.TrustDomain.IDString(): jwks}})
		}, nil
	})
}

const noJWTKeys = "this node has no public keys of JWT-SVIDs yet: sif status says why"

// ValidateJWTSVID implements the Workload API. It needs nobody but this node.
func (s *Server) ValidateJWTSVID(ctx context.Context, r *pb.ValidateJWTSVIDRequest) (*pb.ValidateJWTSVIDResponse, error) {
	if _, err := s.callers(ctx); err != nil {
		return nil, err
	}
	if r.Audience == "" || r.Svid == "" {
		return nil, status.Error(codes.InvalidArgument, "a token is judged with an audience, and one of the two is missing")
	}
	bundle := s.cfg.JWTKeys.Bundle()
	svid, err := jwtsvid.ParseAndValidate(r.Svid, bundle, []string{r.Audience})
	if err != nil {
		s.cfg.JWTKeys.Hurry(ctx)
		if newer := s.cfg.JWTKeys.Bundle(); newer != bundle {
			svid, err = jwtsvid.ParseAndValidate(r.Svid, newer, []string{r.Audience})
		}
	}
	if err == nil && !svid.ID.MemberOf(s.cfg.TrustDomain) {
		err = fmt.Errorf("%s is of another trust domain", svid.ID)
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	claims, err := structpb.NewStruct(svid.Claims)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the claims of the token: %v", err)
	}
	return &pb.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, nil
}

const (
	// maxTokens bounds the tokens that are kept for an endpoint, which may name any audience.
	maxTokens = 64
	// Tokens that are not kept cost the controller and Vault a signature each: so many at once for
	// an endpoint, and then one each interval.
	tokenBurst    = 50
	tokenInterval = 200 * time.Millisecond
)

// tokens are the JWT-SVIDs that applications were given, until half of their life. It is safe for
// concurrent use.
type tokens struct {
	cfg     Config
	asking  keylock.Locks[string]
	allowed *limit.Rate[string]

	mu   sync.Mutex
	kept map[string]map[string]token // by endpoint and audience
}

type token struct {
	service fabric.Ref
	text    string
	until   time.Time
}

func newTokens(c Config) *tokens {
	return &tokens{cfg: c, allowed: limit.NewRate[string](tokenInterval, tokenBurst), kept: map[string]map[string]token{}}
}

// get returns a token of a workload for an audience.
func (t *tokens) get(ctx context.Context, w Workload, audience []string) (string, error) {
	key := strings.Join(audience, "\x00")
	if text := t.have(w, key); text != "" {
		return text, nil
	}
	defer t.asking.Lock(w.Endpoint + "\x00" + key)()
	if text := t.have(w, key); text != "" {
		return text, nil
	}
	if ok, wait := t.allowed.Allow(w.Endpoint); !ok {
		return "", status.Errorf(codes.ResourceExhausted, "endpoint %s asks for too many JWT-SVIDs: ask again in %s, and keep a token while it is valid", w.Endpoint, wait.Round(time.Millisecond))
	}
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	text, err := t.cfg.Issuer.JWTSVID(ctx, api.JWTSVIDRequest{Endpoint: w.Endpoint, Audience: audience})
	if err != nil {
		return "", refused(fmt.Errorf("get a JWT-SVID for the application of endpoint %s: %w", w.Endpoint, err))
	}
	svid, err := jwtsvid.ParseInsecure(text, audience)
	if err != nil || svid.ID.String() != idOf(t.cfg.TrustDomain, w.Service) {
		return "", status.Errorf(codes.Unavailable, "the JWT-SVID for the application of endpoint %s of service %s cannot be used: it is of %v (%v)", w.Endpoint, w.Service, svid, err)
	}
	now := t.cfg.Now()
	t.keep(w, key, token{service: w.Service, text: text, until: now.Add(svid.Expiry.Sub(now) / 2)}, now)
	return text, nil
}

// have returns a token that is kept and not past half of its life, or "".
func (t *tokens) have(w Workload, key string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k, ok := t.kept[w.Endpoint][key]; ok && k.service == w.Service && t.cfg.Now().Before(k.until) {
		return k.text
	}
	return ""
}

func (t *tokens) keep(w Workload, key string, k token, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for endpoint, kept := range t.kept {
		maps.DeleteFunc(kept, func(_ string, old token) bool { return !now.Before(old.until) })
		if len(kept) == 0 {
			delete(t.kept, endpoint)
		}
	}
	kept := t.kept[w.Endpoint]
	if kept == nil {
		kept = map[string]token{}
		t.kept[w.Endpoint] = kept
	}
	if len(kept) >= maxTokens {
		return
	}
	kept[key] = k
}
