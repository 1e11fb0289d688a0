// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package wellknown

// GuestMAC is the hardware address of every virtual machine. It is known before an allocation is
// placed, because the job must tell it to QEMU, and need not be unique: each guest is alone on its
// tap interface.
const GuestMAC = "02:51:f0:00:00:01"

// GuestTap is the tap interface of a virtual machine in the network namespace of its allocation.
const GuestTap = "tap0"

// By ArgVM among the CNI arguments of a group's network, and MetaVM in its meta, both "true", a job
// says that the group is a virtual machine. The agent makes the interface by the one, and the
// controller admits by the other.
const (
	ArgVM  = "SIF_VM"
	MetaVM = "sif.vm"
)
