# The smallest real cluster: one zone, three machines, each with a Nomad client, an agent and an engine.
# No switch: the engines only carry requests. The servers and the controller are where the operator
# has them, behind a router of its own.
fabric       = "lab"
trust_domain = "sif.test"
datacenter   = "sif" # Consul's; a Nomad datacenter is a zone

underlay {
  mtu = 1500
}

pools {
  ipv4 = "100.64.0.0/10"
  ipv6 = "fd5f:51f::/48"
}

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

  node "aws1-n1" {
    kind    = "processor,workload"
    address = "10.101.0.11"
    drivers = ["docker", "exec"]
  }
  node "aws1-n2" {
    kind    = "processor,workload"
    address = "10.101.0.12"
    drivers = ["docker", "exec"]
  }
  node "aws1-n3" {
    kind    = "processor,workload"
    address = "10.101.0.13"
    drivers = ["exec"]
  }
}
