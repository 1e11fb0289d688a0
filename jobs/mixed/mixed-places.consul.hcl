# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# As what the unit is registered with the Consul agent of its machine. The fabric has the address.
service {
  id   = "mixed-places"
  name = "mixed-places"
  port = 9002
}
