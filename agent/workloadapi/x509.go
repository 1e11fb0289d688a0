// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package workloadapi

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sif-project/sif/api"
)

// FetchX509SVID implements the Workload API.
func (s *Server) FetchX509SVID(_ *pb.X509SVIDRequest, stream grpc.ServerStreamingServer[pb.X509SVIDResponse]) error {
	return s.follow(stream.Context(), func(list []Workload) (string, func() error, error) {
		bundle, err := s.bundle()
		if err != nil {
			return "", nil, err
		}
		now := string(bundle)
		certs := make([]*tls.Certificate, len(list))
		for i, w := range list {
			if certs[i], err = s.keys.get(stream.Context(), w); err != nil {
				return "", nil, refused(err)
			}
			now += string(certs[i].Leaf.Raw)
		}
		return now, func() error {
			response, err := s.svids(list, certs, bundle)
			if err != nil {
				return err
			}
			return stream.Send(response)
		}, nil
	})
}

// svids returns the SVIDs of workloads, whose certificates are in the same order.
func (s *Server) svids(list []Workload, certs []*tls.Certificate, bundle []byte) (*pb.X509SVIDResponse, error) {
	response := &pb.X509SVIDResponse{}
	for i, w := range list {
		key, err := x509.MarshalPKCS8PrivateKey(certs[i].PrivateKey)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "encode the key: %v", err)
		}
		response.Svids = append(response.Svids, &pb.X509SVID{
			SpiffeId: s.id(w.Service), X509Svid: slices.Concat(certs[i].Certificate...), X509SvidKey: key, Bundle: bundle,
		})
	}
	return response, nil
}

// FetchX509Bundles implements the Workload API.
func (s *Server) FetchX509Bundles(_ *pb.X509BundlesRequest, stream grpc.ServerStreamingServer[pb.X509BundlesResponse]) error {
	return s.follow(stream.Context(), func([]Workload) (string, func() error, error) {
		bundle, err := s.bundle()
		return string(bundle), func() error {
			return stream.Send(&pb.X509BundlesResponse{Bundles: map[string][]byte{s.cfg.TrustDomain.IDString(): bundle}})
		}, err
	})
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
