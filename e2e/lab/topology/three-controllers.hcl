# Three controllers, and two clouds: for the tests of what a change of the leading controller does.
# The first orchestrator node has the servers of Consul, Vault and Nomad as well.
surroundings_of = "two-zones.hcl"

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
