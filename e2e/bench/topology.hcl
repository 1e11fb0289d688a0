# Two zones, with two workload nodes in the first, and two machines outside. No Docker: its engines would only take part of the machine.
fabric       = "bench"
trust_domain = "sif.test"
datacenter   = "sif"

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
    host   = "10.99.0.2"
    client = "10.99.0.10"
  }

  pass "serf" {
    from = ["nodes"]
    to   = ["nodes"]
    tcp  = ["8301"]
    udp  = ["8301"]
  }

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

  pass "outside" {
    from = ["nodes"]
    to   = ["outside"]
    any  = true
  }

  outside "provider" { # the first address by the exit of the zone, the second by that of the node
    addresses = ["203.0.113.10", "203.0.113.11"]
  }
  outside "resolver" {
    addresses = ["198.51.100.53"]
    resolver  = true
  }
}

zone "ops" {
  subnet = "10.100.0.0/24"

  node "orchestrator" {
    kind    = "orchestrator"
    address = "10.100.0.10"
  }
}

zone "east" {
  subnet = "10.101.0.0/24"

  node "east-p1" {
    kind    = "processor"
    address = "10.101.0.10"
  }
  node "east-w1" {
    kind    = "workload"
    address = "10.101.0.11"
    drivers = ["exec"]
  }
  node "east-w2" {
    kind    = "workload"
    address = "10.101.0.12"
    drivers = ["exec"]
  }
}

zone "west" {
  subnet = "10.102.0.0/24"

  node "west-p1" {
    kind    = "processor"
    address = "10.102.0.10"
  }
  node "west-w1" {
    kind    = "workload"
    address = "10.102.0.11"
    drivers = ["exec"]
  }
}
