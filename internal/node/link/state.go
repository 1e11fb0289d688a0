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
)

// stateFile, in the data dir, holds the devices as they were wanted last, so
// that `sif link` makes them again by itself after it was killed. It holds
// private keys: mode 0600.
const stateFile = "link.json"

type savedDevice struct {
	Name string `json:"name"`
	Interface
	PrivateKey string `json:"private_key"` // base64
	ListenPort uint16 `json:"listen_port"`
	Peers      []Peer `json:"peers"`
}

// loadDevices returns nothing if nothing was saved yet.
func loadDevices(dir string) ([]Device, error) {
	path := filepath.Join(dir, stateFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read saved devices: %w", err)
	}
	var saved []savedDevice
	if err := json.Unmarshal(text, &saved); err != nil {
		return nil, fmt.Errorf("decode saved devices %s: %w", path, err)
	}
	var devices []Device
	for _, s := range saved {
		key, err := ParsePrivateKey(s.PrivateKey)
		if err != nil {
			return nil, fmt.Errorf("decode saved devices %s: device %s: %w", path, s.Name, err)
		}
		if err := errors.Join(validateName(s.Name), s.Interface.validate()); err != nil {
			return nil, fmt.Errorf("decode saved devices %s: %w", path, err)
		}
		devices = append(devices, Device{
			Name: s.Name, Interface: s.Interface, ListenPort: s.ListenPort, PrivateKey: key, Peers: s.Peers,
		})
	}
	return devices, nil
}

// saveDevices replaces the file as a whole, so that a crash leaves the old or
// the new one.
func saveDevices(dir string, devices []Device) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("save devices: %w", err)
		}
	}()
	saved := make([]savedDevice, 0, len(devices))
	for _, d := range devices {
		saved = append(saved, savedDevice{
			Name: d.Name, Interface: d.Interface, PrivateKey: d.PrivateKey.Base64(),
			ListenPort: d.ListenPort, Peers: d.Peers,
		})
	}
	text, err := json.MarshalIndent(saved, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, stateFile+".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed, as it should
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, stateFile))
}
