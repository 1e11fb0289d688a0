// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package workloadapi

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"slices"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sif-project/sif/api"
)

// FetchX509SVID implements the Workload API.
func (s *Server) FetchX509SVID(_ *pb.X509SVIDRequest, stream grpc.ServerStreamingServer[pb.X509SVIDResponse]) error {
	return s.follow(stream.Context(), func(list []Workload, before string) (string, error) {
		response, err := s.svids(stream.Context(), list)
		if err != nil {
			return "", err
		}
		return send(s, stream, response, before)
	})
}

// FetchX509Bundles implements the Workload API.
func (s *Server) FetchX509Bundles(_ *pb.X509BundlesRequest, stream grpc.ServerStreamingServer[pb.X509BundlesResponse]) error {
	return s.follow(stream.Context(), func(_ []Workload, before string) (string, error) {
		bundle, err := s.bundle()
		if err != nil {
			return "", err
		}
		return send(s, stream, &pb.X509BundlesResponse{Bundles: map[string][]byte{s.cfg.TrustDomain.IDString(): bundle}}, before)
	})
}

// send sends a message if it is another one than before. Whoever has the connection by now must
// still be who asked.
func send[T any, M interface {
	*T
	proto.Message
}](s *Server, stream grpc.ServerStreamingServer[T], message M, before string) (now string, err error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	if err != nil {
		return "", status.Errorf(codes.Internal, "encode the message: %v", err)
	}
	sum := sha256.Sum256(b)
	if now = string(sum[:]); now == before {
		return now, nil
	}
	if _, err := s.callers(stream.Context()); err != nil {
		return "", err
	}
	return now, stream.Send(message)
}

// svids returns the SVIDs of workloads.
func (s *Server) svids(ctx context.Context, list []Workload) (*pb.X509SVIDResponse, error) {
	bundle, err := s.bundle()
	if err != nil {
		return nil, err
	}
	response := &pb.X509SVIDResponse{}
	for _, w := range list {
		cert, err := s.keys.get(ctx, w)
		if err != nil {
			return nil, refused(err)
		}
		key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "encode the key: %v", err)
		}
		response.Svids = append(response.Svids, &pb.X509SVID{
			SpiffeId: s.id(w.Service), X509Svid: slices.Concat(cert.Certificate...), X509SvidKey: key, Bundle: bundle,
		})
	}
	return response, nil
}

// bundle returns the authorities of the trust domain, in DER, one after the other.
func (s *Server) bundle() ([]byte, error) {
	list := s.cfg.Authorities()
	if len(list) == 0 {
		return nil, status.Error(codes.Unavailable, "this node has no authorities yet")
	}
	var der []byte
	for _, c := range list {
		der = append(der, c.Raw...)
	}
	return der, nil
}

// refused turns an error of the controller into a status. What it refuses, it refuses for good
// reason; everything else may pass.
func refused(err error) error {
	var e *api.Error
	if errors.As(err, &e) && e.Status < 500 && e.Status != 429 {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return status.Error(codes.Unavailable, err.Error())
}
