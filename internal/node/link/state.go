// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sif-project/sif/internal/atomicfile"
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

// loadDevices returns no devices if the file does not exist.
func loadDevices(dir string) ([]Device, error) {
	path := filepath.Join(dir, stateFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the saved devices: %w", err)
	}
	var saved []savedDevice
	if err := json.Unmarshal(text, &saved); err != nil {
		return nil, fmt.Errorf("decode the saved devices %s: %w", path, err)
	}
	var devices []Device
	for _, s := range saved {
		key, err := ParsePrivateKey(s.PrivateKey)
		if err != nil {
			return nil, fmt.Errorf("decode the saved devices %s: device %s: %w", path, s.Name, err)
		}
		if err := errors.Join(validateName(s.Name), s.Interface.validate()); err != nil {
			return nil, fmt.Errorf("decode the saved devices %s: %w", path, err)
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
	text, err := json.MarshalIndent(saved, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the devices: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(dir, stateFile), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("save the devices: %w", err)
	}
	return nil
}
