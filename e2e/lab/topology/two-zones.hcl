# The fabric that `make dev` brings up: an orchestrator and two clouds, with the internet between them.
fabric       = "lab"
trust_domain = "sif.test"
datacenter   = "sif" # Consul's; a Nomad datacenter is a zone

underlay {
  mtu = 1500
}

# From these the controller gives every node its own pool of endpoint addresses.
pools {
  ipv4 = "100.64.0.0/10"
  ipv6 = "fd5f:51f::/48"
}

# Everything between zones goes through the internet namespace, which drops what is not passed here.
# from and to: "nodes" (all), a kind of node, or "users".
internet {
  users {
    subnet = "10.99.0.0/24"
    host   = "10.99.0.2"  # the machine itself: its browser
    client = "10.99.0.10" # a namespace outside the fabric, for tests
  }

  pass "serf" {
    from = ["nodes"]
    to   = ["nodes"]
    tcp  = ["8301"]
    udp  = ["8301"]
  }

  # Consul RPC, HTTPS, gRPC; Vault; Nomad HTTP, RPC; the controller.
  pass "management" {
    from = ["nodes", "users"]
    to   = ["orchestrator"]
    tcp  = ["8300", "8501", "8503", "8200", "4646-4647", "7700"]
  }

  pass "links" {
    from = ["processor"]
    to   = ["processor"]
    udp  = ["51820-51899"]
  }

  # What jobs publish by Nomad's port mapping.
  pass "published" {
    from = ["users"]
    to   = ["workload"]
    tcp  = ["18080-18099"]
  }
}

zone "ops" {
  subnet = "10.100.0.0/24"

  node "orchestrator" {
    kind    = "orchestrator"
    address = "10.100.0.10"
  }
}

zone "aws1" {
  subnet = "10.101.0.0/24"

  node "aws1-p1" {
    kind    = "processor"
    address = "10.101.0.10"
  }
  node "aws1-w1" {
    kind    = "workload"
    address = "10.101.0.11"
    drivers = ["docker", "exec"]
  }
  node "aws1-w2" {
    kind    = "workload"
    address = "10.101.0.12"
    drivers = ["docker", "exec"]
  }
}

zone "gcp1" {
  subnet = "10.102.0.0/24"

  node "gcp1-p1" {
    kind    = "processor"
    address = "10.102.0.10"
  }
  node "gcp1-w1" {
    kind    = "workload"
    address = "10.102.0.11"
    drivers = ["exec"]
  }
  node "gcp1-w2" { # attaches its programs as a kernel without TCX does
    kind       = "workload"
    address    = "10.102.0.12"
    drivers    = ["exec"]
    bpf_attach = "clsact"
  }
}
