# Three controllers, and two clouds: for the tests of what a change of the leading controller does.
# The first orchestrator node has the servers of Consul, Vault and Nomad as well.
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

    subnet6 = "2001:db8:99::/64"
    client6 = "2001:db8:99::10"
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
    from = ["users", "outside"]
    to   = ["workload"]
    tcp  = ["18080-18099"]
    udp  = ["18080-18099"]
  }

  # Jobs and their owners reach whatever is outside, and the other way round only what is published.
  pass "outside" {
    from = ["nodes", "users"]
    to   = ["outside"]
    any  = true
  }

  # Machines outside the fabric. Each port of them answers.
  outside "provider" {
    addresses = ["203.0.113.10", "2001:db8:203::10"]
    names     = ["news.example.com", "api.example.com"]
    provider  = true
  }
  outside "cdn" { # many addresses, of which each answer has some
    addresses = [
      "203.0.113.21", "203.0.113.22", "203.0.113.23", "203.0.113.24", "203.0.113.25",
      "203.0.113.26", "203.0.113.27", "203.0.113.28", "203.0.113.29", "203.0.113.30",
      "2001:db8:203::21", "2001:db8:203::22", "2001:db8:203::23", "2001:db8:203::24", "2001:db8:203::25",
      "2001:db8:203::26", "2001:db8:203::27", "2001:db8:203::28", "2001:db8:203::29", "2001:db8:203::30",
    ]
    answers  = 3
    names    = ["places.example.com", "*.cdn.example.com"]
    provider = true
  }
  outside "narrow" { # behind a link that does not carry whole packets
    addresses = ["198.51.100.10", "2001:db8:198::10"]
    mtu       = 1300
    names     = ["weather.example.net", "narrow.example.net"]
    provider  = true
  }
  outside "resolver" {
    addresses = ["198.51.100.53", "2001:db8:198::53"]
    resolver  = true
  }
  outside "database" { # Consul's catalog knows it; it has no agent
    addresses = ["10.20.0.10"]
    service   = "postgres"
    port      = 5432
  }
  outside "metadata" { # as clouds have it
    addresses = ["169.254.169.254", "fd00:ec2::254"]
  }

  record "alias.example.com" {
    cname = "api.example.com"
  }
  record "rebind.example.net" { # points at the inside
    addresses = ["100.64.0.1", "fd5f:51f::1", "10.100.0.10", "127.0.0.1", "::1", "169.254.169.254", "fd00:ec2::254"]
    ttl       = 1
  }
}

zone "ops" {
  subnet = "10.100.0.0/24"

  node "orchestrator" {
    kind    = "orchestrator"
    address = "10.100.0.10"
  }
  node "controller2" {
    kind    = "orchestrator"
    address = "10.100.0.11"
  }
  node "controller3" {
    kind    = "orchestrator"
    address = "10.100.0.12"
  }
}

zone "aws1" {
  subnet  = "10.101.0.0/24"
  subnet6 = "2001:db8:101::/64"

  node "aws1-p1" {
    kind     = "processor"
    address  = "10.101.0.10"
    address6 = "2001:db8:101::10"
  }
  node "aws1-w1" {
    kind     = "workload"
    address  = "10.101.0.11"
    address6 = "2001:db8:101::11"
    drivers  = ["docker", "exec", "raw_exec"]
  }
}

zone "gcp1" {
  subnet  = "10.102.0.0/24"
  subnet6 = "2001:db8:102::/64"

  node "gcp1-p1" {
    kind     = "processor"
    address  = "10.102.0.10"
    address6 = "2001:db8:102::10"
  }
  node "gcp1-w1" {
    kind     = "workload"
    address  = "10.102.0.11"
    address6 = "2001:db8:102::11"
    drivers  = ["exec", "raw_exec"]
  }
}
