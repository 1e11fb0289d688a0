// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package port

import (
	"bytes"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// udpSegmentation is the kernel's name of UDP segmentation offload: several UDP datagrams are
// passed to a device as one packet. Links merge datagrams that arrive together; Open vSwitch 3.1
// supports only TCP segmentation and drops such packets silently. With the feature off, the kernel
// splits them before the switch.
const udpSegmentation = "tx-udp-segmentation"

// The ABI of <linux/ethtool.h>.
const (
	featureNames = 4  // ETH_SS_FEATURES
	nameLength   = 32 // ETH_GSTRING_LEN
	word         = 4  // bytes of a __u32
)

// SplitDatagrams has the kernel split merged UDP datagrams before it gives them to the other end of
// a veth pair, which is a port of the switch. The device is in the calling thread's namespace.
func SplitDatagrams(device string) error { return switchOff(device, udpSegmentation) }

// switchOff switches off a feature of a device in the calling thread's namespace.
func switchOff(device, feature string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	// struct ethtool_sset_info: command, reserved, mask of 64 bits, one length for each set bit.
	info := []uint32{unix.ETHTOOL_GSSET_INFO, 0, 1 << featureNames, 0, 0}
	if err := ethtool(fd, device, unsafe.Pointer(&info[0])); err != nil {
		return fmt.Errorf("count the features of %s: %w", device, err)
	}
	count := int(info[4])
	// struct ethtool_gstrings: command, set, length, names.
	names := make([]uint32, 3+count*nameLength/word)
	names[0], names[1], names[2] = unix.ETHTOOL_GSTRINGS, featureNames, uint32(count)
	if err := ethtool(fd, device, unsafe.Pointer(&names[0])); err != nil {
		return fmt.Errorf("list the features of %s: %w", device, err)
	}
	text := unsafe.Slice((*byte)(unsafe.Pointer(&names[0])), len(names)*word)[3*word:]
	for i := range count {
		name, _, _ := bytes.Cut(text[i*nameLength:][:nameLength], []byte{0})
		if string(name) != feature {
			continue
		}
		// struct ethtool_sfeatures: command, number of blocks, and in each block the valid bits and
		// their values.
		set := make([]uint32, 2+2*((count+31)/32))
		set[0], set[1] = unix.ETHTOOL_SFEATURES, uint32(count+31)/32
		set[2+i/32*2] = 1 << (i % 32)
		if err := ethtool(fd, device, unsafe.Pointer(&set[0])); err != nil {
			return fmt.Errorf("switch off %s of %s: %w", feature, device, err)
		}
		return nil
	}
	return nil // a kernel without the feature merges no datagrams
}

// ethtool runs the command in the struct ethtool_* at data.
func ethtool(fd int, device string, data unsafe.Pointer) error {
	// struct ifreq.
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: data}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(data)
	if errno != 0 {
		return errno
	}
	return nil
}
