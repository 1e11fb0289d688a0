// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/sif-project/sif/internal/statefile"
)

// stateFile is a file in the data directory with the last desired state of the devices, from which
// `sif link` restores them when it starts. It contains private keys: mode 0600.
const stateFile = "link.json"

type savedDevice struct {
	Name string `json:"name"`
	Interface
	PrivateKey string `json:"private_key"` // base64
	ListenPort uint16 `json:"listen_port"`
	Peers      []Peer `json:"peers"`
}

func file(dir string) statefile.File[[]savedDevice] {
	return statefile.File[[]savedDevice]{Path: filepath.Join(dir, stateFile), What: "the saved devices"}
}

// loadDevices returns no devices if the file does not exist.
func loadDevices(dir string) ([]Device, error) {
	f := file(dir)
	saved, _, err := f.Read()
	if err != nil {
		return nil, err
	}
	var devices []Device
	for _, s := range saved {
		key, err := ParsePrivateKey(s.PrivateKey)
		if err != nil {
			return nil, fmt.Errorf("read the saved devices from %s: device %s: %w", f.Path, s.Name, err)
		}
		if err := errors.Join(validateName(s.Name), s.Interface.validate()); err != nil {
			return nil, fmt.Errorf("read the saved devices from %s: %w", f.Path, err)
		}
		devices = append(devices, Device{
			Name: s.Name, Interface: s.Interface, ListenPort: s.ListenPort, PrivateKey: key, Peers: s.Peers,
		})
	}
	return devices, nil
}

// saveDevices replaces the file atomically.
func saveDevices(dir string, devices []Device) error {
	saved := make([]savedDevice, 0, len(devices))
	for _, d := range devices {
		saved = append(saved, savedDevice{
			Name: d.Name, Interface: d.Interface, PrivateKey: d.PrivateKey.Base64(),
			ListenPort: d.ListenPort, Peers: d.Peers,
		})
	}

	return file(dir).Write(saved)
}
