// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// RevokeCertificateCommand is sif revoke certificate.
type RevokeCertificateCommand struct{ revoking }

// Synopsis implements cli.Command.
func (c *RevokeCertificateCommand) Synopsis() string { return "Revoke one certificate" }

func (c *RevokeCertificateCommand) usage() string {
	return `
Usage: sif revoke certificate [options] <serial>|<path>

  Revokes one certificate of a node, a service or a controller, by its serial
  number in hexadecimal digits, or by a PEM file of it. No daemon accepts it
  any more, connections that were opened with it are closed, and what was
  signed with it has no rights. Its holder gets another from Vault at once; the
  node whose certificate it was is cut off until then.

  It is for one certificate with its key that leaked. Of a stolen machine,
  which can get another certificate, revoke the node. With a PEM file, Vault is
  asked to list the certificate as well. It cannot be taken back. The token
  must be an operator's.
`
}

func (c *RevokeCertificateCommand) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: a serial number, or the path of a PEM file", predict: complete.PredictFiles("*.pem")}
}

func (c *RevokeCertificateCommand) run(ctx context.Context, args []string) error {
	req := api.RevokeRequest{}
	data, err := os.ReadFile(args[0])
	switch serial, parsing := fabric.ParseSerial(args[0]); {
	case err == nil:
		if req.Certificate, err = leafOf(data); err != nil {
			return fmt.Errorf("revoking the certificate in %s: %w", args[0], err)
		}
	case parsing == nil:
		req.Serial = serial
	case errors.Is(err, fs.ErrNotExist):
		return usagef("%v; nor is it a file.", parsing)
	default:
		return fmt.Errorf("revoking a certificate: %w", err)
	}
	return c.revoke(ctx, "certificate "+args[0], req)
}

// leafOf returns the first certificate in PEM.
func leafOf(data []byte) ([]byte, error) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, err
		}
		return block.Bytes, nil
	}
	return nil, errors.New("it contains no certificate in PEM")
}
